from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def header(pack):
    return pack("core.weights.safetensors_header")


def test_reads_what_safetensors_writes(header, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2, 3, dtype=torch.float16), "y": torch.zeros(5), "z": torch.tensor(1.0)}, str(path),
              metadata={"who": "me"})
    read = header.read_header(path)
    assert read.tensors == {"x": ("F16", (2, 3), 12), "y": ("F32", (5,), 20), "z": ("F32", (), 4)}
    assert read.metadata == {"who": "me"}


@pytest.mark.parametrize("table, message", [
    ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, r"gives 'x' 4 bytes for shape \[2\]"),
    ({"x": {"dtype": "F32", "shape": [2]}}, "cannot be read"),
    ({"x": 3}, "cannot be read"),
    ([1, 2], "expected a safetensors file, found something else"),
    ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "cut off"),
])
def test_contradictions(header, tmp_path, table, message):
    raw = json.dumps(table).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"1234")
    with pytest.raises(header.BrokenFile, match=message):
        header.read_header(path)
