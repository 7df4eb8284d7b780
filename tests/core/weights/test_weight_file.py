"""Weight files from any source: complete ones are read once, all others are refused with an error that names them."""

from __future__ import annotations

import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def module(pack):
    return pack("core.weights.weight_file")


@pytest.fixture(scope="module")
def pickled(pack):
    return pack("core.weights.pickled")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.safetensors"
    save_file({"a.x": torch.arange(6.0).reshape(2, 3), "a.y": torch.zeros(2, dtype=torch.float16), "b": torch.ones(1)}, str(path),
              metadata={"who": "me"})
    return path


def test_what_is_in_a_file(module, path):
    file = module.WeightFile.open(path)
    assert file.kind == "other" and file.name == "some.safetensors" and file.header.metadata == {"who": "me"}
    assert file.shapes == {"a.x": (2, 3), "a.y": (2,), "b": (1,)}
    assert file.under("a.") == {"x": "a.x", "y": "a.y"} and file.shapes_of(file.under("a.")) == {"x": (2, 3), "y": (2,)}
    read = file.read({"new": "a.x"})
    assert read.keys() == {"new"} and torch.equal(read["new"], torch.arange(6.0).reshape(2, 3))
    assert file.read().keys() == {"a.x", "a.y", "b"}


def test_it_is_opened_once(pack, module, path, monkeypatch):
    headers = []
    real = module.read_header
    monkeypatch.setattr(module, "read_header", lambda p: headers.append(p) or real(p))
    file = module.WeightFile.open(path)
    assert file.shapes is file.shapes and file.read() and file.under("a.")
    assert headers == [path]


def test_loading_a_single_file_reads_one_header(pack, module, checkpoint, monkeypatch):
    headers = []
    real = module.read_header
    monkeypatch.setattr(module, "read_header", lambda p: headers.append(p) or real(p))
    with torch.inference_mode():
        pack("host.weights.loading").load(checkpoint, None, None, torch.float32)
    assert headers == [checkpoint]


def test_a_file_that_changes_meanwhile(module, path):
    file = module.WeightFile.open(path, "Fetch it.")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(module.WeightsError, match="'some.safetensors' is not usable: its tensors cannot be read .*Fetch it."):
        file.read()


def test_refusals(module, path):
    file = module.WeightFile.open(path)
    assert str(file.wrong_kind("encoder")).startswith("'some.safetensors' holds 3 other tensors, the first 'a.x'; expected the "
                                                      "authors' control encoder")
    text = str(file.differs("thing", [f"missing {n}" for n in range(6)]))
    assert text.startswith("'some.safetensors' is not a complete thing: missing 0; missing 1; missing 2; missing 3; and 2 more.")


def test_what_is_no_file(module, tmp_path):
    for path, message in ((tmp_path / "none", "does not exist"), (tmp_path, "cannot be read: Is a directory"),
                          (tmp_path / ("x" * 300), "cannot be read: File name too long"), (tmp_path / "a\0b", "cannot be read")):
        with pytest.raises(module.WeightsError, match=message) as raised:
            module.WeightFile.open(path)
        assert "\0" not in str(raised.value)


DEEP = "[" * 100_000 + "]" * 100_000
TABLES = {
    "nested": DEEP, "nested entry": f'{{"a": {DEEP}}}', "number": "3", "null": "null", "entry null": '{"a": null}',
    "entry text": '{"a": "data_offsets"}', "no offsets": '{"a": {"dtype": "F32", "shape": [1]}}',
    "one offset": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
    "infinite side": '{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
    "half a side": '{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
    "true side": '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
    "negative sides": '{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
    "text side": '{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
    "huge side": '{"a": {"dtype": "F32", "shape": [' + "9" * 400 + '], "data_offsets": [0, 4]}}',
    "side of 10 000 digits": '{"a": {"dtype": "F32", "shape": [' + "9" * 10_000 + '], "data_offsets": [0, 4]}}',
    "back to front": '{"a": {"dtype": "F99", "shape": [1], "data_offsets": [4, 0]}}',
    "negative place": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
    "type a list": '{"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}',
    "shape a text": '{"a": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}}',
    "metadata a list": '{"__metadata__": [], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "metadata of numbers": '{"__metadata__": {"a": 1}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "no UTF-8": b'{"\xff\xfe": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
}


@pytest.mark.parametrize("name", TABLES)
def test_absurd_headers(module, tmp_path, name):
    table, path = TABLES[name], tmp_path / "some.safetensors"
    raw = table if isinstance(table, bytes) else table.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"1234")
    with pytest.raises(module.WeightsError, match="'some.safetensors' is not usable: .*Download it again") as raised:
        module.WeightFile.open(path)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("entries, size", [(1_500_000, "MB, at most"), (150_000, "150000 tensors, at most 100000 are read")])
def test_a_header_of_very_many_entries(module, tmp_path, entries, size):
    """It is refused by its size or its count before it is parsed; the test measures memory, not time."""
    raw = ("{" + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(entries)) + "}").encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    tracemalloc.start()
    try:
        with pytest.raises(module.WeightsError, match=f"'many.safetensors' is not usable: its header .*{size}"):
            module.WeightFile.open(path)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * min(len(raw), 24 << 20)
    finally:
        tracemalloc.stop()


def test_as_many_entries_as_large_models_have_are_read(module, tmp_path):
    raw = ("{" + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(20_000)) + "}").encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert len(module.WeightFile.open(path).shapes) == 20_000


def test_damaged_files_never_end_otherwise(module, path, tmp_path):
    """Files with bytes flipped, cut or doubled: read as they are, or refused by name."""
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for number in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            kind = draw.randrange(3)
            if kind == 0:
                data[place] = draw.randrange(256)
            elif kind == 1:
                del data[place:]
                data += b"\0"
            else:
                data[place:place] = data[:draw.randrange(40)]
        damaged = tmp_path / f"{number}.safetensors"
        damaged.write_bytes(data)
        try:
            module.WeightFile.open(damaged).read()
        except module.WeightsError as error:
            refused += 1
            assert str(error).startswith(f"'{number}.safetensors' ") and str(error).isprintable()
    assert refused > 150


# ---- torch.save ------------------------------------------------------------------------------------------------------


def test_tensors_of_torch_save(pickled, tmp_path):
    value = {"a": torch.randn(3, 4), "b": [torch.ones(2), torch.arange(5)]}
    for legacy in (False, True):
        torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        found = pickled.load_tensors(tmp_path / "a.pt")
        assert torch.equal(found["a"], value["a"]) and torch.equal(found["b"][1], value["b"][1])


def small_file(path: Path, kind: str) -> None:
    """A file of some kilobytes that stands for hundreds of megabytes."""
    if kind == "stride 0":
        torch.save([torch.zeros(1).expand(10_000, 10_000)] * 2, path)
    elif kind == "one storage many times":
        storage = torch.zeros(1000)
        torch.save([storage.as_strided((1000,), (1,)) for _ in range(10_000)], path)
    else:
        whole = path.with_suffix(".whole")
        torch.save([torch.zeros(20_000_000)], whole)
        with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in archive.infolist():
                packed.writestr(entry.filename, archive.read(entry))
        whole.unlink()


@pytest.mark.parametrize("kind, message", [("stride 0", "claim 800000000 bytes"), ("one storage many times", "its tensors claim"),
                                           ("packed", "would unpack from")])
def test_small_files_that_claim_much(pickled, tmp_path, kind, message):
    path = tmp_path / "small.pt"
    small_file(path, kind)
    assert path.stat().st_size < 2e6
    with pytest.raises(ValueError, match=message):
        pickled.load_tensors(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(50), b"<html>", b"\x80\x02" + bytes(50), b"\x80\x04K\x01."])
def test_what_is_no_such_file(pickled, tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ValueError) as raised:
        pickled.load_tensors(tmp_path / "a.pt")
    assert type(raised.value) is ValueError and "\n" not in str(raised.value) and str(raised.value)


def test_code_in_a_file_does_not_run(pickled, tmp_path):
    class Opens:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save([Opens()], tmp_path / "a.pt")
    with pytest.raises(ValueError):
        pickled.load_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()
