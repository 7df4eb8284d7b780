"""From a batch of examples to the loss (FramePainter, section 3.1 equation 1 and section 3.2 equations 5 to 8).

Everything random is drawn on the CPU from the generator given, so that a step is the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention.correspondence import token_matches
from ...edm import add_noise
from ..examples import Examples
from ..network import AttentionQK, Network, NetworkInput
from .losses import MatchingLoss, diffusion_loss, matching_loss


@dataclass(frozen=True)
class Objective:
    """What is minimised: the mean of equation 1 over frames, plus matching_weight times the mean over all attentions."""

    matching: MatchingLoss | None = "cross entropy"     # None trains without the matching loss.
    matching_weight: float = 0.1
    frame_weights: tuple[float, ...] | None = None      # One a frame; (0, 1) is without source reconstruction.
    sigma_mean: float = 1.0                             # Mean of ln(sigma), which is normally distributed.
    sigma_std: float = 1.6
    drop_image: float = 0.1                             # Share of examples without picture and embedding, for guidance.
    drop_control: float = 0.1                           # Share of the others without the editing signal.


def draw_sigma(count: int, objective: Objective, generator: torch.Generator) -> Tensor:
    """(count,) log-normal noise levels, one from each of `count` equal shares of the distribution.

    The shares make a batch cover all noise levels, which takes most of the batch-to-batch variance out of the loss.
    """
    share = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    normal = math.sqrt(2) * torch.erfinv((2 * share - 1).clamp(-0.999999, 0.999999))
    return torch.exp(objective.sigma_mean + objective.sigma_std * normal)


def losses(network: Network, batch: Examples, objective: Objective, generator: torch.Generator) -> Mapping[str, Tensor]:
    """"loss" (to be differentiated) and its parts: "diffusion", and "matching" if there is one."""
    latents = batch.latents.float()
    count, device = len(batch), latents.device
    sigma = draw_sigma(count, objective, generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    kept_image = (torch.rand(count, generator=generator) >= objective.drop_image).to(device)
    # An unconditional pass has neither picture nor signal, so what drops the picture drops the signal too.
    kept_control = (torch.rand(count, generator=generator) >= objective.drop_control).to(device) & kept_image
    noised = add_noise(latents, noise, sigma)
    control = None if batch.control is None else (
        batch.control.float() / 255 * kept_control[:, None, None, None])
    drag = None if batch.drag is None else batch.drag.float().masked_fill(~kept_control[:, None, None], math.nan)
    match = objective.matching is not None and batch.flow is not None
    predicted = network(NetworkInput(
        noised.x, noised.t, batch.image.float() * kept_image[:, None, None, None],
        batch.embedding.float() * kept_image[:, None, None], control, drag, batch.micro_conds, match))
    out = {"diffusion": diffusion_loss(predicted.v, noised.v, objective.frame_weights)}
    out["loss"] = out["diffusion"]
    if match and predicted.attention:
        out["matching"] = _matching(predicted.attention, batch, objective.matching)
        out["loss"] = out["loss"] + objective.matching_weight * out["matching"]
    return out


def _matching(attention: list[AttentionQK], batch: Examples, kind: MatchingLoss) -> Tensor:
    """Mean over the attentions of their matching losses; the target is the last frame."""
    height, width = batch.latents.shape[-2:]
    known, parts = {}, []
    for site in attention:
        tokens = site.q.shape[2]
        if tokens not in known:  # the correspondence at this resolution
            scale = math.sqrt(height * width / tokens)
            known[tokens] = token_matches(batch.flow.float(), batch.visible, round(height / scale), round(width / scale))
        parts.append(matching_loss(kind, site.q[:, -1], site.k, site.heads, known[tokens]))
    return torch.stack(parts).mean()


def batch_loss(network: Network, examples: Examples, batch: int, objective: Objective,
               device: torch.device | str = "cpu") -> Callable[[int, int, torch.Generator], Mapping[str, Tensor]]:
    """A training loop's loss: every step draws a new batch from all examples, from the step's own generator."""
    def one(step: int, micro: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        rows = torch.randint(0, len(examples), (batch,), generator=generator)
        return losses(network, examples.take(rows, device), objective, generator)

    return one
