"""Draw the pack's icon and banner for the Comfy registry: python tools/making/drawings.py. Needs Pillow. The drawings are CC0.

Three frames of a film strip. A brush has painted the disc of the first one; in the others the paint follows the disc.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
FINE = 4  # drawn larger by this, then made smaller, so that edges are smooth
NIGHT, STRIP, HOLE = "#14171f", "#2a2f3d", "#0c0e13"
SKY, HILL, DISC, PAINT, WOOD, METAL = "#9fd3e6", "#3f7f68", "#f2efe6", "#ff7a3d", "#b98252", "#cfd5df"
HOLES = 6


def frame(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], share: float, painted: float) -> None:
    """One picture: a disc over hills, at `share` of the way from left to right, `painted` from 0 to 1."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    draw.rectangle(box, fill=SKY)
    x, y, r = left + width * (0.3 + 0.4 * share), top + height * (0.48 - 0.12 * share), height * 0.26
    draw.ellipse((x - r, y - r, x + r, y + r), fill=DISC)
    if painted:
        draw.pieslice((x - r, y - r, x + r, y + r), 90, 90 + 360 * painted, fill=PAINT)
    hills = ((0, 1), (0, 0.8), (0.3, 0.68), (0.62, 0.84), (1, 0.7), (1, 1))
    draw.polygon([(left + width * x, top + height * y) for x, y in hills], fill=HILL)


def strip(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], frames: int) -> None:
    """A film strip with holes above and below."""
    left, top, right, bottom = box
    height = bottom - top
    draw.rounded_rectangle(box, height * 0.06, fill=STRIP)
    count = HOLES * frames
    step = (right - left) / count
    for i in range(count):
        for y in (top + height * 0.05, bottom - height * 0.13):
            hole = (left + step * (i + 0.28), y, left + step * (i + 0.72), y + height * 0.08)
            draw.rounded_rectangle(hole, step * 0.1, fill=HOLE)
    wide = (right - left) / frames
    gap = height * 0.03
    for i in range(frames):
        frame(draw, (left + wide * i + gap, top + height * 0.18, left + wide * (i + 1) - gap, bottom - height * 0.18),
              i / max(1, frames - 1) if frames > 1 else 0.5, 1.0 if frames > 1 else 0.5)


def brush(draw: ImageDraw.ImageDraw, tip: tuple[float, float], size: float) -> None:
    """A brush whose tip touches a point, its handle up and to the right."""
    x, y = tip

    def line(a: float, b: float, width: float, colour: str) -> None:
        draw.line((x + size * a, y - size * a, x + size * b, y - size * b), fill=colour, width=round(size * width))

    near, far = size * (0.12 - 0.053), size * (0.12 + 0.053)  # the corners where the tip meets the bristles
    draw.polygon([(x, y), (x + near, y - far), (x + far, y - near)], fill=PAINT)
    line(0.11, 0.26, 0.15, PAINT)
    line(0.24, 0.42, 0.16, METAL)
    line(0.42, 0.98, 0.12, WOOD)


def picture(width: int, height: int, box: tuple[float, float, float, float], frames: int, tip: tuple[float, float], size: float
            ) -> Image.Image:
    image = Image.new("RGB", (width * FINE, height * FINE), NIGHT)
    draw = ImageDraw.Draw(image)
    strip(draw, tuple(v * FINE for v in box), frames)
    brush(draw, tuple(v * FINE for v in tip), size * FINE)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    picture(400, 400, (20, 60, 380, 340), 1, (196, 196), 176).save(IMAGES / "icon.png", optimize=True)
    picture(1260, 540, (60, 110, 1200, 430), 3, (188, 262), 230).save(IMAGES / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
