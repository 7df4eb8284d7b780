"""Writing shards: a journal of finished sources makes a build resumable, and every file appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .. import atomic
from ..atomic import PARTIAL, write_errors
from ..names import printable
from ..parsing import json_object
from .sample import BLOCK, FORMAT, JOURNAL, SUMMARY, DatasetError, Sample, encode

SHOWN = 20  # names in a report


# ---- writing ---------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Writes a dataset, source by source; if the folder already has a part of it, the build resumes there.

    Args:
        folder: made if it is not there.
        settings: all settings that determine the contents; kept in dataset.json.
        per_shard: a shard is closed after the source that brings it to this many samples.

    Raises:
        DatasetError: the folder holds a set made with other settings, or other things.
        WriteError: it cannot be written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], per_shard: int = 32):
        self.folder, self.per_shard = folder, per_shard
        self.settings = json.loads(json.dumps({**settings, "per_shard": per_shard}, sort_keys=True))
        self.hash = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        self._file: BinaryIO | None = None
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.entries = self._read_journal()
        with write_errors(folder):
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
                raise DatasetError(f"'{self.folder}' contains shards but no {JOURNAL}, so the build cannot be resumed. Choose "
                                   "another name, or delete the folder.")
            self._replace_journal([])
            return []
        entries = []
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json_object(line)
            except ValueError:  # the last line may be cut off; nothing after it counts
                break
            if entries and not _is_entry(entry):
                break
            entries.append(entry)
        if not entries or entries[0].get("hash") != self.hash:
            if entries and self._method(entries[0]) != self.settings.get("method"):
                raise DatasetError(f"'{self.folder}' holds a dataset begun by another version of this pack, which chose and read "
                                   "frames in another way. It can still be used for training. Choose another name for a new "
                                   "dataset, or delete the folder.")
            raise DatasetError(f"'{self.folder}' holds a dataset made with other settings ({self._differences(entries)}). "
                               "Choose another name, set them back, or delete the folder.")
        return entries[1:]

    @staticmethod
    def _method(start: dict[str, Any]) -> Any:
        settings = start.get("settings")
        return settings.get("method") if isinstance(settings, dict) else None

    def _differences(self, entries: list[dict[str, Any]]) -> str:
        old = entries[0].get("settings") if entries else {}
        old = old if isinstance(old, dict) else {}
        names = [n for n in sorted({*old, *self.settings}) if old.get(n) != self.settings.get(n)]
        return ", ".join(f"{n} was {old.get(n)}, now it is {self.settings.get(n)}" for n in names[:4]) or "unreadable journal"

    def _replace_journal(self, entries: list[dict[str, Any]]) -> None:
        lines = [{"format": FORMAT, "hash": self.hash, "settings": self.settings}, *entries]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        atomic.write_text(self.folder / JOURNAL, text, sync=True)

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
        atomic.sweep(self.folder)
        for path in self.folder.glob(f"shard-*{PARTIAL}"):
            if path != self._partial(self._shard):
                path.unlink()
        if self._path(self._shard).is_file():
            self._partial(self._shard).unlink(missing_ok=True)
            self._next()
        elif self._in_shard >= self.per_shard:
            self._close_shard()

    def _holds(self, entry: dict[str, Any]) -> bool:
        """Whether the bytes that an entry describes are there."""
        if self._path(entry["shard"]).is_file() or not entry["offset"]:
            return True
        partial = self._partial(entry["shard"])
        return partial.is_file() and partial.stat().st_size >= entry["offset"]

    # -- adding --

    def add(self, sample: Sample) -> None:
        """Add a sample of the current source; it becomes permanent when the source is finished.

        Raises:
            WriteError: the disk is full, or may not be written to.
        """
        if "." in sample.key or "/" in sample.key:
            raise ValueError(f"key '{sample.key}' has a dot or a slash in it")
        members = encode(sample)
        with write_errors(self._path(self._shard)):
            file = self._opened()
            for end, data in members.items():
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
        """Discard the samples of the current source, which failed."""
        self._added = 0
        self.close()

    def finish_source(self, name: str, skipped: str | None = None, rejected: Mapping[str, int] | None = None,
                      stamp: str = "") -> None:
        """Record in the journal that a source is finished, with its result; from here on it is not lost.

        Raises:
            WriteError: the disk is full, or may not be written to; the source is as if it had not been begun.
        """
        if self._file is not None:
            with write_errors(self._path(self._shard)):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._offset = self._file.tell()
        self._in_shard += self._added
        entry = {"source": name, "stamp": stamp, "samples": self._added, "skipped": skipped, "rejected": dict(rejected or {}),
                 "shard": self._shard, "offset": self._offset, "in_shard": self._in_shard}
        self._added = 0
        with write_errors(self.folder / JOURNAL), (self.folder / JOURNAL).open("ab") as journal:
            journal.write((json.dumps(entry, sort_keys=True) + "\n").encode())
            journal.flush()
            os.fsync(journal.fileno())
        self.entries.append(entry)
        if self._in_shard >= self.per_shard:
            self._close_shard()

    def forget(self, name: str) -> None:
        """Remove a source that yielded no samples from the journal, so that it is tried again."""
        kept = [e for e in self.entries if e["source"] != name or e["samples"]]
        # What a removed last entry knew of the shard is what the entry before it knew: it added nothing.
        if len(kept) != len(self.entries):
            self.entries = kept
            self._replace_journal(kept)

    def _close_shard(self) -> None:
        if self._in_shard:
            with write_errors(self._path(self._shard)):
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
        """Close the open file; the dataset stays unfinished."""
        if self._file is not None:
            with suppress(OSError):  # a full disk, once more: what is not on it yet belongs to no finished source
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
        atomic.write_text(self.folder / SUMMARY, json.dumps(summary, indent=1, sort_keys=True) + "\n", sync=True)
        return self.folder / SUMMARY


def _is_entry(entry: dict[str, Any]) -> bool:
    """Whether a line of the journal is a valid entry of a finished source."""
    numbers = (entry.get(name) for name in ("samples", "shard", "offset", "in_shard"))
    return (isinstance(entry.get("source"), str) and isinstance(entry.get("rejected"), dict) and "skipped" in entry
            and all(isinstance(n, int) and n >= 0 for n in numbers))


def report(folder: Path, before: int = 0) -> str:
    """A text report of what a finished dataset contains and what was left out."""
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
    return [heading, *(f"  {printable(name)}" for name in names[:SHOWN]), *more] if names else []
