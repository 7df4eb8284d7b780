"""Training pairs from videos (FramePainter, section 3.3): candidate frames, motion, bounds, the three editing signals.

The paper takes frames more than a second apart whose flow is neither too small nor too large, prefers a static camera, and does not
state its bounds; the defaults here are ours. It uses SEA-RAFT for flow and CoTracker for tracks, which are not among ComfyUI's
packages; see core/flow/consistency.py for what is used instead.

Legend: H W pixels, K drags. Flow is (dx, dy) in pixels from each target pixel to its place in the source.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import WriteError
from ..callbacks import SILENT, Callbacks
from ..flow.consistency import FlowError
from ..names import as_bytes
from ..video.source import Clip, VideoError
from .motion import Measures, Motion, MotionSource, measure, still_length
from .sample import Sample, key_stem
from .shard_writer import ShardWriter
from .signals import HOLES, calmed, coarse_edit, drag_points, sketch_from_flow

ROUNDS = 4         # a video is asked for candidates this often, each time for as many as pairs are wanted
DRAWS = 200        # candidates for each pair that is wanted, at most
SAME = 1e-6        # seconds of rounding in times
# Number of the way in which frames are read and chosen; it goes up when the same videos and settings give other pairs, so that a
# set is not continued with pairs of another kind. 2: every pair equally likely, colours as the file states them, whole frames only.
METHOD = 2
LEAST_MOVING = 0.002  # of the picture, below which there is no motion to speak of


@dataclass(frozen=True)
class PairSettings:
    """Settings for making and choosing pairs. Motion is a share of the picture's diagonal."""

    width: int = 1024
    height: int = 576
    min_seconds: float = 1.0     # Between the two frames, more than this.
    max_seconds: float = 5.0     # And at most this.
    min_motion: float = 0.02     # Mean length of flow over what moves.
    max_motion: float = 0.25
    static_camera: float = 0.7   # Least share of the border band that stands still.
    min_visible: float = 0.4     # Least share of the picture with consistent flow; a cut has nearly none.
    pairs: int = 4               # Most pairs of a video.
    drags: int = 4               # K.
    holes: str = "black"         # What the coarse edit shows where nothing landed; black is what models here train on.
    seed: int = 0

    def checked(self) -> PairSettings:
        """The settings themselves.

        Raises:
            ValueError: they cannot be met; the text names them.
        """
        if min(self.width, self.height) < 16:
            raise ValueError(f"width x height is {self.width} x {self.height}; both need 16 pixels or more")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValueError(f"min_seconds is {self.min_seconds:g} and max_seconds {self.max_seconds:g}; no two frames are "
                             "that far apart. Raise max_seconds")
        if not 0 <= self.min_motion < self.max_motion:
            raise ValueError(f"min_motion is {self.min_motion:g} and max_motion {self.max_motion:g}; no motion lies between. "
                             "Raise max_motion")
        if self.holes not in HOLES:
            raise ValueError(f"holes is '{self.holes}'; choose one of {', '.join(HOLES)}")
        return self


def rejection(found: Measures, settings: PairSettings, sparse: bool = False) -> str | None:
    """The reason why a pair is dropped, or None.

    With `sparse`, motion is known at some points only and says little about the whole picture: neither the visible nor the moving
    share is tested.
    """
    if not sparse and found.visible < settings.min_visible:
        return "flow is not consistent"
    if found.static < settings.static_camera:
        return "camera moves"
    if found.motion < settings.min_motion or (not sparse and found.moving < LEAST_MOVING):
        return "too little motion"
    if found.motion > settings.max_motion:
        return "too much motion"
    return None


def make_sample(key: str, source: Tensor, target: Tensor, motion: Motion, settings: PairSettings, info: dict[str, Any],
                estimated: bool = True, importance: Tensor | None = None) -> Sample:
    """All signals of one pair.

    Args:
        source, target: (1, 3, H, W) in [0, 1].
        estimated: whether flow means nothing where it is not visible.
        importance: see coarse_edit.
    """
    generator = torch.Generator().manual_seed(seed_number(f"{settings.seed}/{key}"))
    moving = motion.flow.norm(dim=1) > still_length(*motion.flow.shape[-2:])
    points = drag_points(motion.flow, motion.visible & moving, settings.drags, generator)
    found = measure(motion.flow, motion.visible)
    shown = calmed(motion.flow, motion.visible) if estimated else motion.flow
    kept = points.valid[0]
    return Sample(key, source[0], target[0], sketch_from_flow(shown)[0],
                  coarse_edit(source, target, motion, settings.holes, importance)[0], motion.flow[0], motion.visible[0],
                  points.source[0][kept], points.target[0][kept],
                  {**info, "measures": {name: round(value, 6) for name, value in found._asdict().items()}})


def seed_number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(as_bytes(text)).digest()[:7], "big")


# ---- from clips ------------------------------------------------------------------------------------------------------


def candidates(times: Sequence[float], settings: PairSettings, name: str) -> Iterator[tuple[int, int]]:
    """(target, source) frame numbers, source first in time, without repetition; the same for the same seed and name.

    Every pair within the bounds is equally likely. All of them are returned, up to DRAWS for each wanted pair.
    """
    draw = random.Random(as_bytes(f"{settings.seed}/{name}"))  # noqa: S311
    when = np.asarray(times)
    numbers = np.arange(len(when))
    # Targets of each source: from the first that is far enough to the last that is near enough. Times ascend.
    low = np.maximum(np.searchsorted(when, when + settings.min_seconds + SAME, side="right"), numbers + 1)
    high = np.searchsorted(when, when + settings.max_seconds + SAME, side="right")
    ends = np.cumsum(np.maximum(high - low, 0))
    total = int(ends[-1]) if len(ends) else 0
    for at in draw.sample(range(total), min(total, DRAWS * settings.pairs)):
        first = int(np.searchsorted(ends, at, side="right"))
        yield int(high[first]) - (int(ends[first]) - at), first


def samples_of(clip: Clip, motion_of: MotionSource, settings: PairSettings, callbacks: Callbacks,
               rejected: Counter[str]) -> Iterator[Sample]:
    """Yield the pairs of one clip as they are found. Raises VideoError."""
    times = clip.times(callbacks.check_stop)
    drawn = candidates(times, settings, clip.name)
    stem, kept = key_stem(clip.name), 0
    size = settings.height, settings.width
    for _ in range(ROUNDS):
        chosen = [pair for _, pair in zip(range(settings.pairs - kept), drawn, strict=False)]
        if not chosen:
            break
        frames = clip.read(sorted({n for pair in chosen for n in pair}), *size, callbacks.check_stop)
        for pair in chosen:
            callbacks.check_stop()
            if any(n not in frames for n in pair):
                rejected["a frame cannot be decoded"] += 1
                continue
            target, source = (frames[n][None].float() / 255 for n in pair)
            motion = motion_of(target, source, pair)
            found = measure(motion.flow, motion.visible)
            reason = rejection(found, settings, motion_of.sparse)
            if reason:
                rejected[reason] += 1
                continue
            info = {"video": clip.name, "frames": [pair[1], pair[0]], "seconds": round(times[pair[0]] - times[pair[1]], 6),
                    "flow_source": motion_of.name}
            yield make_sample(f"{stem}_{kept:04d}", source, target, motion, settings, info,
                              not motion_of.sparse)
            kept += 1
    if not kept:
        if not rejected:
            raise VideoError(f"has no two frames more than {settings.min_seconds:g} s apart ({len(times)} frames)")
        if set(rejected) == {"a frame cannot be decoded"}:
            raise VideoError("cannot be decoded")


def build_from_clips(writer: ShardWriter, clips: Iterable[Clip], motion_of: MotionSource, settings: PairSettings,
                     callbacks: Callbacks = SILENT) -> None:
    """Add the pairs of clips to a dataset; clips that it already has are not opened again.

    A clip that cannot be used is named in the dataset's summary. A clip that gave nothing is tried again if it has changed since.

    Raises:
        WriteError: the disk is full, or may not be written to; the clips before are kept.
    """
    clips = list(clips)
    total = len(clips) * settings.pairs
    for number, clip in enumerate(clips):
        callbacks.progress(number * settings.pairs, total)
        callbacks.check_stop()
        known = writer.done.get(clip.name)
        if known is not None and (known["samples"] or known["stamp"] == clip.stamp):
            continue
        if known is not None:
            writer.forget(clip.name)
        rejected: Counter[str] = Counter()
        skipped = None
        try:
            found = samples_of(clip, motion_of, settings, callbacks, rejected)
            for i, sample in enumerate(found, 1):
                sample.info["settings"] = writer.hash
                writer.add(sample)
                callbacks.progress(number * settings.pairs + i, total)
        except WriteError:  # no fault of this video; the run goes on here when there is room
            writer.drop()
            raise
        except (VideoError, FlowError, OSError) as error:
            writer.drop()
            skipped = str(error)
        except BaseException:
            writer.drop()
            raise
        finally:
            clip.close()
        writer.finish_source(clip.name, skipped, rejected, clip.stamp)
    callbacks.progress(total, total)
    writer.finish()


def pair_settings(settings: PairSettings, motion_of: MotionSource) -> dict[str, Any]:
    """All settings that determine the contents of a dataset from videos."""
    return {"kind": "videos", "method": METHOD, **asdict(settings), "flow_source": motion_of.name}
