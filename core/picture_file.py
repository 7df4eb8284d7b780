"""Reading picture files from cameras, renderers and scanners: rotated as the file says, with 8 bits, 16 bits or floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LARGEST = 8192 * 8192  # pixels: a file of some kilobytes can claim billions
DEEP = ("I", "F")  # Pillow's modes of more than 8 bits; its convert() would cut them off at 255


def read_picture(path: Path, grey: bool = False) -> np.ndarray:
    """A picture as float32 in [0, 1].

    Transparent parts are composited over black, as a player or ComfyUI's preview shows them, because the colour hidden under them
    is not meant to be seen. A float picture is taken as 0 to 1 if it stays below that, else as 0 to 255 or 0 to 65535; NaN counts
    as 0.

    Args:
        grey: brightness alone.

    Returns:
        (H, W, 3), or (H, W) if grey.

    Raises:
        OSError, ValueError and others: Pillow's decoders raise almost anything on damaged files.
    """
    with Image.open(path) as file:
        if file.width * file.height > LARGEST:
            raise ValueError(f"{file.width} x {file.height} pixels, at most {LARGEST} are unpacked")
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith(DEEP):
            pixels = _deep(np.asarray(image), image.mode)
            return pixels if grey else np.repeat(pixels[..., None], 3, -1)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return np.asarray(image.convert("L" if grey else "RGB")).astype(np.float32) / 255


def _deep(values: np.ndarray, mode: str) -> np.ndarray:
    """One channel of 16 bit integers, or of floats of a range that the file does not tell."""
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if mode == "F":
        top = float(values.max(initial=0.0))
        scale = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0
    else:
        scale = 65535.0
    return (values / scale).clip(0.0, 1.0)
