"""Pixels in front of the image encoder, and sizes that the network accepts.

Legend: B batch, H W pixels. Values in [0, 1] unless said otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _blur_axis(x: Tensor, sigma: float, axis: int) -> Tensor:
    """Gaussian blur of (B, C, H, W) along one axis; kernel length int(max(4 sigma, 3)) raised to odd, reflect padding."""
    length = int(max(4.0 * sigma, 3)) | 1
    half = length // 2
    offsets = torch.arange(length, dtype=x.dtype, device=x.device) - half
    kernel = torch.exp(-(offsets**2) / (2.0 * sigma**2))
    kernel = kernel / kernel.sum()
    pad = (0, 0, half, half) if axis == 2 else (half, half, 0, 0)
    # Reflection needs more pixels than it adds; a one-pixel picture has nothing to reflect.
    mode = "reflect" if x.shape[axis] > half else "replicate"
    channels = x.shape[1]
    shape = (channels, 1, length, 1) if axis == 2 else (channels, 1, 1, length)
    weight = (kernel[:, None] if axis == 2 else kernel[None]).expand(shape)
    return F.conv2d(F.pad(x, pad, mode=mode), weight, groups=channels)


def clip_pixels(image: Tensor, size: int = 224, mean: tuple[float, ...] = CLIP_MEAN,
                std: tuple[float, ...] = CLIP_STD) -> Tensor:
    """The released FramePainter's pixel path into CLIP: the whole picture, no crop, no rounding.

    Blur against aliasing, one sigma an axis, max((side/size - 1)/2, 0.001); bicubic (a = -0.75), corners aligned;
    CLIP's mean and standard deviation. ComfyUI's own path crops and rounds to 8 bit, which moves the embedding.

    Args:
        image: (B, H, W, 3) in [0, 1].  size: the encoder's input side in pixels.

    Returns:
        (B, 3, size, size) float32.
    """
    x = image.movedim(-1, 1).float() * 2.0 - 1.0
    for axis in (2, 3):
        x = _blur_axis(x, max((x.shape[axis] / size - 1.0) / 2.0, 0.001), axis)
    x = F.interpolate(x, size=(size, size), mode="bicubic", align_corners=True)
    x = (x + 1.0) / 2.0
    shift = torch.tensor(mean, dtype=x.dtype, device=x.device)[:, None, None]
    scale = torch.tensor(std, dtype=x.dtype, device=x.device)[:, None, None]
    return (x - shift) / scale


def keep_aspect_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """The (height, width) nearest to a picture's aspect ratio at about `area` pixels, sides multiples of `multiple`.

    A strip so long that its short side would fall under `multiple` ends at area / multiple pixels, and is squeezed.
    """
    ratio = math.sqrt(area / (height * width))
    longest = max(multiple, area // multiple // multiple * multiple)
    return tuple(min(max(multiple, round(side * ratio / multiple) * multiple), longest) for side in (height, width))


def resize_control(control: Tensor, height: int, width: int) -> Tensor:
    """Resize control frames (B, 3, h, w) to (B, 3, height, width), antialiased, their brightest value kept.

    Averaging dims thin strokes when a large drawing shrinks; the encoder was trained on white ones.
    """
    if control.shape[-2:] == (height, width):
        return control
    out = F.interpolate(control, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    peak_in, peak_out = control.amax((1, 2, 3), keepdim=True), out.amax((1, 2, 3), keepdim=True)
    return (out * torch.where(peak_out > 1e-6, peak_in / peak_out.clamp_min(1e-6), 1.0)).clamp(0.0, 1.0)
