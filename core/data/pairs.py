"""Training pairs from videos (FramePainter, section 3.3): candidate frames, motion, bounds, the three editing signals.

The paper takes frames more than a second apart whose flow is neither too small nor too large, prefers a static camera, and
does not state its bounds; the defaults here are ours. Its flow is SEA-RAFT's and its tracks CoTracker's, both not among
ComfyUI's packages; see core/data/flow.py for what stands in.

Legend: H W pixels, K drags. Flow is (dx, dy) in pixels from each target pixel to its place in the source.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..signals.splat import softmax_splat
from . import procedural
from .flow import FlowError, FlowFunction, Tracks, chain, consistent, flow_from_points, inverse
from .shards import Sample, ShardWriter, key_stem
from .signals import drag_points, sketch_from_flow
from .videos import Clip, VideoError

HOLES = ("black", "source")
BACKGROUNDS = ("smooth", "textured")
ROUNDS = 4         # a video is asked for candidates this often, each time for as many as pairs are wanted
BORDER = 0.1       # of each side: the band in which the camera shows
STILL = 0.002      # of the diagonal, at least half a pixel: shorter flow counts as still
AGREE = 0.0015     # of the diagonal, at least 0.7 pixels: flow and flow back may miss each other by this
LEAST_MOVING = 0.002  # of the picture, below which there is no motion to speak of
IMPORTANCE = 20.0  # of splatted pixels, by colour error in [0, 1] and by inconsistency
SCENES = 16        # procedural scenes that are made, and counted as one source, together


@dataclass(frozen=True)
class PairSettings:
    """What pairs are made and kept. Motion in parts of the picture's diagonal."""

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


class Motion(NamedTuple):
    """flow: (1, 2, H, W) target to source.  back: (1, 2, H, W) source to target.  visible: (1, H, W), where flow holds."""

    flow: Tensor
    back: Tensor
    visible: Tensor


class MotionSource(Protocol):
    """Tells the motion between two frames of a clip. `name` goes into the dataset's settings."""

    name: str
    sparse: bool  # known at some points only

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        """(1, 3, H, W) in [0, 1] each, and their numbers in the clip."""
        ...


def agree(flow: Tensor, back: Tensor) -> Tensor:
    """Where two flows agree, at any size of picture. (1, 2, H, W) twice -> (1, H, W)."""
    return consistent(flow, back, absolute=max(0.5, (AGREE * math.hypot(*flow.shape[-2:])) ** 2))


class Estimated:
    """Motion estimated from the pictures, both ways; visible is where the two agree."""

    sparse = False

    def __init__(self, name: str, flow: FlowFunction, device: torch.device | str = "cpu"):
        self.name, self.flow, self.device = name, flow, device

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        both = torch.cat([target, source]).to(self.device), torch.cat([source, target]).to(self.device)
        flow, back = self.flow(*both).float().cpu().split(1)
        if not (flow.isfinite().all() and back.isfinite().all()):
            raise FlowError(f"{self.name} gave flow that is not finite")
        return Motion(flow, back, agree(flow, back))


class GivenFlow:
    """Motion from flow between consecutive frames, (T - 1, 2, h, w), followed from frame to frame."""

    sparse = False

    def __init__(self, fields: Tensor, picture: tuple[int, int]):
        self.name, self.fields, self.picture = "given flow", fields, picture

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        last, first = numbers  # the target comes later in the clip
        size = target.shape[-2:]
        steps = torch.cat([crop_flow(f[None], self.picture, size) for f in self.fields[first:last]])
        back = chain(steps)
        flow = chain(torch.cat([inverse(steps[i:i + 1]) for i in reversed(range(len(steps)))]))
        return Motion(flow, back, agree(flow, back))


class GivenTracks:
    """Motion of tracked points, (T, N, 2); around each as far as `radius`, in parts of the diagonal."""

    sparse = True

    def __init__(self, tracks: Tracks, picture: tuple[int, int], radius: float = 0.02):
        self.name, self.tracks, self.picture, self.radius = "given tracks", tracks, picture, radius

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        height, width = target.shape[-2:]
        scale, left, top = crop_geometry(self.picture, (height, width))
        shown = self.tracks.visible[numbers[0]] & self.tracks.visible[numbers[1]]
        ends = [(self.tracks.path[n][shown] + 0.5) * torch.tensor(scale) - 0.5 - torch.tensor([left, top]) for n in numbers]
        radius = self.radius * math.hypot(height, width)
        flow, visible = flow_from_points(*ends, height, width, radius)
        back, _ = flow_from_points(ends[1], ends[0], height, width, radius)
        return Motion(flow, back, visible)


def crop_geometry(picture: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[float, float], int, int]:
    """What crop_to does to (h, w) pictures: scales of x and y, then pixels cut off left and above."""
    (h, w), (height, width) = picture, size
    scale = max(height / h, width / w)
    full = max(height, round(h * scale)), max(width, round(w * scale))
    return (full[1] / w, full[0] / h), (full[1] - width) // 2, (full[0] - height) // 2


def crop_flow(flow: Tensor, picture: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Flow (1, 2, h, w) at any size, of frames of size `picture`, as that of the cropped frames: (1, 2, H, W)."""
    (sx, sy), left, top = crop_geometry(picture, size)
    full = round(picture[0] * sy), round(picture[1] * sx)
    unit = flow.new_tensor([full[1] / flow.shape[-1], full[0] / flow.shape[-2]])[:, None, None]
    if flow.shape[-2:] != full:
        flow = F.interpolate(flow, full, mode="bilinear")
    return (flow * unit)[..., top:top + size[0], left:left + size[1]]


# ---- measures and signals --------------------------------------------------------------------------------------------


class Measures(NamedTuple):
    """Of one pair's motion.

    motion: mean length over what moves, in parts of the diagonal.  moving: its share of the picture.
    static: share of the border band that stands still.  visible: share of the picture with consistent flow.
    """

    motion: float
    moving: float
    static: float
    visible: float


def still_length(height: int, width: int) -> float:
    """Pixels up to which flow counts as still."""
    return max(0.5, STILL * math.hypot(height, width))


def measure(flow: Tensor, visible: Tensor) -> Measures:
    """Measures of (1, 2, H, W) and (1, H, W). Only visible pixels are looked at."""
    height, width = flow.shape[-2:]
    length, still = flow[0].norm(dim=0), still_length(height, width)
    seen = visible[0]
    moving = seen & (length > still)
    band = torch.ones_like(seen)
    rows, columns = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    band[rows:-rows, columns:-columns] = False
    band &= seen
    return Measures(
        motion=float(length[moving].mean()) / math.hypot(height, width) if moving.any() else 0.0,
        moving=float(moving.float().mean()),
        static=float((length <= still)[band].float().mean()) if band.any() else 1.0,
        visible=float(seen.float().mean()))


def rejection(found: Measures, settings: PairSettings, sparse: bool = False) -> str | None:
    """Why a pair is not kept, or None. Motion at some points only says little about the whole picture."""
    if not sparse and found.visible < settings.min_visible:
        return "flow is not consistent"
    if found.static < settings.static_camera:
        return "camera moves"
    if found.motion < settings.min_motion or (not sparse and found.moving < LEAST_MOVING):
        return "too little motion"
    if found.motion > settings.max_motion:
        return "too much motion"
    return None


def coarse_edit(source: Tensor, target: Tensor, motion: Motion, holes: str = "black",
                importance: Tensor | None = None) -> Tensor:
    """The source splatted to the target: (1, 3, H, W).

    Where pixels meet, those win whose colour fits the target and whose motion is consistent (after Niklaus and Liu 2020,
    equation 14).

    Args:
        holes: what shows where nothing landed.  importance: (1, 1, H, W) instead.
    """
    trusted = agree(motion.back, motion.flow)
    if importance is None:
        error = (procedural.warp(target, motion.back) - source).abs().mean(1, keepdim=True)
        importance = -IMPORTANCE * (error + (~trusted)[:, None].float())
    out = softmax_splat(source, motion.back, importance)
    # Pixels that the target hides point anywhere. Alone they would sprinkle what has come into view.
    outside = torch.full_like(motion.back, 4.0 * max(source.shape[-2:]))
    sure = softmax_splat(source[:, :1], torch.where(trusted[:, None], motion.back, outside)).cover > 0.5
    landed = (out.cover > 0) & (sure | motion.visible[:, None])
    return torch.where(landed, out.image, source if holes == "source" else torch.zeros_like(source))


def calmed(flow: Tensor, visible: Tensor) -> Tensor:
    """Flow whose invisible parts, where an estimate means nothing, go on with the slowest visible motion beside them.

    What a moving thing uncovers was behind it, and mostly stands still: still ground grows into the invisible parts first,
    the rest takes what is left around it. (1, 2, H, W), (1, H, W) -> (1, 2, H, W).
    """
    known, vectors = visible[:, None], flow
    if not bool(known.any()):
        return flow
    ground = known & (flow.norm(dim=1, keepdim=True) <= still_length(*flow.shape[-2:]))
    for seeds in (ground, None):
        while not bool(known.all()):
            grown, vectors = _grow(vectors, known if seeds is None else seeds, known)
            if torch.equal(grown, known):
                break
            seeds = None if seeds is None else seeds | (grown & ~known)
            known = grown
    windows = F.unfold(F.pad(vectors.movedim(1, 0), (2, 2, 2, 2), mode="replicate"), 5)  # (2, 25, H*W)
    return windows.median(1).values.reshape(flow.shape)  # single wrong vectors would be dots in a sketch


def _grow(vectors: Tensor, seeds: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Unknown pixels within two of a seed take the slowest such seed's vector."""
    rank = seeds / (1 + vectors.norm(dim=1, keepdim=True))
    best, index = F.max_pool2d(rank, 5, 1, 2, return_indices=True)
    found = vectors.flatten(2).gather(2, index.flatten(2).expand(-1, 2, -1)).reshape(vectors.shape)
    take = ~known & (best > 0)
    return known | take, torch.where(take, found, vectors)


def make_sample(key: str, source: Tensor, target: Tensor, motion: Motion, settings: PairSettings, info: dict[str, Any],
                estimated: bool = True, importance: Tensor | None = None) -> Sample:
    """All signals of one pair.

    Args:
        source, target: (1, 3, H, W) in [0, 1].
        estimated: whether flow means nothing where it is not visible.
        importance: see coarse_edit.
    """
    generator = torch.Generator().manual_seed(_number(f"{settings.seed}/{key}"))
    moving = motion.flow.norm(dim=1) > still_length(*motion.flow.shape[-2:])
    points = drag_points(motion.flow, motion.visible & moving, settings.drags, generator)
    found = measure(motion.flow, motion.visible)
    shown = calmed(motion.flow, motion.visible) if estimated else motion.flow
    kept = points.valid[0]
    return Sample(key, source[0], target[0], sketch_from_flow(shown)[0],
                  coarse_edit(source, target, motion, settings.holes, importance)[0], motion.flow[0], motion.visible[0],
                  points.source[0][kept], points.target[0][kept],
                  {**info, "measures": {name: round(value, 6) for name, value in found._asdict().items()}})


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


# ---- from clips ------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Where a build reports to. check: may raise to stop.  progress: told (pairs' worth of work done, all)."""

    check: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, count: None


def candidates(times: Sequence[float], settings: PairSettings, name: str) -> Iterator[tuple[int, int]]:
    """(target, source) frame numbers, source first in time, without repetition; the same for the same seed and name."""
    draw = random.Random(f"{settings.seed}/{name}")  # noqa: S311
    if len(times) < 2 or times[-1] - times[0] <= settings.min_seconds:
        return
    tried = set()
    for _ in range(200 * settings.pairs):
        first = draw.randrange(len(times) - 1)
        gap = draw.uniform(settings.min_seconds, settings.max_seconds)
        last = _nearest(times, first, gap)
        apart = times[last] - times[first]
        if settings.min_seconds + 1e-6 < apart <= settings.max_seconds + 1e-6 and (first, last) not in tried:
            tried.add((first, last))
            yield last, first


def _nearest(times: Sequence[float], first: int, gap: float) -> int:
    """The frame after `first` nearest to `gap` seconds later; times ascend."""
    at = bisect.bisect_left(times, times[first] + gap, first + 1)
    options = [i for i in (at - 1, at) if first < i < len(times)]
    return min(options, key=lambda i: abs(times[i] - times[first] - gap))


def samples_of(clip: Clip, motion_of: MotionSource, settings: PairSettings, watch: Watch,
               rejected: Counter[str]) -> Iterator[Sample]:
    """The pairs of one clip, as they are found. Raises VideoError."""
    times = clip.times(watch.check)
    drawn = candidates(times, settings, clip.name)
    stem, kept = key_stem(clip.name), 0
    size = settings.height, settings.width
    for _ in range(ROUNDS):
        chosen = [pair for _, pair in zip(range(settings.pairs - kept), drawn, strict=False)]
        if not chosen:
            break
        frames = clip.read(sorted({n for pair in chosen for n in pair}), *size, watch.check)
        for pair in chosen:
            watch.check()
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
                     watch: Watch | None = None) -> None:
    """Add the pairs of clips to a set; clips that it has already are not opened again.

    A clip that cannot be used is named in the set's summary. One that gave nothing and has changed since is tried again.
    """
    watch, clips = watch or Watch(), list(clips)
    total = len(clips) * settings.pairs
    for number, clip in enumerate(clips):
        watch.progress(number * settings.pairs, total)
        watch.check()
        known = writer.done.get(clip.name)
        if known is not None and (known["samples"] or known["stamp"] == clip.stamp):
            continue
        if known is not None:
            writer.forget(clip.name)
        rejected: Counter[str] = Counter()
        skipped = None
        try:
            found = samples_of(clip, motion_of, settings, watch, rejected)
            for i, sample in enumerate(found, 1):
                sample.info["settings"] = writer.hash
                writer.add(sample)
                watch.progress(number * settings.pairs + i, total)
        except (VideoError, FlowError, OSError) as error:
            writer.drop()
            skipped = str(error)
        except BaseException:
            writer.drop()
            raise
        writer.finish_source(clip.name, skipped, rejected, clip.stamp)
    watch.progress(total, total)
    writer.finish()


def pair_settings(settings: PairSettings, motion_of: MotionSource) -> dict[str, Any]:
    """What decides about the contents of a set from videos."""
    return {"kind": "videos", **asdict(settings), "flow_source": motion_of.name}


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
            raise ValueError(f"width x height is {self.width} x {self.height} and count {self.count}; sides need 16 pixels or "
                             "more, and a set one pair")
        if not 1 <= self.sprites[0] <= self.sprites[1]:
            raise ValueError(f"sprites are {self.sprites[0]} to {self.sprites[1]}; give the fewest first, one or more")
        if self.background not in BACKGROUNDS or self.holes not in HOLES:
            raise ValueError(f"background is '{self.background}', holes '{self.holes}'; choose from {', '.join(BACKGROUNDS)} "
                             f"and {', '.join(HOLES)}")
        return self


def procedural_settings(settings: ProceduralSettings) -> dict[str, Any]:
    """What decides about the contents of a procedural set."""
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
    generator = torch.Generator().manual_seed(_number(f"{settings.seed}/procedural/{chunk}"))
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


def build_procedural(writer: ShardWriter, settings: ProceduralSettings, watch: Watch | None = None) -> None:
    """Write a set of procedural pairs."""
    watch = watch or Watch()
    for chunk in range(-(-settings.count // SCENES)):
        watch.progress(chunk * SCENES, settings.count)
        watch.check()
        name = f"scenes {chunk:06d}"
        if name in writer.done:
            continue
        for sample in procedural_samples(settings, chunk):
            sample.info["settings"] = writer.hash
            writer.add(sample)
        writer.finish_source(name)
    watch.progress(settings.count, settings.count)
    writer.finish()


