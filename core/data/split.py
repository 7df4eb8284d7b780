"""Splitting a dataset into a part to train on and a held-out part, by whole videos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..callbacks import SILENT, Callbacks
from ..names import as_bytes
from .sample import DatasetError, Sample
from .shard_writer import ShardWriter
from .shards import ShardIndex


def held_out_videos(videos: list[str], share: float, seed: int) -> set[str]:
    """Names of the videos to hold out: the number nearest to `share` of all, at least one and never all.

    The order is that of a hash of seed and name, so a video keeps its place when others are added.

    Raises:
        DatasetError: fewer than two videos, or a share that is not between 0 and 1.
    """
    names = sorted(set(videos), key=lambda name: hashlib.sha256(as_bytes(f"{seed}/{name}")).digest())
    if not 0 < share < 1:
        raise DatasetError(f"share is {share}; it must lie between 0 and 1. 0.1 holds a tenth of the videos out.")
    if len(names) < 2:
        raise DatasetError(f"the dataset is from {len(names)} video; pairs of one video must not be in both parts. Build it from "
                           "more videos.")
    return set(names[:min(max(1, round(share * len(names))), len(names) - 1)])


def video_of(sample: Sample) -> str:
    """The video that a pair is from; each procedural pair counts as its own video."""
    return str(sample.info.get("video", sample.key))


def split(index: ShardIndex, kept: Path, held_out: Path, share: float, seed: int = 0,
          callbacks: Callbacks = SILENT) -> tuple[ShardWriter, ShardWriter]:
    """Write both parts of a dataset; an interrupted split resumes.

    Args:
        kept, held_out: folders of the new datasets.  share: of the videos to hold out.

    Returns:
        The writers of both, finished.

    Raises:
        DatasetError: see `held_out_videos`; a folder holds another set.
    """
    videos: dict[str, list[int]] = {}
    for number, sample in enumerate(index):
        callbacks.check_stop()
        videos.setdefault(video_of(sample), []).append(number)
    chosen = held_out_videos(list(videos), share, seed)
    told = {"kind": "split", "of": index.folder.name, "share": share, "seed": seed, "videos": len(videos)}
    height, width = index[0].source.shape[-2:]
    writers = tuple(ShardWriter(folder, {**told, "part": part, "width": width, "height": height})
                    for folder, part in ((kept, "kept"), (held_out, "held out")))
    done = 0
    for name, numbers in videos.items():
        callbacks.check_stop()
        writer = writers[name in chosen]
        if name not in writer.done:
            for sample in _named(index, numbers):
                writer.add(sample)
            writer.finish_source(name)
        done += len(numbers)
        callbacks.progress(done, len(index))
    for writer in writers:
        writer.finish()
    return writers


def _named(index: ShardIndex, numbers: list[int]) -> Iterator[Sample]:
    """Samples by number, each key once: a damaged one has its neighbour in its place."""
    seen: set[str] = set()
    for number in numbers:
        sample = index[number]
        if sample.key not in seen:
            seen.add(sample.key)
            yield sample
