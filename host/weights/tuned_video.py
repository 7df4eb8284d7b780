"""Tuned videos in files, and on a model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...core import atomic
from ...core.models.inflated import fresh_temporal, is_trained
from ...core.weights.tuned_video import TunedFileError, TunedVideo, from_file, from_low_rank, is_low_rank, to_low_rank
from .. import report
from ..attention.inflated import Settings, check_model, with_tuned
from ..models.identity import model_digest
from ..models.network import UNET

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class Written(NamedTuple):
    """path: of the file.  error: of the low-rank form, relative; 0 for the full one."""

    path: Path
    error: float


def save(path: Path, tuned: TunedVideo, precision: str = "fp16", rank: int = 0, model: ModelPatcher | None = None) -> Written:
    """Write a tuned video; the file appears whole or not at all.

    Args:
        precision: one of DTYPES.  rank: 0 for the full form, else that of the low-rank one.
        model: the one that was tuned; the low-rank form needs it.

    Raises:
        TunedFileError: no model, or another one.
        WrongModel: not a Stable Diffusion 1.x model.
        WriteError: the file cannot be written.
    """
    tensors, error = tuned.tensors, 0.0
    if rank:
        if model is None:
            raise TunedFileError("the low-rank form holds what tuning added to a model. Connect the checkpoint that went into Tune "
                                 "on Video to 'model'.")
        check_model(model)
        _check_base(tuned, model)
        tensors, error = to_low_rank(tensors, start_of(model, tuned), rank)
    tensors = {name: t.to(DTYPES[precision]).contiguous() for name, t in tensors.items()}
    more = {"rank": rank, "error": round(error, 6)} if rank else {}
    with atomic.replacing(path) as partial:
        save_file(tensors, str(partial), metadata=tuned.metadata(form="low rank" if rank else "full", **more))
    return Written(path, error)


def read(path: Path) -> TunedVideo:
    """A tuned video file; a low-rank one still has its thin matrices, see `on_model`.

    Raises:
        TunedFileError: broken, or another kind of file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            return from_file({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    except TunedFileError as error:
        raise TunedFileError(f"'{path.name}' cannot be used: {error}") from None
    except (SafetensorError, OSError) as error:
        raise TunedFileError(f"'{path.name}' is broken and cannot be read ({error}). Copy it again, or tune again.") from None


def load(path: Path, model: ModelPatcher) -> TunedVideo:
    """A tuned video file in full form, for the model that it is to go on.

    Raises:
        WrongModel: not a Stable Diffusion 1.x model.
        TunedFileError: broken, another kind of file, or for another network.
    """
    tuned = read(path)
    if not is_low_rank(tuned.tensors):
        return tuned
    try:
        tensors = from_low_rank(tuned.tensors, start_of(model, tuned))
    except TunedFileError as error:
        raise TunedFileError(f"'{path.name}' cannot be used: {error}") from None
    return TunedVideo(tensors, tuned.base, tuned.seed, tuned.random_bias)


def start_of(model: ModelPatcher, tuned: TunedVideo) -> dict[str, Tensor]:
    """Where the tuned matrices started: the model's own query projections, and new temporal layers."""
    sites = check_model(model)
    weights = {name.removeprefix(UNET): first[0].detach().float().cpu() for name, (first, *_) in model.get_key_patches(UNET).items()
               if is_trained(name)}
    return weights | fresh_temporal(sites, tuned.seed, tuned.random_bias)


def base_of(model: ModelPatcher) -> str:
    """Digest of a model without its LoRAs."""
    return model_digest(model, patched=False)


def on_model(model: ModelPatcher, tuned: TunedVideo, settings: Settings) -> ModelPatcher:
    """A clone with a tuned video's weights. Another checkpoint than the tuned one is allowed, with a warning.

    Raises:
        WrongModel: not a Stable Diffusion 1.x model, or the weights are another network's.
    """
    check_model(model)
    if tuned.base != base_of(model):
        report.warn("the video was tuned on another checkpoint than 'model', or on this one at another weight_dtype; its query "
                    "projections may not quite fit. Connect the same checkpoint, or tune again on this one.")
    return with_tuned(model, tuned.tensors, settings)


def _check_base(tuned: TunedVideo, model: ModelPatcher) -> None:
    if tuned.base != base_of(model):
        raise TunedFileError("'model' is another one than was tuned. Connect the checkpoint that went into Tune on Video, at the "
                             "same weight_dtype.")
