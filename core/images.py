"""Pictures and masks as other nodes give them, pixels in front of the image encoder, and sizes that the network accepts.

Legend: B batch, H W pixels. Values in [0, 1] unless said otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def as_pictures(images: Tensor, name: str, alpha: bool = False, mend: bool = True) -> tuple[Tensor, int]:
    """A batch of pictures in the one form that the pack computes with.

    Args:
        images: (B, H, W, C) or (H, W, C) with 1 to 4 channels, or (1, B, H, W, C); floats in [0, 1], or uint8.
        name: of the input, for messages.
        alpha: keep a fourth channel.
        mend: replace values that are not finite by 0, and refuse what is empty.

    Returns:
        (B, H, W, 3), or 4 with alpha, float32, and how many of its values were not finite and are 0 now. What is in this form
        already comes back as it is.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    shape = list(images.shape)
    if images.ndim == 5 and len(images) == 1:
        images = images[0]
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
        raise ValueError(f"'{name}' is a tensor of shape {shape}; pictures are [batch, height, width, 3 channels]. "
                         "Connect an IMAGE.")
    if mend and 0 in images.shape:
        raise ValueError(f"'{name}' holds no picture (shape {shape}). Connect one that is not empty.")
    channels = images.shape[-1]
    if channels < 3:  # grey, or grey and alpha
        grey = images[..., :1].expand(*images.shape[:-1], 3)
        images = torch.cat([grey, images[..., 1:]], -1) if channels == 2 else grey
    images = images if alpha else images[..., :3]
    return _finite(_in_float32(images), mend)


def as_masks(masks: Tensor, name: str, mend: bool = True) -> tuple[Tensor, int]:
    """A batch of masks in the one form that the pack computes with.

    Args:
        masks: (B, H, W), (H, W), (B, 1, H, W) or (B, H, W, 1); floats in [0, 1], uint8 or bool.
        name: of the input, for messages.
        mend: replace values that are not finite by 0, and refuse what is empty.

    Returns:
        (B, H, W) float32, and how many of its values were not finite and are 0 now. What is in this form already comes back
        as it is.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    shape = list(masks.shape)
    if masks.ndim == 4 and 1 in (masks.shape[1], masks.shape[-1]):
        masks = masks.squeeze(1) if masks.shape[1] == 1 else masks.squeeze(-1)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3:
        raise ValueError(f"'{name}' is a tensor of shape {shape}; masks are [batch, height, width]. Connect a MASK, or put Convert "
                         "Image to Mask in between.")
    if mend and 0 in masks.shape:
        raise ValueError(f"'{name}' holds no mask (shape {shape}). Connect one that is not empty.")
    return _finite(_in_float32(masks), mend)


def _in_float32(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return values.float() / 255
    return values if values.dtype == torch.float32 else values.float()


def _finite(values: Tensor, mend: bool) -> tuple[Tensor, int]:
    """The values without NaN and infinities, looked at one picture at a time, and how many there were."""
    if not mend:
        return values, 0
    bad = [i for i, picture in enumerate(values) if not torch.isfinite(picture.sum())]
    count = sum(int((~torch.isfinite(values[i])).sum()) for i in bad)
    return (torch.nan_to_num(values, 0.0, 0.0, 0.0), count) if count else (values, 0)


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


def one_of(images: Tensor, index: int) -> Tensor:
    """Item `index` of a batch as a batch of one; a batch of one serves every index."""
    return images[index:index + 1] if len(images) > 1 else images
