"""Weight patches beside the weights: LoRAs that act on some rows of a pass only.

ComfyUI merges weight patches into the weights. If a source without them shares a pass with an edit that has them, they are removed
from the weights and their effect is added to the layers' outputs, for the rows that a Gate names.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import comfy.lora
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.inversion.trajectory import TrajectoryError
from ..models.network import UNET

Delta = Callable[[Tensor], Tensor]  # a layer's input to what patches add to its output


class Gate:
    """When bypassed weight patches act.

    share: of a pass's rows, (first, last) as fractions, those on which they act.  past: whether this is a pass of clip 0, in which
    clip 0's patches act in place of the model's own.
    """

    def __init__(self) -> None:
        self.share = (0.0, 1.0)
        self.past = False


class BypassedLayer:
    """The forward of a layer whose weight patches are added to its output instead of its weights, so that the source's rows
    can do without.

    own, past: what the model's own patches add, and what those add that replace them in passes of clip 0; None is nothing.
    """

    def __init__(self, forward: Callable, own: Delta | None, past: Delta | None, gate: Gate):
        self.forward, self.own, self.past, self.gate = forward, own, past, gate

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.forward(x, *args, **kwargs)
        delta = self.past if self.gate.past else self.own
        first, last = (round(share * len(x)) for share in self.gate.share)
        if delta is None or first >= last:
            return out
        if (first, last) == (0, len(x)):
            return out + delta(x).to(out)
        out = out.clone()
        out[first:last] += delta(x[first:last]).to(out)
        return out


class _LowRank:
    """x -> sum of scale * up(down(x)) of a Linear."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor, float]]):
        self.pairs = pairs

    def __call__(self, x: Tensor) -> Tensor:
        out = 0
        for up, down, scale in self.pairs:
            out = out + scale * F.linear(F.linear(x, down.to(x)), up.to(x))
        return out


class _Dense:
    """x -> layer of the weights' difference, for patches of any kind on a Linear or convolution."""

    def __init__(self, layer: torch.nn.Module, weight: Tensor | None, bias: Tensor | None):
        self.layer, self.weight, self.bias = layer, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        if self.weight is None:
            shape = (-1,) if isinstance(self.layer, torch.nn.Linear) else (-1, *[1] * (x.ndim - 2))
            return bias.reshape(shape).expand(1, *[-1] * len(shape)) if len(shape) > 1 else bias
        if isinstance(self.layer, torch.nn.Linear):
            return F.linear(x, self.weight.to(x), bias)
        convolution = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[self.weight.ndim]
        layer = self.layer
        return convolution(x, self.weight.to(x), bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _low_rank(patches: list) -> _LowRank | None:
    """Plain LoRAs on a Linear as factors; None if any patch is something else."""
    pairs = []
    for strength, value, strength_model, offset, function in (p[:5] for p in patches):
        weights = getattr(value, "weights", None)
        if getattr(value, "name", "") != "lora" or strength_model != 1.0 or offset is not None or function is not None:
            return None
        up, down, alpha, *rest = weights
        if up.ndim != 2 or down.ndim != 2 or any(part is not None for part in rest):
            return None
        pairs.append((up, down, strength * (1.0 if alpha is None else alpha / down.shape[0])))
    return _LowRank(pairs)


def bypass_patches(model: ModelPatcher, gate: Gate, source: ModelPatcher | None = None) -> None:
    """Take weight patches of a clone's UNet off and add their effect to the layers' outputs instead.

    Args:
        source: a model whose patches stay in the weights, since source and edit share them; those of `model` begin with them.
            None: all patches come off.

    Raises:
        TrajectoryError: a patch on something that is neither a linear layer nor a convolution, or `source` has other patches.
    """
    kept = {} if source is None else {key: patches for key, patches in source.patches.items() if key.startswith(UNET) and patches}
    for key, patches in kept.items():
        begun = model.patches.get(key, [])[:len(patches)]
        if [id(patch) for patch in begun] != [id(patch) for patch in patches]:
            raise TrajectoryError("the LoRAs of 'model' do not begin with those that the clip was inverted with. Add the edit's "
                                  "own LoRA after them.")
    by_layer: dict[str, dict[str, list]] = {}
    for key, patches in model.patches.items():
        own = patches[len(kept.get(key, ())):]
        if key.startswith(UNET) and own:
            layer, _, leaf = key.rpartition(".")
            by_layer.setdefault(layer, {})[leaf] = own
    if not by_layer:
        return
    originals = model.get_key_patches(UNET)
    for name, leaves in by_layer.items():
        layer = model.model.get_submodule(name)
        linear = isinstance(layer, torch.nn.Linear)
        if not (linear or isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))) or set(leaves) - {
                "weight", "bias"}:
            raise TrajectoryError(f"Match Attention: a LoRA or weight patch changes '{name}', a {type(layer).__name__}, which "
                                  "cannot be switched off for the source. Use a LoRA of linear layers and convolutions, or invert "
                                  "with it on.")
        delta: Callable | None = _low_rank(leaves["weight"]) if linear and set(leaves) == {"weight"} else None
        if delta is None:
            change = {leaf: _change(f"{name}.{leaf}", originals[f"{name}.{leaf}"][0], kept.get(f"{name}.{leaf}", []), own)
                      for leaf, own in leaves.items()}
            delta = _Dense(layer, change.get("weight"), change.get("bias"))
        path = f"{name}.forward"
        model.add_object_patch(path, BypassedLayer(model.get_model_object(path), delta, delta, gate))
    model.patches = {k: p for k, p in model.patches.items() if not k.startswith(UNET)} | {k: list(p) for k, p in kept.items()}
    model.patches_uuid = uuid.uuid4()  # tells the host that loaded weights are stale


def _change(key: str, original: tuple, kept: list, own: list) -> Tensor:
    """The difference that patches make to a weight on which `kept` ones act first."""
    weight, convert = original
    weight = convert(weight.detach().float().cpu().clone(), inplace=True)
    before = comfy.lora.calculate_weight(kept, weight.clone(), key) if kept else weight
    return comfy.lora.calculate_weight(own, before.clone(), key) - before


def bypass_past(model: ModelPatcher, past: ModelPatcher, gate: Gate, source: ModelPatcher | None = None) -> None:
    """Let another model's patches act on a clone's layers, in place of its own, while the gate says `past`.

    Args:
        model: its own patches are bypassed already.  past: the same network with the other patches.  source: see `bypass_patches`.
    """
    other = past.clone()
    bypass_patches(other, gate, source)
    own, theirs = ({path: patch for path, patch in m.object_patches.items()
                    if isinstance(patch, BypassedLayer) and patch.gate is gate} for m in (model, other))
    for path in own.keys() | theirs.keys():
        forward = own[path].forward if path in own else model.get_model_object(path)
        deltas = [patches[path].own if path in patches else None for patches in (own, theirs)]
        model.add_object_patch(path, BypassedLayer(forward, *deltas, gate))
