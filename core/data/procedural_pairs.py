"""Training pairs from made-up scenes, with exact motion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..callbacks import SILENT, Callbacks
from . import procedural
from .motion import Motion
from .pairs import PairSettings, make_sample, seed_number
from .sample import Sample
from .shard_writer import ShardWriter
from .signals import HOLES, IMPORTANCE

BACKGROUNDS = ("smooth", "textured")
SCENES = 16        # procedural scenes that are made, and counted as one source, together


# ---- from procedural scenes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProceduralSettings:
    """A set of procedural pairs; lengths in half the shorter side, see core/data/procedural.py."""

    count: int = 256
    width: int = 256
    height: int = 256
    sprites: tuple[int, int] = (1, 2)
    radius: tuple[float, float] = (0.25, 0.45)
    shift: tuple[float, float] = (0.2, 0.55)
    turn: float = 26.0
    growth: float = 0.15
    texture: int = 4
    background: str = "smooth"
    drags: int = 4
    holes: str = "black"
    seed: int = 0

    def checked(self) -> ProceduralSettings:
        """The settings themselves.

        Raises:
            ValueError: they cannot be met; the text names them.
        """
        if min(self.width, self.height) < 16 or self.count < 1:
            raise ValueError(f"width x height is {self.width} x {self.height} and count {self.count}; sides need at least 16 "
                             "pixels, and a dataset at least one pair")
        if not 1 <= self.sprites[0] <= self.sprites[1]:
            raise ValueError(f"sprites are {self.sprites[0]} to {self.sprites[1]}; give the fewest first, one or more")
        if self.background not in BACKGROUNDS or self.holes not in HOLES:
            raise ValueError(f"background is '{self.background}', holes '{self.holes}'; choose from {', '.join(BACKGROUNDS)} "
                             f"and {', '.join(HOLES)}")
        return self


def procedural_settings(settings: ProceduralSettings) -> dict[str, Any]:
    """All settings that determine the contents of a procedural dataset."""
    return {"kind": "procedural", **asdict(settings)}


def textured(scenes: procedural.Scenes, generator: torch.Generator) -> procedural.Scenes:
    """The same scenes over noise of three sizes."""
    background = scenes.background
    count, channels, height, width = background.shape
    for cell in (2, 4, 16):
        noise = torch.randn(count, channels, max(1, height // cell), max(1, width // cell), generator=generator)
        background = background + 0.08 * F.interpolate(noise, (height, width), mode="bicubic")
    return scenes._replace(background=background.clamp(0, 1))


def procedural_samples(settings: ProceduralSettings, chunk: int) -> list[Sample]:
    """The pairs of one chunk, with exact motion. Frame 0 is the source."""
    count = min(SCENES, settings.count - chunk * SCENES)
    generator = torch.Generator().manual_seed(seed_number(f"{settings.seed}/procedural/{chunk}"))
    drawn = procedural.SceneSettings(settings.height, settings.width, settings.sprites, settings.radius, settings.shift,
                                     settings.turn, settings.growth, settings.texture)
    scenes = procedural.draw_scenes(SCENES, 2, drawn, generator)
    if settings.background == "textured":
        scenes = textured(scenes, generator)
    scenes = procedural.Scenes(*(part[:count] for part in scenes))
    frames = procedural.render(scenes)
    truth, forward = procedural.correspondence(scenes, 0, 1), procedural.correspondence(scenes, 1, 0)
    signals = PairSettings(settings.width, settings.height, drags=settings.drags, holes=settings.holes, seed=settings.seed)
    out = []
    for i in range(count):
        one = slice(i, i + 1)
        motion = Motion(truth.flow[one], forward.flow[one], truth.visible[one])
        number = chunk * SCENES + i
        info = {"video": f"procedural {number}", "frames": [0, 1], "seconds": None, "flow_source": "exact"}
        out.append(make_sample(f"scene_{number:06d}", frames[one, 0], frames[one, 1], motion, signals, info, False,
                               IMPORTANCE * forward.owner[one, None].float()))
    return out


def build_procedural(writer: ShardWriter, settings: ProceduralSettings, callbacks: Callbacks = SILENT) -> None:
    """Write a set of procedural pairs."""
    for chunk in range(-(-settings.count // SCENES)):
        callbacks.progress(chunk * SCENES, settings.count)
        callbacks.check_stop()
        name = f"scenes {chunk:06d}"
        if name in writer.done:
            continue
        for sample in procedural_samples(settings, chunk):
            sample.info["settings"] = writer.hash
            writer.add(sample)
        writer.finish_source(name)
    callbacks.progress(settings.count, settings.count)
    writer.finish()
