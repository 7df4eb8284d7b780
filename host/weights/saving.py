"""Models -> files that `loading` reads: the pack's single file, or the two files of the authors' form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file

from ...core import atomic
from ...core.weights import diffusers_svd, framepainter
from ...core.weights.weight_file import WeightFile
from ..models.network import trained
from .building import EPSILON_DIFFUSERS
from .loading import Absent, FramePainterWeights, WeightsError


def save(path: Path, model: ModelPatcher, weights: FramePainterWeights, clip_vision: Any, vae: Any,
         metadata: dict[str, str]) -> Path:
    """Write the pack's single file. Appears whole or not at all.

    Args:
        path: the .safetensors file to make.
        model: the UNet, LoRAs on it included (they are merged, as core's checkpoint saving does).
        clip_vision, vae: None or Absent are left out.
        metadata: text fields to add, such as the workflow.

    Raises:
        WeightsError: not enough room on the disk.
        WriteError: it cannot be written.
    """
    clip_vision, vae = (None if part is None or isinstance(part, Absent) else part for part in (clip_vision, vae))
    parts = [vae.first_stage_model] if vae is not None else []
    parts += [clip_vision.model] if clip_vision is not None else []
    with atomic.replacing(path) as partial:
        _check_room(path, model, weights, parts)
        _write(partial, model, weights, clip_vision, vae, metadata)
    return path


def _check_room(path: Path, model: ModelPatcher, weights: FramePainterWeights, parts: list[torch.nn.Module]) -> None:
    """Refuse what cannot fit before it is written."""
    parts = [model.model.diffusion_model, weights.matching.model, weights.encoder.model, *parts]
    need, free = sum(mm.module_size(part) for part in parts), shutil.disk_usage(path.parent).free
    if need > free:
        raise WeightsError(f"'{path}' needs {need / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free. "
                           "Make room or choose another output folder.")


def _write(path: Path, model: ModelPatcher, weights: FramePainterWeights, clip_vision: Any, vae: Any,
           metadata: dict[str, str]) -> None:
    unet = model.model.diffusion_model
    norm = diffusers_svd.diffusers_epsilon_norms(diffusers_svd.layout_from_comfy(unet.state_dict()))[0]
    known = trained(model.model)
    metadata = {
        **metadata,
        **({} if known is None else known.metadata()),
        "framepainter.format": "1",
        "framepainter.head_width": str(model.model.model_config.unet_config["num_head_channels"]),
        "framepainter.group_norm_epsilon": "diffusers" if unet.get_submodule(norm).eps == EPSILON_DIFFUSERS else "svd",
    }
    extra = {framepainter.MATCHING + n: t for n, t in weights.matching.model.state_dict().items()}
    extra |= {framepainter.ENCODER + n: t for n, t in weights.encoder.model.state_dict().items()}
    comfy.sd.save_checkpoint(str(path), model, vae=vae, clip_vision=clip_vision, metadata=metadata, extra_keys=extra)


def save_pair(path: Path, model: ModelPatcher, weights: FramePainterWeights, metadata: dict[str, str]) -> tuple[Path, Path]:
    """Write the two files of the authors' form: the UNet with diffusers' names, and the control encoder. Both appear or none.

    Args:
        path: `<name>.safetensors`; the files are `<name>_unet.safetensors` and `<name>_encoder.safetensors`.
        model, weights, metadata: see `save`.

    Raises:
        WeightsError, WriteError: see `save`.
    """
    stem = path.stem.rstrip("_")
    files = {part: path.with_name(f"{stem}_{part}.safetensors") for part in ("unet", "encoder")}
    with (atomic.replacing(files["unet"]) as unet_file, atomic.replacing(files["encoder"]) as encoder_file,
          atomic.scratch(path) as whole):
        _check_room(path, model, weights, [])
        # Through the single file, so that LoRAs are merged by the host's own saving, whatever its version.
        _write(whole, model, weights, None, None, metadata)
        file = WeightFile.open(whole)
        unet = file.under(framepainter.UNET)
        names = framepainter.join_diffusers_unet(unet, file.under(framepainter.MATCHING))
        contents = {
            unet_file: {new: framepainter.UNET + old if old in unet else old for old, new in names.items()},
            encoder_file: file.under(framepainter.ENCODER),
        }
        for partial, wanted in contents.items():
            save_file(file.read(wanted), str(partial), metadata=file.header.metadata)
    return files["unet"], files["encoder"]
