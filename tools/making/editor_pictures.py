"""Photograph the three editors at work in a real page, for the first page of the documentation.

    <ComfyUI's python> tools/making/editor_pictures.py --host COMFYUI [--keep FOLDER]

Writes docs/images/editors.jpg: on the example's photo a sketch, drags and a moved part, drawn with the mouse. Needs what
`python dev.py test` sets up for the browser: playwright on PYTHONPATH (`.host/overlay-...`) and FRAMEPAINTER_CHROME.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools")]
import pack as tools_pack  # noqa: E402
from hosting.server import PlainHost, Server  # noqa: E402

TARGET = ROOT / "docs" / "images" / "editors.jpg"
VIEW, SMALL, GAP, QUALITY = (1280, 720), (637, 358), 6, 82  # pixels of the page and of the lower pictures; between them; JPEG
# Places on workflows/inputs/picture.jpg, 600 x 400: a spoon beside the cup and where it should lie.
SPOON = [(391, 207), (378, 237), (346, 248), (324, 285), (334, 319), (365, 331), (396, 319), (410, 286), (401, 252), (389, 236),
         (398, 209)]
MOVE = (128, 22)
DRAGS = [((366, 252), (518, 262)), ((340, 287), (484, 309)), ((394, 287), (550, 306)), ((366, 318), (522, 352))]


def heart(x: float, y: float, size: float) -> list[tuple[float, float]]:
    def height(t: float) -> float:
        return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)

    return [(x + size * 16 * math.sin(t) ** 3, y - size * height(t)) for t in (2 * math.pi * n / 40 for n in range(41))]


def spoon(x: float, y: float) -> list[list[tuple[float, float]]]:
    bowl = [(x + 35 * math.sin(t), y - 42 * math.cos(t)) for t in (2 * math.pi * n / 32 for n in range(33))]
    handle = [(x - 9, y - 40), (x - 20, y - 120), (x - 30, y - 205), (x - 22, y - 222), (x - 12, y - 208), (x - 3, y - 120),
              (x + 7, y - 41)]
    return [bowl, handle]


def sketch(rig: Any) -> None:
    for line in (heart(287, 146, 2.2), *spoon(520, 310)):
        rig.drag(*line, steps=2)


def drag(rig: Any) -> None:
    for start, end in DRAGS:
        rig.drag(start, end)


def coarse(rig: Any) -> None:
    rig.drag(*SPOON, SPOON[0], steps=2)
    rig.press("g")
    x, y = 366, 287
    rig.drag((x, y), (x + MOVE[0], y + MOVE[1]))


WORK: dict[str, Callable[[Any], None]] = {"sketch": sketch, "drag": drag, "coarse": coarse}


def photographs(url: str, folder: Path) -> list[Path]:
    """One picture an editor, in the order of WORK."""
    browser, editors = (importlib.import_module(f"framepainter_tests.{name}") for name in ("browser", "editors"))
    with browser.canvas_page(url) as canvas:
        canvas.page.set_viewport_size(dict(zip(("width", "height"), VIEW, strict=True)))
        rig = editors.Editors(canvas)
        for kind, work in WORK.items():
            rig.build(kind)
            rig.open(kind)
            work(rig)
            canvas.page.mouse.move(VIEW[0] // 2, VIEW[1] - 12)  # so that no brush is shown
            canvas.page.wait_for_timeout(400)
            canvas.page.screenshot(path=folder / f"{kind}.png")
            rig.close()
    return [folder / f"{kind}.png" for kind in WORK]


def sheet(paths: list[Path]) -> None:
    """The first one large, the others below it side by side."""
    from PIL import Image

    first, *others = (Image.open(path).convert("RGB") for path in paths)
    out = Image.new("RGB", (VIEW[0], VIEW[1] + GAP + SMALL[1]), (255, 255, 255))
    out.paste(first, (0, 0))
    for n, picture in enumerate(others):
        out.paste(picture.resize(SMALL, Image.Resampling.LANCZOS), (n * (SMALL[0] + GAP), VIEW[1] + GAP))
    out.save(TARGET, quality=QUALITY, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--keep", type=Path, help="also leave the single pictures there")
    options = parser.parse_args()
    tools_pack.package("framepainter_tests", ROOT / "tests" / "support")
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        (base / "input").mkdir()
        shutil.copy(ROOT / "workflows" / "inputs" / "picture.jpg", base / "input" / "framepainter_picture.jpg")
        with Server(PlainHost(options.host.resolve(), Path(sys.executable)), ROOT, base, cpu=True) as server:
            sheet(photographs(server.url, options.keep or base))


if __name__ == "__main__":
    main()
