"""Motion LoRA files, and motion LoRAs on a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from ...core import atomic
from ...core.weights import motion_lora
from ..network import unet_shapes


def write(path: Path, lora: dict[str, Tensor]) -> None:
    """Write a LoRA in ComfyUI's form; the file appears whole or not at all."""
    with atomic.replacing(path) as partial:
        save_file({n: t.contiguous() for n, t in lora.items()}, str(partial), metadata={"framepainter.kind": "motion LoRA"})


def load(path: Path, model: ModelPatcher) -> dict[str, Tensor]:
    """A motion LoRA file of either form, checked against a model.

    Raises:
        LoraFileError, ValueError: not such a file, or another network's; the text names the file.
    """
    if path.suffix.lower() in (".safetensors", ".sft"):
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        if not any(name.endswith(".lora_down.weight") for name in lora):
            raise motion_lora.LoraFileError(f"'{path.name}' holds no LoRA matrices.")
    else:
        lora = motion_lora.read_published(path, unet_shapes(model))
    check_fits(model, lora, path.name)
    return lora


def save_published(path: Path, lora: dict[str, Tensor], model: Any) -> None:
    """Write the I2VEdit authors' form."""
    motion_lora.write_published(path, motion_lora.to_published(lora, unet_shapes(model)))


def with_lora(model: ModelPatcher, lora: Mapping[str, Tensor], strength: float) -> ModelPatcher:
    """The model with a LoRA on it, by the host's own loader; a clone."""
    return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)[0]


def check_fits(model: ModelPatcher, lora: Mapping[str, Tensor], name: str) -> None:
    """Refuse a LoRA of another network, which the host would skip layer by layer with a line in its log.

    Raises:
        ValueError: the text names LoRA and layer.
    """
    shapes = unet_shapes(model)
    for entry, tensor in lora.items():
        if entry.endswith(".lora_down.weight"):
            layer = entry.removeprefix("diffusion_model.").removesuffix(".lora_down.weight")
            weight = shapes.get(f"{layer}.weight")
            if weight is None or weight[1] != tensor.shape[1]:
                raise ValueError(f"The motion LoRA '{name}' was trained on another network: its layer {layer} takes "
                                 f"{tensor.shape[1]} channels, this model has {'no such layer' if weight is None else weight[1]}.")
