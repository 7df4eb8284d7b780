"""One-shot tuning: a text-to-image model and one video in, states on the disk, the tuned tensors out (Video-P2P, stage 1).

The release draws the latents from the VAE's posterior in every step; core's VAE gives its mean, which is what the edit uses too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.digest import digest
from ...core.training import loop
from ...core.training.one_shot import objective
from ...core.training.one_shot.presets import OneShotSettings
from ..attention.inflated import is_inflated, network_digest
from ..identity import model_digest
from .inflated import InflatedNetwork, copy_of
from .run import Finished, Watch, differentiable


class OneShotInputs(NamedTuple):
    """What a run is made from.

    model: Stable Diffusion 1.x; LoRAs on it are merged. One that is inflated goes on from its temporal layers.
    text: (1, K, C) embedding of the video's prompt.  latents: (F, 4, h, w), as a LATENT holds them.
    """

    model: ModelPatcher
    text: Tensor
    latents: Tensor


def trainer_of(network: InflatedNetwork, settings: OneShotSettings) -> loop.Trainer:
    """The optimiser of a run; marks what trains in the network."""
    trained = {name: p.requires_grad_(True) for name, p in network.named_weights().items()
               if objective.trains(name, settings.what_trains)}
    return loop.Trainer(trained, settings.loop())


def identity_of(inputs: OneShotInputs, settings: OneShotSettings) -> dict[str, str]:
    """What makes a run this one and no other."""
    model = network_digest(inputs.model) if is_inflated(inputs.model) else model_digest(inputs.model, True)
    return {**settings.identity(), "data": digest({"latents": inputs.latents, "text": inputs.text}), "model": model}


def run(inputs: OneShotInputs, settings: OneShotSettings, folder: Path, watch: Watch = Watch()) -> Finished:  # noqa: B008
    """Tune to the end, from the newest state in the folder if there is one.

    Returns:
        All query projections and temporal layers, trained or not, by ComfyUI names without prefix; see
        `host.attention.inflated.with_tuned`.

    Raises:
        StateError, NotANumber, WrongModel: see there.
    """
    device = torch.device(mm.get_torch_device())
    with differentiable():
        network = copy_of(inputs.model, settings.precision, settings.checkpointing, settings.seed, settings.random_bias)
        identity = identity_of(inputs, settings)
        if device.type != "cpu":  # the VAE and the text encoder have done their work
            mm.unload_all_models()
            mm.soft_empty_cache()
        network = network.to(device)
        trainer = trainer_of(network, settings)
        latents = inputs.model.model.process_latent_in(inputs.latents.clone().float()).to(device)
        loss = objective.batch_loss(network, latents, inputs.text.clone().float().to(device))
        loop.train(trainer, loss, folder, watch.stepped, watch.check_stop, identity)
        return Finished(tuned_tensors(network), trainer.step)


def tuned_tensors(network: InflatedNetwork) -> dict[str, Tensor]:
    """Everything in which a tuned network differs from the one it came from."""
    temporal = set(network.temporal.state_dict())
    return {name: p.detach().cpu().clone() for name, p in network.named_weights().items()
            if name in temporal or objective.trains(name, "all_trainable")}
