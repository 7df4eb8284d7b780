"""Motion LoRA's objective (I2VEdit, section 4.1, and the released training code): one clip, all frames at one noise level.

Legend: B clips (1 in the published training), T frames, h w latent size. All randomness is drawn on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..framepainter.objective import Network

SIGMA_DATA = 0.5
SIGMA_MIN, SIGMA_MAX = 0.002, 700.0
RESOLUTIONS = (32, 64)  # between whose noise schedules the draws go over
AUGMENTATION = 0.02     # deviation of the noise on the image latent
# fps - 1, motion bucket, augmentation as the network is told. The released training code has the last two exchanged.
NUMBERS = {"release": (6.0, 0.02, 127.0), "corrected": (6.0, 127.0, 0.02)}


@dataclass(frozen=True)
class MotionClip:
    """A clip as it is trained on.

    latents: (T, 4, h, w) in the network's scale.  image: (4, h, w) first frame, VAE space.  embedding: (1, D) its image
    embedding.
    """

    latents: Tensor
    image: Tensor
    embedding: Tensor


def noise_level(u: Tensor) -> Tensor:
    """Uniform draws in [0, 1] -> sigma, 700 at 0 and 0.002 at 1.

    Cosine schedules in log SNR, shifted for two resolutions and interpolated between them (Hoogeboom et al. 2023).
    """
    u = u.double()

    def cosine(resolution: int) -> Tensor:
        shift = 2 * math.log(resolution / 64)
        low, high = (-2 * math.log(s / SIGMA_DATA) - shift for s in (SIGMA_MAX, SIGMA_MIN))
        a, b = math.atan(math.exp(-low / 2)), math.atan(math.exp(-high / 2))
        return -2 * torch.log(torch.tan(a + u * (b - a))) + shift

    coarse, fine = (cosine(r) for r in RESOLUTIONS)
    return (SIGMA_DATA * torch.exp(-((1 - u) * coarse + u * fine) / 2)).float()


def motion_loss(network: Network, clip: MotionClip, sigma: Tensor, noise: Tensor, image_noise: Tensor,
                numbers: Tensor) -> Tensor:
    """Weighted squared error of the clean latents, (1 + sigma^2) / sigma^2 as EDM has it for v-prediction.

    Args:
        sigma: (B,).  noise: (B, T, 4, h, w).  image_noise: (B, 4, h, w), standard normal.  numbers: (B, 3).
    """
    s = sigma.reshape(-1, 1, 1, 1, 1)
    root = (s**2 + 1).sqrt()
    noisy = clip.latents[None] + s * noise
    v, _ = network(noisy / root, 0.25 * sigma.log(), clip.image[None] + AUGMENTATION * image_noise,
                   clip.embedding[None].expand(len(sigma), -1, -1), None, False, None, numbers)
    clean = noisy / (s**2 + 1) - v * s / root
    return ((1 + s**2) / s**2 * (clean - clip.latents[None]).pow(2)).mean()


def batch_loss(network: Network, clip: MotionClip, order: str = "release", batch: int = 1,
               device: torch.device | str = "cpu", before: Callable[[float], None] | None = None,
               ) -> Callable[[int, int, torch.Generator], Mapping[str, Tensor]]:
    """How the training loop asks for a loss.

    Args:
        clip: on the device.  order: of the three numbers, see NUMBERS.
        before: called with the noise level before the network is; then batch must be 1.
    """
    numbers = torch.tensor([NUMBERS[order]] * batch, device=device)
    devices = [device] if torch.device(device).type == "cuda" else []

    def loss(step: int, micro: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        sigma = noise_level(torch.rand(batch, generator=generator))
        noise = torch.randn((batch, *clip.latents.shape), generator=generator)
        image_noise = torch.randn((batch, *clip.image.shape), generator=generator)
        if before is not None:
            before(float(sigma))
        seed = int(torch.randint(2**62, (), generator=generator))
        # Dropout draws from the global generators; checkpointing restores theirs when it computes a block again.
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            value = motion_loss(network, clip, *(x.to(device) for x in (sigma, noise, image_noise)), numbers)
        return {"loss": value}

    return loss
