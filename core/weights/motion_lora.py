"""Motion LoRA files: ComfyUI's LoRA form <-> the lists without names that I2VEdit's authors published.

Their file is a torch.save of up_0, down_0, up_1, down_1, ... without names; which layer is which follows from the order:
down_blocks, up_blocks, mid_block under diffusers' names, inside a temporal block as in `core.training.lora.TEMPORAL`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import atomic
from ..names import printable
from . import diffusers_svd
from .diffusers_svd import TEMPORAL
from .pickled import load_tensors

PREFIX = "diffusion_model."
_PLACES = ("down_blocks.", "up_blocks.", "mid_block.")


class LoraFileError(ValueError):
    """A file is not a motion LoRA, or belongs to another network. The text says why."""


def published_order(unet_names: Iterable[str]) -> list[str]:
    """The layers of a motion LoRA in the order of the published files, by ComfyUI's names without prefix.

    Args:
        unet_names: all parameter names of the UNet, ComfyUI's, without prefix.
    """
    names = list(unet_names)
    layout = diffusers_svd.layout_from_comfy(names)
    blocks = {}
    for theirs, ours, kind in diffusers_svd.module_table(layout):
        if kind == "attention":
            blocks[theirs] = ours
    present = set(names)
    out = []
    for place in _PLACES:
        for theirs in (b for b in blocks if b.startswith(place)):
            block = 0
            while f"{blocks[theirs]}.time_stack.{block}.attn1.to_q.weight" in present:
                out += [f"{blocks[theirs]}.time_stack.{block}.{leaf}" for leaf in TEMPORAL]
                block += 1
    return out


def read_published(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A published list as a LoRA that ComfyUI's loaders read. No pickled code runs.

    Args:
        shapes: of the UNet's parameters, by ComfyUI's names without prefix.

    Raises:
        LoraFileError: not such a list, or made for another network; the text names the file.
    """
    name = printable(path.name)
    try:
        values = load_tensors(path)
    except ValueError as error:
        raise LoraFileError(f"'{name}' cannot be read as a list of tensors ({error}).") from None
    if not isinstance(values, list | tuple) or not all(isinstance(v, Tensor) and v.ndim == 2 for v in values):
        raise LoraFileError(f"'{name}' holds no flat list of matrices. A motion LoRA of the I2VEdit authors has pairs of "
                            "up and down matrices and no names; other LoRA files are for ComfyUI's own loaders.")
    layers = published_order(shapes)
    if len(values) != 2 * len(layers):
        raise LoraFileError(f"'{name}' has {len(values)} matrices, the network's {len(layers)} temporal layers need "
                            f"{2 * len(layers)}. It was made for another network.")
    out = {}
    for number, layer in enumerate(layers):
        up, down = (v.detach().float().contiguous() for v in values[2 * number:2 * number + 2])
        outer, inner = shapes[f"{layer}.weight"]
        if up.shape != (outer, down.shape[0]) or down.shape[1] != inner or not len(down):
            raise LoraFileError(f"'{name}' was made for another network: its matrices {2 * number} and {2 * number + 1} are "
                                f"{tuple(up.shape)} and {tuple(down.shape)}, layer {layer} is {outer} x {inner}.")
        out |= named(layer, up, down)
    return out


def named(layer: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """One layer's entries in ComfyUI's form; the alpha makes the scale 1."""
    return {f"{PREFIX}{layer}.lora_up.weight": up, f"{PREFIX}{layer}.lora_down.weight": down,
            f"{PREFIX}{layer}.alpha": torch.tensor(float(down.shape[0]))}


def check(lora: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Refuse a file that is not a motion LoRA of this network; the host would skip it layer by layer with a line in its log.

    Args:
        lora: in ComfyUI's form.  shapes: of the UNet's parameters, by ComfyUI's names without prefix.  name: of the file.

    Raises:
        LoraFileError: a matrix without its partner, of another size, or with values that are not finite; the text names the file,
            the layer and the remedy.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for entry, tensor in lora.items():
        layer, found, part = entry.removeprefix(PREFIX).partition(".lora_")
        if found:
            parts.setdefault(layer, {})[part] = tensor
    if not parts:
        raise LoraFileError(f"'{name}' holds no LoRA matrices.")
    again = "Copy the file again, or train the LoRA again."
    for layer, found in parts.items():
        up, down, weight = found.get("up.weight"), found.get("down.weight"), shapes.get(f"{layer}.weight")
        shown = printable(layer)
        if up is None or down is None:
            lacks = "up" if up is None else "down"
            raise LoraFileError(f"'{name}' is not a complete motion LoRA: layer {shown} has no {lacks} matrix. {again}")
        if weight is None or len(weight) != 2 or down.ndim != 2 or weight[1] != down.shape[1]:
            takes = down.shape[1] if down.ndim == 2 else list(down.shape)
            has = "no such layer" if weight is None or len(weight) != 2 else weight[1]
            raise LoraFileError(f"The motion LoRA '{name}' was trained on another network: its layer {shown} takes {takes} "
                                f"channels, this model has {has}.")
        if tuple(up.shape) != (weight[0], len(down)) or not len(down):
            raise LoraFileError(f"'{name}' is no motion LoRA of this network: layer {shown}, {weight[0]} x {weight[1]}, has an up "
                                f"matrix {list(up.shape)} and a down matrix {list(down.shape)}. {again}")
        alpha = lora.get(f"{PREFIX}{layer}.alpha", lora.get(f"{layer}.alpha"))
        values = [up, down] if alpha is None else [up, down, alpha]
        if alpha is not None and alpha.numel() != 1 or not all(t.is_floating_point() for t in (up, down)):
            raise LoraFileError(f"'{name}' is no motion LoRA: the numbers of layer {shown} are of another kind. {again}")
        if not all(t.float().isfinite().all() for t in values):
            raise LoraFileError(f"'{name}' has values that are not finite, in layer {shown}. Train the LoRA again, with a lower "
                                "learning rate or in fp32.")


def check_values(lora: Mapping[str, Tensor]) -> None:
    """Refuse to keep a LoRA that is empty or has values that are not finite.

    Raises:
        LoraFileError: the text says which, and the remedy.
    """
    if not lora:
        raise LoraFileError("'lora' is empty. Connect the LoRA of Train Motion LoRA or Load Motion LoRA.")
    for name, tensor in lora.items():
        if not tensor.float().isfinite().all():
            raise LoraFileError(f"'lora' has values that are not finite, in {printable(name)}, and is not kept. Train it again, "
                                "with a lower learning rate or in fp32.")


def to_published(lora: Mapping[str, Tensor], unet_names: Iterable[str]) -> list[Parameter]:
    """A LoRA in ComfyUI's form as the published list, alphas multiplied in.

    Raises:
        LoraFileError: a temporal layer is missing, or there are others.
    """
    layers = published_order(unet_names)
    wanted = {f"{PREFIX}{layer}.{part}.weight" for layer in layers for part in ("lora_up", "lora_down")}
    have = {n for n in lora if not n.endswith(".alpha")}
    if have != wanted:
        missing, others = sorted(wanted - have), sorted(have - wanted)
        raise LoraFileError(f"The published form holds all {len(layers)} temporal layers and nothing else; this LoRA lacks "
                            f"{len(missing)} of their matrices and has {len(others)} others, such as {(missing + others)[0]}.")
    out: list[Parameter] = []
    for layer in layers:
        up, down = (lora[f"{PREFIX}{layer}.{part}.weight"].float() for part in ("lora_up", "lora_down"))
        alpha = lora.get(f"{PREFIX}{layer}.alpha")
        if alpha is not None and alpha.numel() != 1 or up.ndim != 2 or down.ndim != 2 or up.shape[1] != len(down) or not len(down):
            raise LoraFileError(f"'lora' is no motion LoRA: the matrices or the alpha of layer {layer} have other sizes "
                                f"({list(up.shape)}, {list(down.shape)}). Connect the LoRA of Train or Load Motion LoRA.")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        out += [Parameter((up * scale).contiguous(), requires_grad=False), Parameter(down.contiguous(), requires_grad=False)]
    return out


def write_published(path: Path, parameters: Sequence[Tensor]) -> None:
    """Write the published form; the file appears only when it is complete."""
    file = io.BytesIO()  # torch reports a full disk as an error of its own, without the reason
    torch.save(list(parameters), file)
    atomic.write_bytes(path, file.getvalue())
