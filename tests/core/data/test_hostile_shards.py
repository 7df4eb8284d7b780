"""Shards that somebody else made: one bad sample is skipped by name, and none asks for more memory or time than its own size."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

SIZE = (16, 24)
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def shards(pack):
    return pack("core.data.shards")


@pytest.fixture(scope="module")
def members(pack) -> dict[str, bytes]:
    """The members of a sound sample."""
    sample, generator = pack("core.data.sample"), torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, *SIZE, generator=generator) for _ in range(4)]
    return sample.encode(sample.Sample("sound", *pictures, torch.zeros(2, *SIZE), torch.ones(SIZE, dtype=torch.bool),
                                       torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), {}))


def write(folder, samples: dict[str, dict[str, bytes]], edit=None, **settings):
    """A dataset of one shard; `edit` changes the header of a member, given its name."""
    folder.mkdir(exist_ok=True)
    data = io.BytesIO()
    for key, parts in samples.items():
        for end, content in parts.items():
            header = tarfile.TarInfo(f"{key}.{end}")
            header.size = len(content)
            block = header.tobuf(tarfile.USTAR_FORMAT)
            data.write(block if edit is None else edit(header.name, block))
            data.write(content + bytes(-len(content) % 512))
    data.write(bytes(1024))
    (folder / "shard-000000.tar").write_bytes(data.getvalue())
    (folder / "dataset.json").write_text(json.dumps({"settings": settings}))
    return folder


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def with_size(size: bytes):
    """Edit that gives the third member another size field, and the header a sound checksum."""
    def edit(name: str, block: bytes) -> bytes:
        if name != "bad.sketch.png":
            return block
        block = bytearray(block)
        block[124:136] = size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    return edit


@pytest.mark.parametrize("size", [
    b"\xff" * 12,                                    # -1, as GNU tar writes large numbers
    (-512 - 5 * 1024).to_bytes(12, "big", signed=True), (-(1 << 80)).to_bytes(12, "big", signed=True),
    b"\x80" + b"\x7f" * 11,                          # beyond any disk
    b"-0000000512\0", b"99999999999\0", b"0x10       \0", b"\xb2\xb2         \0"], ids=range(8))
def test_a_tar_member_of_negative_or_absurd_size(shards, members, tmp_path, size):
    """The scan used to return to the same header for ever. It now checks for a stop at every header, and visits few."""
    folder = write(tmp_path / "set", {"first": members, "bad": members, "last": members}, with_size(size))
    headers = 0

    def count():
        nonlocal headers
        headers += 1
        assert headers < 1000, "the scan does not come to an end"

    index = shards.ShardIndex(folder, check_stop=count)
    assert index[0].key == "first" and "bad" not in [e.key for e in index.entries]
    assert any("damaged" in s or "cut off" in s for s in index.skipped) and any("bad lacks" in s for s in index.skipped)
    for entry in shards.scan_shard(folder / "shard-000000.tar", []):
        assert all(offset >= 0 and length >= 0 for offset, length in entry.members.values())


def test_opening_can_be_cancelled(shards, members, tmp_path):
    class Cancelled(Exception):
        pass

    def cancel():
        raise Cancelled

    with pytest.raises(Cancelled):
        shards.ShardIndex(write(tmp_path / "set", {"a": members}), check_stop=cancel)


def npz_that_claims(count: int) -> bytes:
    """A flow.npz of some kilobytes whose arrays unpack to `count` bytes each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("flow", "visible"):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(count))
    return file.getvalue()


BAD = {
    "picture of 100 megapixels": (lambda m: {"sketch.png": png(10_000, 10_000)}, "sketch.png cannot be read.*10000 x 10000 pixels"),
    "archive of 100 MB": (lambda m: {"flow.npz": npz_that_claims(50_000_000)}, "flow.npz cannot be read.*would unpack to"),
    "array of another world": (lambda m: {"flow.npz": npz(flow=np.zeros((2, *SIZE), complex), visible=np.ones(SIZE, bool))},
                               "flow.npz cannot be read.*complex"),
    "text for numbers": (lambda m: {"flow.npz": npz(flow=np.full((2, *SIZE), "a"), visible=np.ones(SIZE, bool))},
                         "flow.npz cannot be read"),
    "NaN flow": (lambda m: {"flow.npz": npz(flow=np.full((2, *SIZE), np.nan), visible=np.ones(SIZE, bool))}, "flow is not finite"),
    "infinite flow": (lambda m: {"flow.npz": npz(flow=np.full((2, *SIZE), 1e300), visible=np.ones(SIZE, bool))},
                      "flow is not finite"),
    "no picture": (lambda m: {"source.png": b"GIF89a" + bytes(20)}, "source.png cannot be read"),
    "another size": (lambda m: {"target.png": png(8, 8)}, "pictures and its flow differ in size"),
    "unequal drags": (lambda m: {"json": b'{"drag_source": [[1, 2], [3, 4]], "drag_target": [[1, 2]]}'}, "2 sources and 1 targets"),
    "NaN drag": (lambda m: {"json": b'{"drag_source": [[1, NaN]], "drag_target": [[1, 2]]}'}, "must be finite"),
    "infinite drag": (lambda m: {"json": b'{"drag_source": [[1, 1e999]], "drag_target": [[1, 2]]}'}, "must be finite"),
    "number without end": (lambda m: {"json": b'{"drag_source": [[1, 1' + b"0" * 400 + b']], "drag_target": [[1, 2]]}'},
                           "json cannot"),
    "number of 10 000 digits": (lambda m: {"json": b'{"drag_source": [[1, ' + b"1" * 10_000 + b']], "drag_target": []}'},
                                "json cannot"),
    "nested": (lambda m: {"json": DEEP}, "json cannot be read.*nested too deeply"),
    "list": (lambda m: {"json": b"[]"}, "json cannot be read.*list where an object"),
    "null": (lambda m: {"json": b"null"}, "json cannot be read"),
    "text": (lambda m: {"json": b'{"drag_source": "abc", "drag_target": {}}'}, "json cannot be read"),
    "no text": (lambda m: {"json": b"\xff\xfe\x00{"}, "json cannot be read"),
    "ragged": (lambda m: {"json": b'{"drag_source": [[1, 2], [3]], "drag_target": [[1, 2]]}'}, "json cannot be read"),
    "empty": (lambda m: {"json": b""}, "json cannot be read"),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_one_bad_sample_is_skipped_by_name(shards, members, tmp_path, name, check):
    change, message = BAD[name]
    folder = write(tmp_path / "set", {"first": members, "bad": {**members, **change(members)}, "last": members})
    tracemalloc.start()
    try:
        index, reader = shards.ShardIndex(folder, check), shards.read_samples(folder)
        keys = {index[i].key for i in range(len(index))}
        assert keys == {"first", "last"} == {sample.key for sample in reader}
        assert tracemalloc.get_traced_memory()[1] < 20e6, "a small file was unpacked to a large one"
    finally:
        tracemalloc.stop()
    import re

    assert len(index.skipped) == 1 and index.skipped[0].startswith("shard-000000.tar: bad: ")
    (skipped,) = reader.skipped
    assert re.search(message, skipped), skipped


def test_large_pictures_that_the_dataset_states_are_read(pack, shards, members, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST", 100)
    with pytest.raises(pack("core.data.sample").DatasetError, match="no usable sample.*at most 100 are unpacked"):
        shards.ShardIndex(write(tmp_path / "small", {"a": members}), False)[0]
    assert shards.ShardIndex(write(tmp_path / "stated", {"a": members}, width=SIZE[1], height=SIZE[0]))[0].key == "a"


@pytest.mark.parametrize("settings", ["[]", "{}", '{"settings": 3}', '{"settings": {"width": 1e400, "height": "a"}}', "", "nested"])
def test_an_absurd_summary(shards, members, tmp_path, settings):
    folder = write(tmp_path / "set", {"a": members})
    (folder / "dataset.json").write_bytes(DEEP if settings == "nested" else settings.encode())
    assert shards.ShardIndex(folder)[0].key == "a"


def test_names_that_are_no_text_are_shown(shards, members, tmp_path):
    """A member's name in another encoding: the message about it can be written anywhere."""
    def edit(name: str, block: bytes) -> bytes:
        block = bytearray(block.replace(b"bad.", b"b\xff\x07."))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    folder = write(tmp_path / "set", {"good": members, "bad": {"source.png": b"1", **dict(list(members.items())[1:])}}, edit)
    index, reader = shards.ShardIndex(folder), shards.read_samples(folder)
    assert [s.key for s in reader] == ["good"] and len(index) == 1
    for told in (*index.skipped, *reader.skipped):
        assert "\\udcff\\x07" in told and told.encode() and told.isprintable()


@pytest.mark.parametrize("line", [DEEP, b"[]", b"3", b'{"source": 5}', b'{"source": "a", "samples": -1}', b"\xff\xfe",
                                  b'{"source": "a", "samples": 1, "skipped": null, "rejected": [], "shard": "0", "offset": 0}',
                                  b'{"source": "a", "samples": 1, "skipped": null, "rejected": {}, "shard": 1e99, "offset": 0}'])
def test_an_absurd_journal_line_ends_the_journal(pack, tmp_path, line):
    """What stands before it counts, and the build goes on."""
    writer = pack("core.data.shard_writer").ShardWriter
    made = writer(tmp_path / "set", {"a": 1})
    made.finish_source("one", "no motion")
    made.close()
    with (tmp_path / "set" / "journal.jsonl").open("ab") as file:
        file.write(line + b"\n")
    again = writer(tmp_path / "set", {"a": 1})
    assert list(again.done) == ["one"]
    again.close()


@pytest.mark.parametrize("line", [DEEP, b"[]", b"3", b"", b'{"hash": 4, "settings": []}'])
def test_an_absurd_first_line_is_another_dataset(pack, tmp_path, line):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "journal.jsonl").write_bytes(line + b"\n")
    with pytest.raises(pack("core.data.sample").DatasetError, match="holds a dataset made with other settings"):
        pack("core.data.shard_writer").ShardWriter(tmp_path / "set", {"a": 1})
