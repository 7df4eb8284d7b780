"""Running the unguided source network, and the parts of a conditioning that a trajectory keeps."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.inversion.trajectory import SourceConditioning, TrajectoryError

NUMBERS = ("fps", "motion_bucket_id", "augmentation_level")
DEFAULTS = {"fps": 6.0, "motion_bucket_id": 127.0, "augmentation_level": 0.0}  # the host's, where conditioning is silent


def source_of(positive: list, frames: int) -> SourceConditioning:
    """The parts of a CONDITIONING that a trajectory keeps.

    Raises:
        TrajectoryError: it is not a single image-to-video conditioning, or for another number of frames.
    """
    if len(positive) != 1:
        raise TrajectoryError(f"'positive' holds {len(positive)} conditionings joined; an inversion needs exactly one. "
                              "Connect Source Conditioning, or SVD's own conditioning node.")
    embedding, extra = positive[0]
    image = extra.get("concat_latent_image")
    if embedding is None or image is None:
        raise TrajectoryError("'positive' is no image-to-video conditioning (it has no image latent). Connect Source "
                              "Conditioning, or SVD's own conditioning node.")
    if len(image) not in (1, frames):
        raise TrajectoryError(f"'positive' is for {len(image)} frames, 'latent' has {frames}. Take both from the same "
                              "Source Conditioning.")
    numbers = {name: float(extra.get(name, DEFAULTS[name])) for name in NUMBERS}
    return SourceConditioning(embedding.detach().cpu(), image.detach().cpu(), numbers)


def conditioning_of(source: SourceConditioning) -> list:
    """The same as the host's CONDITIONING again."""
    return [[source.embedding, {**source.numbers, "concat_latent_image": source.image_latents}]]


# ---- running the source network --------------------------------------------------------------------------------------


class Unguided(comfy.samplers.CFGGuider):
    """Conditional predictions only: no unconditional half, and no guidance from other nodes."""

    def __init__(self, model: ModelPatcher, positive: list):
        super().__init__(model)
        self.inner_set_conds({"positive": positive})

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
        return comfy.samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, model_options or {})[0]


def run_source(model: ModelPatcher, positive: list, latents: Tensor, levels: list[float], sampler: Callable,
               callback: Callable | None = None) -> Tensor:
    """Run a sampler function of k-diffusion's signature on the unguided source network.

    Args:
        latents: (T, 4, h, w) where it starts, as a LATENT holds it; no noise is added.
        levels: noise levels handed to the function.
    """
    guider = Unguided(model, positive)
    return guider.sample(torch.zeros_like(latents), latents, comfy.samplers.KSAMPLER(sampler), torch.tensor(levels),
                         callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=0)
