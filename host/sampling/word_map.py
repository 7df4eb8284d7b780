"""Where words looked in a model's last run with Prompt Attention, or, if that run is gone, where they look in its result."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .. import keys
from ..attention.inflated import check_model
from ..conditioning import check_latent
from ..models.network import check_embedding
from .edit_run import Plan, ReadOut
from .video_p2p import Attached, read_out_of

LOOKS = 5  # steps at which a result is looked at


class NoWordMaps(ValueError):
    """There is nothing that words could have looked at."""


def read_maps(model: ModelPatcher, positive: list, latent: dict[str, Any]) -> tuple[ReadOut, Plan]:
    """The read-out of a model with Prompt Attention.

    Args:
        positive: the edit's CONDITIONING.  latent: LATENT of the finished edit.

    Raises:
        WrongModel: not a Stable Diffusion 1.x model.
        NoWordMaps: the model has no Prompt Attention.
    """
    check_model(model)
    found = read_out_of(model)
    if found is None:
        raise NoWordMaps("'model' has no Prompt Attention. Connect the MODEL that goes into the sampler.")
    read_out, plan = found
    if read_out.maps is None:  # the sampler's result came from the host's cache, or from another process
        samples = check_latent(latent, "Stable Diffusion 1.x", "Connect KSampler's LATENT.")
        _look_again(model, plan, positive, samples)
    return found


def _look_again(model: ModelPatcher, plan: Plan, positive: list, samples: Tensor) -> None:
    """Show the network the edit with the noise that the source has at some steps; where words look then fills the read-out."""
    check_embedding(model, positive, "positive")
    model = model.clone()
    model.set_attachments(keys.PROMPT_EDIT, Attached(plan, lambda text: None))  # this is no edit of which to warn
    levels = torch.as_tensor(plan.trajectory.sigmas if plan.trajectory is not None else
                             comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", LOOKS))
    steps = len(levels) - 1
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(samples.shape, generator=generator)

    def look(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback: Any = None,
             disable: Any = None) -> Tensor:
        edit = model.model.process_latent_in(samples).to(x)
        for step in sorted({round(i * (steps - 1) / (LOOKS - 1)) for i in range(LOOKS)}):
            if plan.trajectory is None:
                added = noise.to(x) * sigmas[step]
            else:
                states = plan.trajectory.states
                added = (states[steps - step] - states[0]).to(x).repeat(len(plan.edits), 1, 1, 1)
            model_k(edit + added, sigmas[step].expand(len(x)), **(extra_args or {}))
        return x

    comfy.sample.sample_custom(model, torch.zeros_like(samples), 1.0, comfy.samplers.KSAMPLER(look), levels, positive, positive,
                               samples, disable_pbar=True, seed=0)
