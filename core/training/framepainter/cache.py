"""Latents and image embeddings of a dataset, computed once and kept beside it.

    <dataset>/cache-<hash>/cache.json            what they were made from
    <dataset>/cache-<hash>/000000.safetensors    of 32 examples: latents, image, embedding

The hash covers the dataset, the VAE, the image encoder and the size, so another of these makes another cache. Files appear only
when they are complete; an interrupted cache resumes where it was. inf and NaN are never kept, and files of earlier versions that
hold them are made again. Reading maps the files, so memory holds no copy.

Legend: N examples, H W pixels trained on, h w latent size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ... import atomic
from ...finite import BY_CLIP_VISION, BY_VAE, check_finite, not_finite
from ...images import keep_aspect_size, resize_control
from ...names import as_bytes
from ...signals.drag import draw_drag
from ..examples import Examples

SHARD = 32  # examples a file
MIXED = ("sketch", "coarse", "drag")
CACHED = ("latents", "image", "embedding")
KEPT = "The pairs before it are kept. If only this pair fails, build the dataset without it."


class CacheError(ValueError):
    """A dataset cannot be used for training. The text says which, why and what to do."""


def dataset_digest(folder: Path) -> str:
    """A digest of a dataset's settings and of the names, sizes and contents of its shards."""
    if not (folder / "dataset.json").is_file():
        raise CacheError(f"'{folder}' is no dataset: it has no dataset.json. Give the path that Build Dataset or Procedural "
                         "Dataset returns.")
    state = hashlib.sha256((folder / "dataset.json").read_bytes())
    for shard in sorted(folder.glob("*.tar")):
        with shard.open("rb") as file:
            state.update(as_bytes(f"{shard.name} {shard.stat().st_size}"))
            while block := file.read(1 << 20):
                state.update(block)
    return state.hexdigest()[:16]


def training_size(height: int, width: int, pixels: int, multiple: int) -> tuple[int, int]:
    """(H, W) to train at: the pictures' own size, or one of about `pixels` in area if they are larger (0: no limit).

    Args:
        multiple: pixels that every level of the network divides; correspondences of tokens need whole cells.

    Raises:
        CacheError: the pictures' sides are no multiples.
    """
    if pixels and height * width > pixels:
        return keep_aspect_size(height, width, pixels, multiple)
    if height % multiple or width % multiple:
        near = [max(1, round(side / multiple)) * multiple for side in (width, height)]
        raise CacheError(f"the dataset's pictures are {width} x {height}; this network needs sides that are multiples of "
                         f"{multiple}. Build the dataset with {near[0]} x {near[1]}.")
    return height, width


def fit(picture: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, h, w), antialiased."""
    if picture.shape[-2:] == (height, width):
        return picture
    return F.interpolate(picture[None], size=(height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def fit_flow(flow: Tensor, visible: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Resize flow (2, h, w), its lengths too, and visibility (h, w), each pixel taking the nearest old one's."""
    h, w = flow.shape[-2:]
    if (h, w) == (height, width):
        return flow, visible
    scale = torch.tensor([width / w, height / h])[:, None, None]
    return (F.interpolate(flow[None], size=(height, width), mode="nearest")[0] * scale,
            F.interpolate(visible[None, None].float(), size=(height, width), mode="nearest")[0, 0] > 0.5)


def control_picture(sample: Any, signal: str, height: int, width: int) -> Tensor:
    """(3, H, W) uint8: what the control encoder reads of a sample's signal; black for drags, which it does not read."""
    if signal == "drag":
        return torch.zeros(3, height, width, dtype=torch.uint8)
    if signal == "sketch":
        control = resize_control(sample.sketch[None], height, width)[0]
    else:
        control = fit(sample.coarse, height, width)
    return (control * 255).round().to(torch.uint8)


def signal_picture(sample: Any, signal: str, height: int, width: int) -> Tensor:
    """(3, H, W) in [0, 1]: a sample's signal to look at."""
    if signal != "drag":
        return control_picture(sample, signal, height, width).float() / 255
    h, w = sample.source.shape[-2:]
    scale = torch.tensor([width / w, height / h])
    return draw_drag(*((p.float() + 0.5) * scale - 0.5 for p in (sample.drag_source, sample.drag_target)), height, width)


def drag_shares(sample: Any) -> Tensor:
    """(K, 4) a sample's drags, source x, y, target x, y, as shares of width and height."""
    height, width = sample.source.shape[-2:]
    points = torch.cat([sample.drag_source, sample.drag_target], -1).float() + 0.5
    return points / torch.tensor([width, height, width, height])


# ---- making ----------------------------------------------------------------------------------------------------------


def make_cache(folder: Path, key: str, index: Sequence[Any], size: tuple[int, int],
               encode: Callable[[Any, int, int, int], Mapping[str, Tensor]],
               report: Callable[[int, int], None] | None = None) -> Path:
    """Fill a dataset's cache; files that are there already stay.

    Args:
        folder: of the dataset.  key: a digest of all that the contents depend on.
        index: the dataset.  size: H, W.
        encode: (sample, number, H, W) -> latents (2, 4, h, w), image (4, h, w), embedding (1, D).
        report: told (done, all) after every example; may raise to stop, files that are whole stay.

    Raises:
        NotFinite: what was made of a pair contains inf or NaN; the text names it.
    """
    place = folder / f"cache-{key}"
    with atomic.write_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    atomic.sweep(place)
    count = len(index)
    for begin in range(0, count, SHARD):
        path, rows = place / f"{begin // SHARD:06d}.safetensors", range(begin, min(begin + SHARD, count))
        if not _sound(path, len(rows)):
            made = []
            for i in rows:
                sample = index[i]
                made.append(encode(sample, i, *size))
                pair = f"the pair '{getattr(sample, 'key', i)}'"
                check_finite(pair, {n: made[-1][n] for n in ("latents", "image")}, f"{BY_VAE} {KEPT}")
                check_finite(pair, {"embedding": made[-1]["embedding"]}, f"{BY_CLIP_VISION} {KEPT}")
                if report is not None:
                    report(i + 1, count)
            tensors = {name: torch.stack([one[name] for one in made]).cpu().contiguous() for name in made[0]}
            with atomic.replacing(path) as partial:
                save_file(tensors, str(partial))
        elif report is not None:
            report(rows[-1] + 1, count)
    summary, text = place / "cache.json", json.dumps({"format": 1, "examples": count, "size": list(size)})
    if not summary.is_file() or summary.read_text(encoding="utf-8", errors="replace") != text:  # the place may be read-only
        atomic.write_text(summary, text)
    return place


def _sound(path: Path, rows: int) -> bool:
    """Whether a file is there with all its examples, every number finite."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = [file.get_tensor(name) for name in CACHED]
    except (OSError, SafetensorError):
        return False
    return all(len(t) == rows for t in tensors) and not not_finite(dict(zip(CACHED, tensors, strict=True)))


# ---- reading ---------------------------------------------------------------------------------------------------------


class CachedExamples:
    """A dataset with its cache, in the form that `objective.batch_loss` takes batches from.

    With the signal "mixed" every sample counts three times, once with each signal, so rows say which one is meant.
    """

    def __init__(self, index: Sequence[Any], place: Path, signal: str, size: tuple[int, int]):
        self.index, self.place, self.size = index, place, size
        self.signals = MIXED if signal == "mixed" else (signal,)
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.index) * len(self.signals)

    def _cached(self, row: int) -> dict[str, Tensor]:
        shard, at = divmod(row, SHARD)
        if shard not in self._files:
            self._files[shard] = safe_open(str(self.place / f"{shard:06d}.safetensors"), framework="pt").__enter__()
        file = self._files[shard]
        return {name: file.get_slice(name)[at] for name in CACHED}

    def take(self, rows: Tensor, device: torch.device | str = "cpu") -> Examples:
        """The examples at (B,) row numbers, on a device."""
        parts = []
        for row in rows.tolist():
            number, kind = divmod(row, len(self.signals))
            sample = self.index[number]
            flow, visible = fit_flow(sample.flow.float(), sample.visible, *self.size)
            signal, drags = self.signals[kind], drag_shares(sample)
            parts.append({**self._cached(number), "control": control_picture(sample, signal, *self.size), "flow": flow,
                          "visible": visible, "drag": drags if signal == "drag" else torch.full_like(drags, math.nan)})
        most = max(len(p["drag"]) for p in parts)  # a sample whose frames barely move may have fewer
        for part in parts:
            part["drag"] = F.pad(part["drag"], (0, 0, 0, most - len(part["drag"])), value=math.nan)
        batch = {name: torch.stack([p[name] for p in parts]).to(device) for name in parts[0]}
        if "drag" not in self.signals:
            del batch["drag"]
        if self.signals == ("drag",):
            del batch["control"]
        return Examples(**batch)

    def close(self) -> None:
        """Let go of the mapped files."""
        for file in self._files.values():
            file.__exit__(None, None, None)
        self._files.clear()
