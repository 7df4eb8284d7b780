"""The autoencoder of the small models: pixels to latents of an eighth of the size, like SVD's, in 0.7 M parameters.

ComfyUI's AutoencoderKL divides every layer into 32 normalisation groups, which at small widths erases a picture's colour.
This one has no normalisation at all. Legend: B pictures, H W pixels (multiples of 8), h = H/8, w = W/8.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWNSCALE = 8
MARK = "decoder.head.weight"  # a tensor name that tells these files from other autoencoders


class _Residual(nn.Module):
    def __init__(self, width: int, ops: Any, **kw: Any):
        super().__init__()
        self.conv1 = ops.Conv2d(width, width, 3, padding=1, **kw)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class _Half(nn.Module):
    """One direction: a stem, then `blocks` residual blocks a level, with a change of size between levels, and a head."""

    def __init__(self, inner: int, widths: tuple[int, ...], outer: int, blocks: int, up: bool, ops: Any, **kw: Any):
        super().__init__()
        self.up = up
        self.stem = ops.Conv2d(inner, widths[0], 3, padding=1, **kw)
        self.levels = nn.ModuleList([nn.ModuleList([_Residual(w, ops, **kw) for _ in range(blocks)]) for w in widths])
        self.steps = nn.ModuleList([
            ops.Conv2d(a, b, 3, padding=1, stride=1 if up else 2, **kw)
            for a, b in zip(widths, widths[1:], strict=False)])
        self.head = ops.Conv2d(widths[-1], outer, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, level in enumerate(self.levels):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x
                x = self.steps[number - 1](x)
            for block in level:
                x = block(x)
        return self.head(F.silu(x))


class SmallAutoencoder(nn.Module):
    """Encoder and decoder.

    Args:
        widths: channels at 1/2, 1/4 and 1/8 of the size.  latent: channels of the latents.  blocks: a level.
        operations, dtype, device: layer classes to build from (Conv2d), and of the weights.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 64), latent: int = 4, blocks: int = 1,
                 operations: Any = nn, dtype: torch.dtype | None = None, device: torch.device | str | None = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.encoder = _Half(12, widths, latent, blocks, False, operations, **kw)
        self.decoder = _Half(latent, widths[::-1], 12, 2 * blocks, True, operations, **kw)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 4, h, w)."""
        return self.encoder(F.pixel_unshuffle(pixels, 2))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, H, W), [-1, 1] or a little beyond."""
        return F.pixel_shuffle(self.decoder(latents), 2)


def from_shapes(shapes: dict[str, tuple[int, ...]], **kw: Any) -> SmallAutoencoder:
    """The network that tensors of these names and shapes belong to.

    Raises:
        KeyError: a name that every such file has is missing; its argument is that name.
    """
    widths = tuple(shapes[f"encoder.levels.{i}.0.conv1.weight"][0] for i in range(3))
    blocks = sum(n.startswith("encoder.levels.0.") and n.endswith("conv1.weight") for n in shapes)
    return SmallAutoencoder(widths, shapes["encoder.head.weight"][0], blocks, **kw)
