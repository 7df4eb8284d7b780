"""Turning any drawing into a control frame: white strokes on black.

The released encoder was trained on light strokes on black; any other colour was silently ignored by the authors' demo.
Legend: B batch, H W pixels. Values in [0, 1].
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Background = Literal["auto", "plain", "picture"]

# A pixel that differs from the ground by less than the first number in every channel is ground, by the second or more it
# is stroke, between them the stroke's soft edge. On a plain ground JPEG leaves about 0.05. Over a picture the two JPEG
# decoders that hosts use disagree by up to 0.15 at single pixels.
PLAIN, OVER_PICTURE = (0.06, 0.25), (0.18, 0.36)
# Fewer covered pixels than this share, and there is no drawing. One pixel in a 1000 x 1000 picture is 1e-6.
EMPTY_COVERAGE = 1e-6


class Sketch(NamedTuple):
    """control: (B, H, W, 3) white strokes on black; coverage: share of the area that is stroke, one number a picture."""

    control: Tensor
    coverage: tuple[float, ...]

    @property
    def empty(self) -> tuple[bool, ...]:
        return tuple(c <= EMPTY_COVERAGE for c in self.coverage)


def _contrast_to_strokes(distance: Tensor, limits: tuple[float, float]) -> Tensor:
    """(B, H, W) colour distance to the ground -> stroke opacity.

    A faint drawing (strongest contrast under the upper limit) is stretched to full opacity; noise under the lower is not.
    """
    floor, full = limits
    top = distance.amax((1, 2), keepdim=True).clamp((floor + full) / 2, full)
    return ((distance - floor) / (top - floor)).clamp(0.0, 1.0)


def background_colour(image: Tensor) -> Tensor:
    """The most frequent colour of each picture, (B, H, W, 3) -> (B, 3); colours are told apart in 32 steps a channel."""
    out = []
    for picture in image.reshape(image.shape[0], -1, 3):
        bins = (picture * 31.0).round().long().clamp(0, 31)
        code = bins[:, 0] * 1024 + bins[:, 1] * 32 + bins[:, 2]
        common = torch.bincount(code, minlength=32768).argmax()
        out.append(picture[code == common].mean(0))
    return torch.stack(out)


def strokes_from_colour(image: Tensor, picture: Tensor | None, background: Background) -> Tensor:
    """Find strokes of any colour in (B, H, W, 3) -> opacity (B, H, W).

    Args:
        image: the drawing, on a plain ground or over the picture itself.
        picture: (B, H, W, 3) what was drawn over, or None.
        background: "plain" takes the most frequent colour as the ground; "picture" takes the difference from the
            picture; "auto" takes the picture if most of the drawing's pixels equal it, else the plain ground.
    """
    plain = (image - background_colour(image)[:, None, None, :]).abs().amax(-1)
    if picture is None or background == "plain":
        return _contrast_to_strokes(plain, PLAIN)
    difference = (image - picture).abs().amax(-1)
    if background == "picture":
        return _contrast_to_strokes(difference, OVER_PICTURE)
    differs = difference.flatten(1).gt(OVER_PICTURE[0]).float().mean(1)  # (B,) share of the area
    stands_out = plain.flatten(1).gt(PLAIN[0]).float().mean(1)
    # A picture that is itself mostly plain satisfies both readings; then the smaller drawing is the right one.
    over = (differs < 0.5) & (differs <= stands_out)
    return torch.where(over[:, None, None], _contrast_to_strokes(difference, OVER_PICTURE),
                       _contrast_to_strokes(plain, PLAIN))


def strokes_from_mask(mask: Tensor) -> Tensor:
    """A MASK (B, H, W) as strokes. Strokes cover less than half of a drawing: a mask that covers more is inverted.

    ComfyUI's Load Image gives 1 - alpha as the mask, so a drawing on a transparent ground arrives inverted.
    """
    covered = mask.flatten(1).mean(1)
    full = mask.flatten(1).amin(1) > 0.5  # a filled mask is empty alpha (no drawing at all), not one big stroke
    flip = (covered > 0.5) | full
    return torch.where(flip[:, None, None], 1.0 - mask, mask)


def make_sketch(image: Tensor | None, mask: Tensor | None, picture: Tensor | None = None,
                background: Background = "auto", strokes: Tensor | None = None) -> Sketch:
    """Turn a drawing into FramePainter's control frame.

    Args:
        image: (B, H, W, 3 or 4) a drawing in any colour on any ground; a fourth channel is opacity.
        mask: (B, H, W) strokes, by themselves or in addition (the stronger wins).
        picture: (B, H, W, 3) the picture drawn over, same size, if known.
        background: see `strokes_from_colour`.
        strokes: (B, H, W) opacity of strokes drawn in the editor, taken as they are. Of all that is given the strongest
            wins.

    Raises:
        ValueError: neither image nor mask nor strokes.
    """
    drawn = [] if strokes is None else [strokes]
    if image is not None:
        alpha = image[..., 3] if image.shape[-1] == 4 else None
        if alpha is not None and float(alpha.min()) < 0.5:
            drawn.append(strokes_from_mask(alpha))
        else:
            drawn.append(strokes_from_colour(image[..., :3].float(), picture, background))
    if mask is not None:
        drawn.append(strokes_from_mask(mask.float()))
    if not drawn:
        raise ValueError("a sketch needs an image or a mask, or strokes")
    strokes = reduce(torch.maximum, drawn)
    coverage = tuple(float(c) for c in strokes.gt(0.5).float().flatten(1).mean(1))
    return Sketch(strokes[..., None].expand(*strokes.shape, 3).contiguous(), coverage)
