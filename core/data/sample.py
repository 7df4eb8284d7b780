"""A training pair and its encoding as members of a tar shard.

The format is described in docs/training_data.md."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..names import as_bytes
from ..parsing import json_object

FORMAT = 1
MEMBERS = ("source.png", "target.png", "sketch.png", "coarse.png", "flow.npz", "json")
PICTURES = MEMBERS[:4]
PNG = b"\x89PNG\r\n\x1a\n"
JOURNAL, SUMMARY = "journal.jsonl", "dataset.json"
BLOCK = tarfile.BLOCKSIZE
# Guards against files of a few bytes that unpack to gigabytes.
LARGEST = 4096 * 4096       # pixels of a picture, unless the dataset's settings ask for larger ones
BYTES_A_PIXEL = 2 * 8 + 8   # flow and visibility in the widest types
LARGEST_JSON = 16 << 20     # bytes


class DatasetError(ValueError):
    """A folder is not a usable dataset; the text says why."""


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
    return f"{plain}-{hashlib.sha256(as_bytes(name)).hexdigest()[:8]}"


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


def decode(key: str, members: Mapping[str, bytes], largest: int = LARGEST) -> Sample:
    """A sample from its members.

    Args:
        largest: pixels of a picture that are unpacked.

    Raises:
        ValueError: a member cannot be read, sizes differ, a number is not finite, or drags do not pair up; the text names it.
    """
    pictures = []
    for end in PICTURES:
        try:
            with Image.open(io.BytesIO(members[end]), formats=["PNG"]) as image:
                if image.width * image.height > largest:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {largest} are unpacked")
                image.load()
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise almost anything on damaged files
            raise ValueError(f"{end} cannot be read ({type(error).__name__}: {error})") from None
        pictures.append(torch.from_numpy(pixels.astype(np.float32) / 255).movedim(-1, 0).contiguous())
    size = pictures[0].shape[-2:]
    flow, visible = (torch.from_numpy(a) for a in read_flow(members["flow.npz"], size[0] * size[1]))
    if any(p.shape[-2:] != size for p in pictures) or flow.shape != (2, *size) or visible.shape != size:
        raise ValueError("its pictures and its flow differ in size")
    if not flow.isfinite().all():
        raise ValueError("its flow is not finite")
    info = read_info(members["json"])
    try:
        drags = [torch.tensor(info.pop(n), dtype=torch.float32).reshape(-1, 2) for n in ("drag_source", "drag_target")]
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"json cannot be read ({type(error).__name__}: {error})") from None
    if len(drags[0]) != len(drags[1]) or not all(d.isfinite().all() for d in drags):
        raise ValueError(f"its drags do not fit together: {len(drags[0])} sources and {len(drags[1])} targets, all of which must "
                         "be finite")
    return Sample(key, *pictures, flow, visible, *drags, info)


def read_flow(data: bytes, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Flow (2, H, W) float32 and visibility (H, W) bool of a flow.npz.

    Args:
        pixels: of the sample's pictures; what claims to unpack to much more is not unpacked.

    Raises:
        ValueError: it cannot be read; the text says why.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > BYTES_A_PIXEL * pixels + (64 << 10):
            raise ValueError(f"it would unpack to {size} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            flow, visible = arrays["flow"], arrays["visible"]
            if flow.dtype.kind not in "fiu" or visible.dtype.kind not in "biu":
                raise ValueError(f"flow is of type {flow.dtype}, visible of type {visible.dtype}")
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told as that
                return flow.astype(np.float32), visible.astype(bool)
    except Exception as error:  # zipfile's and zlib's errors have no common base
        raise ValueError(f"flow.npz cannot be read ({type(error).__name__}: {error})") from None


def read_info(data: bytes) -> dict[str, Any]:
    """The object of a json member.

    Raises:
        ValueError: it cannot be read; the text says why.
    """
    try:
        if len(data) > LARGEST_JSON:
            raise ValueError(f"it has {len(data)} bytes, at most {LARGEST_JSON} are read")
        return json_object(data)
    except ValueError as error:
        raise ValueError(f"json cannot be read ({type(error).__name__}: {error})") from None


def png_pixels(data: bytes) -> int:
    """Width x height as a PNG's header states them; 0 for what is no PNG."""
    return math.prod(struct.unpack(">II", data[16:24])) if data[:8] == PNG and len(data) >= 24 else 0
