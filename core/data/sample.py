"""A training pair and its encoding as members of a tar shard.

The format is described in docs/training_data.md."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMAT = 1
MEMBERS = ("source.png", "target.png", "sketch.png", "coarse.png", "flow.npz", "json")
PICTURES = MEMBERS[:4]
JOURNAL, SUMMARY = "journal.jsonl", "dataset.json"
BLOCK = tarfile.BLOCKSIZE


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
