"""One-shot tuning: a text-to-image model and one video in, states on the disk, the tuned tensors out (Video-P2P, stage 1).

The release draws the latents from the VAE's posterior in every step; core's VAE gives its mean, which is what the edit uses too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.digest import digest
from ...core.finite import BY_VAE, check_finite
from ...core.training.one_shot import objective
from ...core.training.one_shot.presets import OneShotSettings
from ...core.training.one_shot.preview import sample
from ..attention.inflated import is_inflated, network_digest
from ..models.identity import model_digest
from .inflated import InflatedNetwork, copy_of
from .run import SILENT, RunCallbacks, RunResult, Task, differentiable, first_middle_last
from .run import run as run_task


class OneShotInputs(NamedTuple):
    """The inputs of a run.

    model: Stable Diffusion 1.x; LoRAs on it are merged. One that is inflated goes on from its temporal layers.
    text: (1, K, C) embedding of the video's prompt.  latents: (F, 4, h, w), as a LATENT holds them.
    vae: for previews; it does not affect the result.
    """

    model: ModelPatcher
    text: Tensor
    latents: Tensor
    vae: Any = None


def mark(network: InflatedNetwork, settings: OneShotSettings) -> InflatedNetwork:
    """Let what trains record gradients."""
    for name, parameter in network.named_weights().items():
        parameter.requires_grad_(objective.trains(name, settings.what_trains))
    return network


def identity_of(inputs: OneShotInputs, settings: OneShotSettings) -> dict[str, str]:
    """Everything that identifies a run, by name."""
    model = network_digest(inputs.model) if is_inflated(inputs.model) else model_digest(inputs.model, True)
    return {**settings.identity(), "data": digest({"latents": inputs.latents, "text": inputs.text}), "model": model}


@differentiable()
def run(inputs: OneShotInputs, settings: OneShotSettings, folder: Path, callbacks: RunCallbacks = SILENT) -> RunResult:
    """Tune to the end, from the newest state in the folder if there is one.

    Returns:
        All query projections and temporal layers, trained or not, by ComfyUI names without prefix; see
        `host.attention.inflated.with_tuned`.

    Raises:
        StateError, NonFinite, WrongModel, NotFinite: see there.
    """
    check_finite("the video", {"'latent'": inputs.latents}, BY_VAE)
    check_finite("the prompt", {"'positive'": inputs.text}, "Connect CLIP Text Encode directly.")
    network = mark(copy_of(inputs.model, settings.precision, settings.checkpointing, settings.seed, settings.random_bias), settings)
    latents, text = inputs.model.model.process_latent_in(inputs.latents.clone().float()), inputs.text.clone().float()

    def preview(device: torch.device) -> Tensor:
        again = sample(network, latents.to(device), text.to(device), settings.seed)
        return first_middle_last(inputs.vae, inputs.model, again, latents)

    temporal = set(network.temporal.state_dict())
    task = Task(
        network, lambda call, device: objective.batch_loss(call, latents.to(device), text.to(device)), settings.loop(),
        identity_of(inputs, settings), network.named_weights,
        comes_out=lambda name: name in temporal or objective.trains(name, "all_trainable"),
        preview=None if inputs.vae is None else preview, preview_every=settings.preview_every)
    return run_task(task, folder, callbacks)
