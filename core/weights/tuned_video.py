"""The file of a tuned video: query projections and temporal layers (Video-P2P, stage 1).

Tensors have ComfyUI's names without prefix, `<block>.attn1.to_q.weight`, `<block>.attn_temp.to_out.0.bias` and so on. Two forms:

full      every tensor as it is.
low rank  each matrix as two low-rank factors, `<name>.up` (out, r) and `<name>.down` (r, in), whose product is what tuning added to
          where the matrix started: the model's own weight, or a new temporal layer that its seed tells. An approximation; its error
          is in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..parsing import json_value
from ..randomness import seeded

KIND, FORMAT = "tuned video", "1"
UP, DOWN = ".up", ".down"
SPARE, PASSES = 8, 4  # further directions and passes of the randomised decomposition (Halko et al. 2011, section 4)


class TunedFileError(ValueError):
    """A file holds no tuned video, or belongs to another model."""


@dataclass(frozen=True)
class TunedVideo:
    """A tuned video's weights.

    tensors: by name, full.
    base: digest of the model that was tuned, without its LoRAs.
    seed, random_bias: of the temporal layers before tuning, see `core.models.inflated.fresh_temporal`.
    """

    tensors: dict[str, Tensor]
    base: str
    seed: int
    random_bias: bool

    def metadata(self, **more: Any) -> dict[str, str]:
        """What a file's header says, as text."""
        values = {"kind": KIND, "format": FORMAT, "base": self.base, "seed": self.seed, "random_bias": self.random_bias, **more}
        return {f"framepainter.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def from_file(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> TunedVideo:
    """The contents of a file; a low-rank one still has its factors.

    Raises:
        TunedFileError: another kind of file, or one of a newer version.
    """
    values = {name: metadata.get(f"framepainter.{name}", "") for name in ("kind", "format", "base", "seed", "random_bias")}
    if values["kind"] != KIND:
        raise TunedFileError(f"it holds no tuned video ({values['kind'] or 'no kind'} in its header). Choose a file written by "
                             "Save Tuned Video.")
    if values["format"] != FORMAT:
        raise TunedFileError(f"it has format {values['format']}, this version reads {FORMAT}. Update ComfyUI-FramePainter, or tune "
                             "again.")
    try:
        return TunedVideo(tensors, values["base"], int(values["seed"]), bool(json_value(values["random_bias"])))
    except ValueError as error:
        raise TunedFileError(f"its header is damaged ({error}). Copy it again, or tune again.") from None


def is_low_rank(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is of the low-rank form."""
    return any(name.endswith(UP) for name in tensors)


def to_low_rank(tuned: Mapping[str, Tensor], start: Mapping[str, Tensor], rank: int,
                seed: int = 0) -> tuple[dict[str, Tensor], float]:
    """The low-rank form.

    Args:
        start: where each matrix started.  rank: r, at most.  seed: of the decomposition.

    Returns:
        Tensors, and the error: what is lost of all that tuning added, relative, in the Frobenius norm.
    """
    out: dict[str, Tensor] = {}
    lost = added = 0.0
    with seeded(seed):
        for name, tensor in tuned.items():
            if tensor.ndim != 2:
                out[name] = tensor
                continue
            change = tensor.float() - start[name].float()
            kept = min(rank, *change.shape)
            u, s, v = torch.svd_lowrank(change, min(kept + SPARE, *change.shape), PASSES)
            out[name + UP], out[name + DOWN] = u[:, :kept] * s[:kept].sqrt(), (v[:, :kept] * s[:kept].sqrt()).T
            lost += float((change - out[name + UP] @ out[name + DOWN]).pow(2).sum())
            added += float(change.pow(2).sum())
    return {n: t.contiguous() for n, t in out.items()}, (lost / added) ** 0.5 if added else 0.0


def from_low_rank(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The full form of a low-rank one.

    Raises:
        TunedFileError: a matrix that the model does not have, or of another size.
    """
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(DOWN):
            continue
        base = name.removesuffix(UP)
        if base == name:
            out[name] = tensor
            continue
        down = tensors.get(base + DOWN)
        if down is None or base not in start or (len(tensor), down.shape[-1]) != tuple(start[base].shape):
            here = f"a matrix of {tuple(start[base].shape)}" if base in start else "no such matrix"
            size = len(tensor), None if down is None else down.shape[-1]
            raise TunedFileError(f"it belongs to another network than 'model': {base} changes by a matrix of {size}, the model has "
                                 f"{here}. Connect the model that the video was tuned on.")
        out[base] = start[base].float() + tensor.float() @ down.float()
    return out
