"""Reading a model's matching attention once, through the host's own sampling path."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.attention.correspondence import SiteAttention
from .. import keys
from ..models.network import check_embedding


def look(model: ModelPatcher, positive: list, latent: Tensor, sigma: float, seed: int) -> dict[str, SiteAttention]:
    """Run the network once on an edited latent at one noise level and note every block's queries and keys.

    Args:
        model: with matching attention attached.
        positive: the conditioning of the edit.
        latent: (T, 4, h, w) the finished edit, as KSampler returns it.
        sigma: noise level to look at.  seed: of the noise put on the latent.

    Returns:
        Spatial block path -> its attention of the last frame to frame 0; empty if the model has no such branch.
    """
    check_embedding(model, positive, "positive")
    seen: dict[str, SiteAttention] = {}

    def record(site: str, q: Tensor, k: Tensor, heads: int, options: dict) -> None:
        if site in seen:  # other nodes may run the network again, perturbed
            return
        group = list(options.get("cond_or_uncond", (0,))).index(0)
        seen[site] = SiteAttention(q[group, -1].float().cpu(), k[group].float().cpu(), heads,
                                   tuple(options["activations_shape"][-2:]))

    watched = model.clone()
    watched.model_options["transformer_options"][keys.RECORD] = record

    def once(model_k, x, sigmas, extra_args=None, callback=None, disable=None):
        model_k(x, sigmas[:1].expand(len(x)), **(extra_args or {}))
        return x

    noise = comfy.sample.prepare_noise(latent, seed)
    comfy.sample.sample_custom(watched, noise, 1.0, comfy.samplers.KSAMPLER(once), torch.tensor([sigma, 0.0]), positive,
                               positive, latent, disable_pbar=True, seed=seed)
    return seen
