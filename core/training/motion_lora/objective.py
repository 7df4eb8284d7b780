"""Motion LoRA's objective (I2VEdit, section 4.1, and the released training code): one clip, all frames at one noise level.

Legend: B clips (1 in the published training), T frames, h w latent size. All randomness is drawn on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ...edm import SIGMA_MAX, SIGMA_MIN, add_noise, broadcast, denoised_from_v, loss_weight
from ...keeping.paste import latent_cells
from ...randomness import seeded
from ..network import Network, NetworkInput

SNR_ONE = 0.5           # the noise level that the schedule counts as a signal-to-noise ratio of 1
RESOLUTIONS = (32, 64)  # between whose noise schedules the draws go over
AUGMENTATION = 0.02     # deviation of the noise on the image latent
LOOSE = 1               # latent cells around a mask that count as in it
# fps - 1, motion bucket, augmentation as the network is told. The released training code has the last two exchanged.
MICRO_CONDS = {"release": (6.0, 0.02, 127.0), "corrected": (6.0, 127.0, 0.02)}


@dataclass(frozen=True)
class MotionClip:
    """A clip as it is trained on.

    latents: (T, 4, h, w) in the network's scale.  image: (4, h, w) first frame, VAE space.  embedding: (1, D) its image
    embedding.  weights: (T or 1, 1, h, w) of the loss; None weights all alike.
    """

    latents: Tensor
    image: Tensor
    embedding: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device) -> MotionClip:
        return MotionClip(*(None if t is None else t.to(device) for t in (self.latents, self.image, self.embedding, self.weights)))


def weights_outside(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks (T, H, W) of what should not be learned -> (T, 1, h, w) loss weights: 0 where a latent cell or one beside it is
    touched, 1 elsewhere.

    The neighbours count as touched since a cell's surroundings show what lies in it (LoRA-Edit, arXiv 2506.10082, finds loose boxes
    better than tight ones; on the small model that made no difference, see docs/paint_and_propagate.md).

    Raises:
        ValueError: nothing is left.
    """
    touched = max_pool2d(latent_cells(masks, height, width), 2 * LOOSE + 1, 1, LOOSE)
    if bool(touched.all()):
        raise ValueError("'change_mask' covers all frames wholly, so there is nothing left to learn from. Use a smaller mask, or "
                         "none.")
    return 1 - touched


def noise_level(u: Tensor) -> Tensor:
    """Uniform draws in [0, 1] -> sigma, 700 at 0 and 0.002 at 1.

    Cosine schedules in log SNR, shifted for two resolutions and interpolated between them (Hoogeboom et al. 2023).
    """
    u = u.double()

    def cosine(resolution: int) -> Tensor:
        shift = 2 * math.log(resolution / 64)
        low, high = (-2 * math.log(s / SNR_ONE) - shift for s in (SIGMA_MAX, SIGMA_MIN))
        a, b = math.atan(math.exp(-low / 2)), math.atan(math.exp(-high / 2))
        return -2 * torch.log(torch.tan(a + u * (b - a))) + shift

    coarse, fine = (cosine(r) for r in RESOLUTIONS)
    return (SNR_ONE * torch.exp(-((1 - u) * coarse + u * fine) / 2)).float()


def motion_loss(network: Network, clip: MotionClip, sigma: Tensor, noise: Tensor, image_noise: Tensor,
                micro_conds: Tensor) -> Tensor:
    """Weighted squared error of the clean latents, see `edm.loss_weight`; with the clip's own weights their weighted mean.

    Args:
        sigma: (B,).  noise: (B, T, 4, h, w).  image_noise: (B, 4, h, w), standard normal.  micro_conds: (B, 3).
    """
    latents = clip.latents[None]
    s = broadcast(sigma, noise)
    noised = add_noise(latents, noise, sigma)
    v = network(NetworkInput(noised.x, noised.t, clip.image[None] + AUGMENTATION * image_noise,
                             clip.embedding[None].expand(len(sigma), -1, -1), micro_conds=micro_conds)).v
    clean = denoised_from_v(latents + s * noise, v, s)
    error = loss_weight(s) * (clean - latents).pow(2)
    if clip.weights is None:
        return error.mean()
    return (error * clip.weights).mean() / clip.weights.mean()


def batch_loss(network: Network, clip: MotionClip, order: str = "release", batch: int = 1,
               device: torch.device | str = "cpu", before: Callable[[float], None] | None = None,
               ) -> Callable[[int, int, torch.Generator], Mapping[str, Tensor]]:
    """How the training loop asks for a loss.

    Args:
        clip: on the device.  order: of the micro-conditionings, see MICRO_CONDS.
        before: called with the noise level before the network is; then batch must be 1.
    """
    micro_conds = torch.tensor([MICRO_CONDS[order]] * batch, device=device)

    def loss(step: int, micro: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        sigma = noise_level(torch.rand(batch, generator=generator))
        noise = torch.randn((batch, *clip.latents.shape), generator=generator)
        image_noise = torch.randn((batch, *clip.image.shape), generator=generator)
        if before is not None:
            before(float(sigma))
        seed = int(torch.randint(2**62, (), generator=generator))
        # Dropout draws from the global generators; checkpointing restores theirs when it computes a block again.
        with seeded(seed, device):
            value = motion_loss(network, clip, *(x.to(device) for x in (sigma, noise, image_noise)), micro_conds)
        return {"loss": value}

    return loss
