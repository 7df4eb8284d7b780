"""Motion LoRA files, and motion LoRAs on a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from ...core import atomic
from ...core.names import printable
from ...core.weights import motion_lora
from ...core.weights.weight_file import WeightFile
from ..models.network import unet_shapes


def write(path: Path, lora: dict[str, Tensor]) -> None:
    """Write a LoRA in ComfyUI's form; the file appears whole or not at all.

    Raises:
        LoraFileError: it is empty, or has values that are not finite.
        WriteError: the file cannot be written.
    """
    motion_lora.check_values(lora)
    with atomic.replacing(path) as partial:
        save_file({n: t.contiguous() for n, t in lora.items()}, str(partial), metadata={"framepainter.kind": "motion LoRA"})


def load(path: Path, model: ModelPatcher) -> dict[str, Tensor]:
    """A motion LoRA file of either form, checked against a model.

    Raises:
        LoraFileError, WeightsError: not such a file, a broken one, or another network's; the text names the file.
    """
    shapes = unet_shapes(model)
    if path.suffix.lower() in (".safetensors", ".sft"):
        lora = WeightFile.open(path, "Copy it again, or train the LoRA again.").read()
    else:
        lora = motion_lora.read_published(path, shapes)
    motion_lora.check(lora, shapes, printable(path.name))
    return lora


def save_published(path: Path, lora: dict[str, Tensor], model: Any) -> None:
    """Write the I2VEdit authors' form.

    Raises:
        LoraFileError: it is empty, has values that are not finite, or other layers than the temporal ones.
        WriteError: the file cannot be written.
    """
    motion_lora.check_values(lora)
    motion_lora.write_published(path, motion_lora.to_published(lora, unet_shapes(model)))


def with_lora(model: ModelPatcher, lora: Mapping[str, Tensor], strength: float) -> ModelPatcher:
    """The model with a LoRA on it, by the host's own loader; a clone."""
    return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)[0]
