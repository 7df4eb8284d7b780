"""What people wait for around the network: strokes, feathered masks, drags, working sizes, reading video. Used by bench/run.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import PeakMemory, return_memory_at_once, seconds

SIDES = (3000, 4000)  # 12 megapixels
STROKES, POINTS = 800, 400
FRAMES = 24  # of 1920 x 1080


def strokes(load: Callable[[str], Any]) -> float:
    """Seconds to draw 800 freehand lines of 400 points, 3 200 pixels long each."""
    import numpy as np

    module, generator = load("core.signals.strokes"), np.random.default_rng(0)
    height, width = SIDES

    def stroke() -> Any:
        angle = generator.uniform(0, 2 * np.pi) + np.cumsum(generator.normal(0, 0.15, POINTS))
        points = generator.uniform((0, 0), (width, height)) + np.cumsum(8 * np.stack([np.cos(angle), np.sin(angle)], 1), 0)
        return module.Stroke("brush" if generator.uniform() < 0.8 else "eraser", 12.0, points)

    drawn = module.Strokes({"version": 1, "width": width, "height": height}, tuple(stroke() for _ in range(STROKES)), ())
    return seconds(lambda: module.draw_strokes(drawn, height, width))


def feather(load: Callable[[str], Any]) -> float:
    """Seconds for a feather of 64 pixels about two dots that are far apart."""
    import torch

    area = torch.zeros(SIDES, dtype=torch.bool)
    area[100, 100] = area[-100, -100] = True
    return seconds(lambda: load("core.keeping.distance").feathered(area, 64, True))


def drags(load: Callable[[str], Any]) -> float:
    """Seconds to place 2 000 drags on the tokens of the first level."""
    import torch

    points = torch.rand(1, 2000, 4, generator=torch.Generator().manual_seed(0))
    return seconds(lambda: load("core.attention.drag").token_drags(points, 72, 128))


def working(load: Callable[[str], Any]) -> dict[str, tuple[float, int]]:
    """Seconds and peak bytes of 24 frames of 1080p to the working size, and back."""
    import torch

    geometry = load("core.video.geometry")
    plan = geometry.fit(1080, 1920, (576, 1024))
    out = {}
    for name, size in (("to_working", (1080, 1920)), ("from_working", (576, 1024))):
        frames = torch.rand(FRAMES, *size, 3)
        return_memory_at_once(True)
        with PeakMemory() as peak:
            taken = seconds(lambda name=name, frames=frames: getattr(geometry, name)(frames, plan))
        return_memory_at_once(False)
        out[name] = taken, peak.bytes
    return out


def reading(load: Callable[[str], Any]) -> tuple[float, float, float]:
    """Of 1080p, for each frame beyond the first: seconds of the processor here, and in the decoder's process, which works
    meanwhile; and the peak of memory here in parts of the result."""
    import os

    import av
    import numpy as np

    def used() -> np.ndarray:
        found = os.times()  # of the decoder once it has ended, as it does with the reading
        return np.array((found.user + found.system, found.children_user + found.children_system))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        ground = np.add.outer(np.arange(1080), np.arange(1920))[..., None] // np.array([4, 7, 9])
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", 24, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
            for i in range(2 * FRAMES):
                picture = np.roll(ground, 8 * i, 1).astype(np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
        read = load("core.video.reading").read
        begun = used()
        read(path, end=1 / 24)
        started = used()
        read(path)
        one, all_of_them = started - begun, used() - started
        with PeakMemory() as peak:
            frames = read(path).frames
    here, decoder = (all_of_them - one) / (2 * FRAMES - 1)
    return float(here), float(decoder), peak.bytes / (frames.numel() * 4)
