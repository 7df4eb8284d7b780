"""One-shot tuning on a single video (Video-P2P, section 3.1, stage 1): noise prediction, and which parameters learn it.

Trained are the query projections of both attentions and the temporal attention, 7 tensors in each of 16 blocks; norm_temp stays
at weight 1, bias 0. Each step draws one timestep for the whole video and noise for each frame.

The release trains less than it states. It checkpoints every block with PyTorch's re-entrant kind, which drops the
gradients of a block none of whose inputs needs one, and that is so for the whole down path. 42 of the 112 tensors therefore get
no gradient and no weight decay; temporal attention there adds its random output bias and nothing else. "as_released" does this
on purpose, "all_trainable" trains what was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ...ddim import TRAIN_STEPS, add_noise
from ...models.inflated import is_trained
from .. import loop

What = Literal["all_trainable", "as_released"]
WHAT: tuple[What, ...] = ("all_trainable", "as_released")
DOWN = "input_blocks."

# (latents (F, 4, h, w), timestep, embedding (1, K, C)) -> predicted noise
Network = Callable[[Tensor, int, Tensor], Tensor]


def trains(name: str, what: What) -> bool:
    """Whether a parameter (ComfyUI name without prefix) is changed by a run."""
    return is_trained(name) and not (what == "as_released" and name.startswith(DOWN))


def tuning_loss(network: Network, latents: Tensor, text: Tensor, timestep: int, noise: Tensor) -> Tensor:
    """Mean squared error between the predicted and the true noise, over all elements.

    Args:
        latents: (F, 4, h, w) clean, in the network's scale.  text: (1, K, C).  noise: as the latents, standard normal.
    """
    return torch.nn.functional.mse_loss(network(add_noise(latents, noise, timestep), timestep, text).float(), noise.float())


def batch_loss(network: Network, latents: Tensor, text: Tensor) -> loop.BatchLoss:
    """How the training loop asks for a loss. Timestep and noise are drawn on the CPU."""
    def loss(step: int, micro: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        timestep = int(torch.randint(TRAIN_STEPS, (), generator=generator))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return {"loss": tuning_loss(network, latents, text, timestep, noise)}

    return loss
