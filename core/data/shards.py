"""Training pairs in sharded tar files that the `webdataset` library reads too. Layout: docs/training_data.md.

Writing can be interrupted at any time. A journal tells how far the set reached after every source (a video, or a chunk of
scenes); the next run cuts the open shard back to there and goes on, and the finished set has the same bytes.

Legend: H W pixels, K drags.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMAT = 1
MEMBERS = ("source.png", "target.png", "sketch.png", "coarse.png", "flow.npz", "json")
PICTURES = MEMBERS[:4]
JOURNAL, SUMMARY = "journal.jsonl", "dataset.json"
BLOCK = tarfile.BLOCKSIZE
PARTIAL = ".partial"
SHOWN = 20  # names in a report
CHECKED_BELOW = 2 << 30  # bytes; larger sets are not read whole when they are opened


class DatasetError(ValueError):
    """A folder that is no usable dataset; the text says why."""


class Sample(NamedTuple):
    """A training pair.

    source, target, sketch, coarse: (3, H, W) in [0, 1].
    flow: (2, H, W) pixels (dx, dy) from each target pixel to its place in the source.  visible: (H, W) bool, where that
    holds.
    drag_source, drag_target: (K, 2) as (x, y) in pixels, 0 the middle of the first pixel.
    info: where the pair is from, and measures of its motion.
    """

    key: str
    source: Tensor
    target: Tensor
    sketch: Tensor
    coarse: Tensor
    flow: Tensor
    visible: Tensor
    drag_source: Tensor
    drag_target: Tensor
    info: dict[str, Any]


def key_stem(name: str) -> str:
    """A source's name as the beginning of its samples' keys: no dots, and no two names alike."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rsplit("/", 1)[-1].rsplit(".", 1)[0]).strip("-")[:40] or "clip"
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# ---- a sample as files -----------------------------------------------------------------------------------------------


def encode(sample: Sample) -> dict[str, bytes]:
    """The members of a sample, by the ends of their names."""
    out = {}
    for end, picture in zip(PICTURES, (sample.source, sample.target, sample.sketch, sample.coarse), strict=True):
        pixels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).contiguous()
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "PNG", compress_level=6)
        out[end] = file.getvalue()
    file = io.BytesIO()
    limit = float(torch.finfo(torch.float16).max)
    np.savez_compressed(file, flow=sample.flow.detach().cpu().float().clamp(-limit, limit).numpy().astype(np.float16),
                        visible=sample.visible.detach().cpu().numpy().astype(bool))
    out["flow.npz"] = file.getvalue()
    drags = {"drag_source": sample.drag_source.tolist(), "drag_target": sample.drag_target.tolist()}
    out["json"] = json.dumps({**sample.info, **drags}, sort_keys=True).encode()
    return out


def decode(key: str, members: Mapping[str, bytes]) -> Sample:
    """A sample from its members.

    Raises:
        ValueError: a member cannot be read, or sizes differ; the text names it.
    """
    pictures = []
    for end in PICTURES:
        try:
            with Image.open(io.BytesIO(members[end])) as image:
                image.load()
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise almost anything on damaged files
            raise ValueError(f"{end} cannot be read ({type(error).__name__}: {error})") from None
        pictures.append(torch.from_numpy(pixels.astype(np.float32) / 255).movedim(-1, 0).contiguous())
    try:
        with np.load(io.BytesIO(members["flow.npz"]), allow_pickle=False) as arrays:
            flow = torch.from_numpy(arrays["flow"].astype(np.float32))
            visible = torch.from_numpy(arrays["visible"].astype(bool))
    except Exception as error:  # zipfile's and zlib's errors have no common base
        raise ValueError(f"flow.npz cannot be read ({type(error).__name__}: {error})") from None
    try:
        info = json.loads(members["json"])
        drags = [torch.tensor(info.pop(n), dtype=torch.float32).reshape(-1, 2) for n in ("drag_source", "drag_target")]
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"json cannot be read ({type(error).__name__}: {error})") from None
    size = pictures[0].shape[-2:]
    if any(p.shape[-2:] != size for p in pictures) or flow.shape != (2, *size) or visible.shape != size:
        raise ValueError("its pictures and its flow differ in size")
    return Sample(key, *pictures, flow, visible, *drags, info)


# ---- writing ---------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Writes a dataset, source by source; opened on a folder that has a part of it, goes on there.

    Args:
        folder: made if it is not there.
        settings: all that decides about the contents; kept in dataset.json.
        per_shard: a shard is closed after the source that brings it to this many samples.

    Raises:
        DatasetError: the folder holds a set made with other settings, or other things.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], per_shard: int = 32):
        self.folder, self.per_shard = folder, per_shard
        self.settings = json.loads(json.dumps({**settings, "per_shard": per_shard}, sort_keys=True))
        self.hash = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        self._file: BinaryIO | None = None
        self._pending: list[Sample] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.entries = self._read_journal()
        self._restore()

    # -- what is there --

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        """Finished sources: name -> entry with `samples`, `skipped` (a reason or None), `rejected` and `stamp`."""
        return {e["source"]: e for e in self.entries}

    @property
    def samples(self) -> int:
        return sum(e["samples"] for e in self.entries)

    def _read_journal(self) -> list[dict[str, Any]]:
        path = self.folder / JOURNAL
        if not path.is_file():
            if any(self.folder.glob("shard-*.tar")):
                raise DatasetError(f"'{self.folder}' holds shards but no {JOURNAL}, so they cannot be gone on with. Choose "
                                   "another name, or delete the folder.")
            self._replace_journal([])
            return []
        entries = []
        for line in path.read_bytes().split(b"\n"):
            try:
                entries.append(json.loads(line))
            except ValueError:  # the last line may be cut off; nothing after it counts
                break
        if not entries or entries[0].get("hash") != self.hash:
            raise DatasetError(f"'{self.folder}' holds a dataset made with other settings ({self._differences(entries)}). "
                               "Choose another name, set them back, or delete the folder.")
        return entries[1:]

    def _differences(self, entries: list[dict[str, Any]]) -> str:
        old = entries[0].get("settings", {}) if entries else {}
        names = [n for n in sorted({*old, *self.settings}) if old.get(n) != self.settings.get(n)]
        return ", ".join(f"{n} was {old.get(n)}, now it is {self.settings.get(n)}" for n in names[:4]) or "unreadable journal"

    def _replace_journal(self, entries: list[dict[str, Any]]) -> None:
        lines = [{"format": FORMAT, "hash": self.hash, "settings": self.settings}, *entries]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        _replace(self.folder / JOURNAL, text.encode())

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.tar"

    def _partial(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.tar{PARTIAL}"

    def _restore(self) -> None:
        """Bring the folder to the state after the last finished source."""
        entries = self.entries
        while entries and not self._holds(entries[-1]):
            entries = entries[:-1]
        if entries != self.entries or not (self.folder / JOURNAL).read_bytes().endswith(b"\n"):
            self.entries = entries
            self._replace_journal(entries)
        last = entries[-1] if entries else {"shard": 0, "offset": 0, "in_shard": 0}
        self._shard, self._offset, self._in_shard = last["shard"], last["offset"], last["in_shard"]
        for path in self.folder.glob(f"*{PARTIAL}"):
            if path != self._partial(self._shard):
                path.unlink()
        if self._path(self._shard).is_file():
            self._partial(self._shard).unlink(missing_ok=True)
            self._next()
        elif self._in_shard >= self.per_shard:
            self._close_shard()

    def _holds(self, entry: dict[str, Any]) -> bool:
        """Whether the bytes that an entry speaks of are there."""
        if self._path(entry["shard"]).is_file() or not entry["offset"]:
            return True
        partial = self._partial(entry["shard"])
        return partial.is_file() and partial.stat().st_size >= entry["offset"]

    # -- adding --

    def add(self, sample: Sample) -> None:
        """Add a sample of the source at hand; it counts when that is finished."""
        if "." in sample.key or "/" in sample.key:
            raise ValueError(f"key '{sample.key}' has a dot or a slash in it")
        file = self._opened()
        for end, data in encode(sample).items():
            header = tarfile.TarInfo(f"{sample.key}.{end}")  # times and owners are zero: same content, same bytes
            header.size = len(data)
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            file.write(data + bytes(-len(data) % BLOCK))
        self._added += 1

    _added = 0

    def _opened(self) -> BinaryIO:
        if self._file is None:
            path = self._partial(self._shard)
            self._file = path.open("r+b" if path.is_file() else "w+b")
            self._file.truncate(self._offset)
            self._file.seek(self._offset)
        return self._file

    def drop(self) -> None:
        """Forget the samples of the source at hand, which failed."""
        self._added = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish_source(self, name: str, skipped: str | None = None, rejected: Mapping[str, int] | None = None,
                      stamp: str = "") -> None:
        """Note that a source is done, with what came of it; from here on it is not lost."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._offset = self._file.tell()
        self._in_shard += self._added
        entry = {"source": name, "stamp": stamp, "samples": self._added, "skipped": skipped, "rejected": dict(rejected or {}),
                 "shard": self._shard, "offset": self._offset, "in_shard": self._in_shard}
        self._added = 0
        with (self.folder / JOURNAL).open("ab") as journal:
            journal.write((json.dumps(entry, sort_keys=True) + "\n").encode())
            journal.flush()
            os.fsync(journal.fileno())
        self.entries.append(entry)
        if self._in_shard >= self.per_shard:
            self._close_shard()

    def forget(self, name: str) -> None:
        """Take a source without samples back, to try it again."""
        kept = [e for e in self.entries if e["source"] != name or e["samples"]]
        # What a removed last entry knew of the shard is what the entry before it knew: it added nothing.
        if len(kept) != len(self.entries):
            self.entries = kept
            self._replace_journal(kept)

    def _close_shard(self) -> None:
        if self._in_shard:
            file = self._opened()
            file.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
            self.close()
            os.replace(self._partial(self._shard), self._path(self._shard))
            self._next()

    def _next(self) -> None:
        self._shard, self._offset, self._in_shard = self._shard + 1, 0, 0

    def close(self) -> None:
        """Let go of the open file; the set stays unfinished."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> Path:
        """Close the last shard and write dataset.json; returns its path."""
        self._close_shard()
        skipped = [{"source": e["source"], "reason": e["skipped"]} for e in self.entries if e["skipped"]]
        rejected: Counter[str] = Counter()
        for entry in self.entries:
            rejected.update(entry["rejected"])
        shards: Counter[int] = Counter()
        for entry in self.entries:
            shards[entry["shard"]] += entry["samples"]
        summary = {
            "format": FORMAT, "settings": self.settings, "settings_hash": self.hash, "samples": self.samples,
            "shards": [{"name": self._path(n).name, "samples": count} for n, count in sorted(shards.items()) if count],
            "sources": len(self.entries), "skipped_count": len(skipped), "skipped": skipped,
            "rejected_pairs": dict(sorted(rejected.items())),
        }
        _replace(self.folder / SUMMARY, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
        return self.folder / SUMMARY


def _replace(path: Path, data: bytes) -> None:
    """Replace a file as a whole."""
    partial = path.with_name(path.name + ".new")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def report(folder: Path, before: int = 0) -> str:
    """What a finished set holds and what was left out, in words."""
    found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    new = found["samples"] - before
    lines = [f"{found['samples']} pairs in {len(found['shards'])} shards" + (f", {new} of them new" if before else ""),
             f"folder: {folder}"]
    if found["rejected_pairs"]:
        listed = ", ".join(f"{reason} {count}" for reason, count in found["rejected_pairs"].items())
        lines.append(f"pairs left out: {listed}")
    lines += listing(f"videos skipped: {found['skipped_count']}", [f"{s['source']} {s['reason']}" for s in found["skipped"]])
    return "\n".join(lines)


def listing(heading: str, names: Sequence[str]) -> list[str]:
    """A heading and the first names under it; nothing without names."""
    more = [f"  and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [heading, *(f"  {name}" for name in names[:SHOWN]), *more] if names else []


# ---- reading ---------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Where a sample lies: member end -> (offset, size) in the shard."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]


def scan_shard(path: Path, skipped: list[str]) -> Iterator[Entry]:
    """The whole samples of a shard; what is damaged is named in `skipped`. Reads headers only.

    Behind a damaged header the search goes on at the next sound one.
    """
    length = path.stat().st_size
    key, members = "", {}
    damaged = ended = False

    def finished() -> Iterator[Entry]:
        missing = [m for m in MEMBERS if m not in members]
        if key and missing:
            skipped.append(f"{path.name}: {key} lacks {', '.join(missing)}")
        elif key:
            yield Entry(path, key, dict(members))

    with path.open("rb") as file:
        offset = 0
        while offset + BLOCK <= length and not ended:
            file.seek(offset)
            block = file.read(BLOCK)
            offset += BLOCK
            if block.count(0) == BLOCK:
                ended = not damaged or file.read(BLOCK).count(0) == BLOCK
                continue
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                if not damaged:
                    skipped.append(f"{path.name}: damaged at byte {offset - BLOCK}")
                damaged = True
                continue
            damaged = False
            if header.isreg():
                name, end = header.name.rsplit("/", 1)[-1].partition(".")[::2]
                if name != key:
                    yield from finished()
                    key, members = name, {}
                if offset + header.size <= length:
                    members[end] = (offset, header.size)
            offset += -(-header.size // BLOCK) * BLOCK
    if not ended and not damaged:
        skipped.append(f"{path.name}: cut off, it has no end mark")
    yield from finished()


def _sound(file: BinaryIO, entry: Entry) -> str | None:
    """The first member whose checksums are wrong, without unpacking pictures."""
    for end, (offset, size) in entry.members.items():
        file.seek(offset)
        data = file.read(size)
        if end.endswith(".png"):
            place, last = 8, b""
            while place + 12 <= len(data) and last != b"IEND":
                length, last = int.from_bytes(data[place:place + 4], "big"), data[place + 4:place + 8]
                body = data[place + 4:place + 8 + length]
                if zlib.crc32(body) != int.from_bytes(data[place + 8 + length:place + 12 + length], "big"):
                    return end
                place += 12 + length
            if last != b"IEND" or data[:8] != b"\x89PNG\r\n\x1a\n":
                return end
        elif end == "flow.npz":
            try:
                with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                    _ = arrays["flow"], arrays["visible"]  # the zip's checksums
            except Exception:  # zipfile's and zlib's errors have no common base
                return end
        elif end == "json":
            try:
                json.loads(data)
            except ValueError:
                return end
    return None


def _shards(folder: Path) -> list[Path]:
    if not (folder / SUMMARY).is_file():
        unfinished = " It is unfinished: run the node or command that makes it again." if (folder / JOURNAL).is_file() else ""
        raise DatasetError(f"'{folder}' is no dataset: it has no {SUMMARY}.{unfinished}")
    return sorted(folder.glob("*.tar"))


class ShardIndex:
    """The samples of a dataset by number, read from the tars where they lie.

    Args:
        folder: of the dataset.
        check: verify checksums of every sample now, which reads the whole set; None does so below 2 GB. A damaged sample
            that was not found now is named when it is asked for, and the next sound one is given in its place.

    Attributes:
        skipped: what is damaged, named.

    Raises:
        DatasetError: no dataset, or nothing of it is left.
    """

    def __init__(self, folder: Path | str, check: bool | None = None):
        self.folder = Path(folder)
        self.skipped: list[str] = []
        shards = _shards(self.folder)
        if check is None:
            check = sum(p.stat().st_size for p in shards) < CHECKED_BELOW
        self.entries: list[Entry] = []
        for shard in shards:
            found = list(scan_shard(shard, self.skipped))
            with shard.open("rb") as file:
                for entry in found:
                    wrong = _sound(file, entry) if check else None
                    if wrong:
                        self.skipped.append(f"{shard.name}: {entry.key}: {wrong} is damaged")
                    else:
                        self.entries.append(entry)
        self._bad: set[int] = set()
        if not self.entries:
            raise _nothing(self.folder, self.skipped)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Sample:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        for i in range(len(self)):
            place = (number + i) % len(self)
            if place in self._bad:
                continue
            try:
                return read_entry(self.entries[place])
            except (ValueError, OSError) as error:
                self._bad.add(place)
                self.skipped.append(f"{self.entries[place].shard.name}: {self.entries[place].key}: {error}")
        raise _nothing(self.folder, self.skipped)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


def _nothing(folder: Path, skipped: list[str]) -> DatasetError:
    named = f" Skipped: {len(skipped)}, first: {skipped[0]}." if skipped else ""
    return DatasetError(f"'{folder}' holds no usable sample.{named} Build the dataset with other bounds, or again.")


def read_entry(entry: Entry) -> Sample:
    """Read one sample. Raises ValueError, OSError."""
    with entry.shard.open("rb") as file:
        members = {}
        for end, (offset, size) in entry.members.items():
            file.seek(offset)
            members[end] = file.read(size)
    return decode(entry.key, members)


class SampleReader:
    """The samples of a dataset one after another; see read_samples."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: list[str] = []
        self._shards = _shards(folder)
        self._samples = self._read()

    def __iter__(self) -> SampleReader:
        return self

    def __next__(self) -> Sample:
        return next(self._samples)

    def _read(self) -> Iterator[Sample]:
        nothing = True
        for shard in self._shards:
            for entry in scan_shard(shard, self.skipped):
                try:
                    sample = read_entry(entry)
                except (ValueError, OSError) as error:
                    self.skipped.append(f"{shard.name}: {entry.key}: {error}")
                    continue
                nothing = False
                yield sample
        if nothing:
            raise _nothing(self.folder, self.skipped)


def read_samples(folder: Path | str) -> SampleReader:
    """Iterate over a dataset without an index. `skipped` of the result names what is damaged.

    Raises:
        DatasetError: no dataset; while iterating, if nothing of it is left.
    """
    return SampleReader(Path(folder))
