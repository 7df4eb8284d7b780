"""Training pairs in sharded tar files that the `webdataset` library reads too. Layout: docs/training_data.md.

Writing can be interrupted at any time. After every source (a video, or a chunk of scenes), a journal records how far the dataset
got. The next run cuts the open shard back to that point and continues, and the finished dataset is byte for byte the same.

Legend: H W pixels, K drags.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..names import printable
from ..parsing import json_object
from .sample import (
    BLOCK,
    JOURNAL,
    LARGEST,
    MEMBERS,
    PNG,
    SUMMARY,
    DatasetError,
    Sample,
    decode,
    png_pixels,
    read_flow,
    read_info,
)

CHECKED_BELOW = 2 << 30  # bytes; larger sets are not read whole when they are opened


# ---- reading ---------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """Position of a sample: member ending -> (offset, size) in the shard."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]


def scan_shard(path: Path, skipped: list[str], check_stop: Callable[[], None] | None = None) -> Iterator[Entry]:
    """The complete samples of a shard; damaged ones are named in `skipped`. Reads headers only.

    After a damaged header the search continues at the next intact one.

    Args:
        check_stop: called before every header; what it raises ends the scan.
    """
    length = path.stat().st_size
    key, members = "", {}
    damaged = ended = False

    def finished() -> Iterator[Entry]:
        missing = [m for m in MEMBERS if m not in members]
        if key and missing:
            skipped.append(f"{path.name}: {printable(key)} lacks {', '.join(missing)}")
        elif key:
            yield Entry(path, key, dict(members))

    with path.open("rb") as file:
        offset = 0
        while offset + BLOCK <= length and not ended:
            if check_stop is not None:
                check_stop()
            file.seek(offset)
            block = file.read(BLOCK)
            offset += BLOCK
            if block.count(0) == BLOCK:
                ended = not damaged or file.read(BLOCK).count(0) == BLOCK
                continue
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if header.size < 0:  # the scan would go back, and on for ever
                    raise tarfile.InvalidHeaderError("negative size")
            except (tarfile.HeaderError, ValueError, OverflowError):
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


def _damaged(file: BinaryIO, entry: Entry, largest: int) -> str | None:
    """The first member whose checksums are wrong, without unpacking pictures."""
    pixels, flow = 0, b""
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
            if last != b"IEND" or data[:8] != PNG:
                return end
            pixels = max(pixels, min(png_pixels(data), largest))
        elif end == "flow.npz":
            flow = data
        elif end == "json":
            try:
                read_info(data)
            except ValueError:
                return end
    try:
        read_flow(flow, pixels)  # the zip's checksums
    except ValueError:
        return "flow.npz"
    return None


def _shards(folder: Path) -> list[Path]:
    if not (folder / SUMMARY).is_file():
        unfinished = " It is unfinished: run the node or command that makes it again." if (folder / JOURNAL).is_file() else ""
        raise DatasetError(f"'{folder}' is no dataset: it has no {SUMMARY}.{unfinished}")
    return sorted(folder.glob("*.tar"))


def _largest(folder: Path) -> int:
    """Pixels of the largest picture to unpack: the settings say how large the dataset's own are."""
    try:
        settings = json_object((folder / SUMMARY).read_bytes())["settings"]
        return max(LARGEST, int(settings["width"]) * int(settings["height"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return LARGEST


class ShardIndex:
    """The samples of a dataset by number, read from the tars where they lie.

    Args:
        folder: of the dataset.
        check: verify checksums of every sample now, which reads the whole set; None does so below 2 GB. A damaged sample that is
            not found now is named when it is read, and the next intact one is returned instead.
        check_stop: called again and again while the set is opened; what it raises ends that.

    Attributes:
        skipped: what is damaged, named.

    Raises:
        DatasetError: no dataset, or nothing of it is left.
    """

    def __init__(self, folder: Path | str, check: bool | None = None, check_stop: Callable[[], None] | None = None):
        self.folder = Path(folder)
        self._pixels = _largest(self.folder)
        self.skipped: list[str] = []
        shards = _shards(self.folder)
        if check is None:
            check = sum(p.stat().st_size for p in shards) < CHECKED_BELOW
        self.entries: list[Entry] = []
        for shard in shards:
            found = list(scan_shard(shard, self.skipped, check_stop))
            with shard.open("rb") as file:
                for entry in found:
                    if check_stop is not None:
                        check_stop()
                    wrong = _damaged(file, entry, self._pixels) if check else None
                    if wrong:
                        self.skipped.append(f"{shard.name}: {printable(entry.key)}: {wrong} is damaged")
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
                return read_entry(self.entries[place], self._pixels)
            except (ValueError, OSError) as error:
                self._bad.add(place)
                self.skipped.append(f"{self.entries[place].shard.name}: {printable(self.entries[place].key)}: {error}")
        raise _nothing(self.folder, self.skipped)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


def _nothing(folder: Path, skipped: list[str]) -> DatasetError:
    named = f" Skipped: {len(skipped)}, first: {skipped[0]}." if skipped else ""
    return DatasetError(f"'{folder}' holds no usable sample.{named} Build the dataset again, with wider bounds if necessary.")


def read_entry(entry: Entry, largest: int = LARGEST) -> Sample:
    """Read one sample; pictures of more than `largest` pixels are not unpacked. Raises ValueError, OSError."""
    with entry.shard.open("rb") as file:
        members = {}
        for end, (offset, size) in entry.members.items():
            file.seek(offset)
            members[end] = file.read(size)
    return decode(entry.key, members, largest)


class SampleReader:
    """The samples of a dataset one after another; see read_samples."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: list[str] = []
        self._pixels = _largest(folder)
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
                    sample = read_entry(entry, self._pixels)
                except (ValueError, OSError) as error:
                    self.skipped.append(f"{shard.name}: {printable(entry.key)}: {error}")
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
