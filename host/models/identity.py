"""What a model computes, as a digest, so that a result on the disk is used again only where it would come out the same.

All values of all weights are summed up, and so are weight patches (LoRAs). Other patches are identified if they are this pack's or
come from ComfyUI's own nodes: by the name of their code and by all values that they hold. Of other nodes' functions nothing can be
known; they are named instead, and what they take part in must be neither kept nor taken from a disk.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_patcher
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...core.digest import checksum
from .. import keys
from .earlier import sampled_digest
from .network import UNET
from .savings import Saving

OURS = __name__.removesuffix("host.models.identity")
HOST = Path(comfy.model_patcher.__file__).resolve().parents[1]
LIBRARIES = ("torch", "builtins", "typing", "abc", "enum")  # whose classes and functions are what their names say


class Identity(NamedTuple):
    """digest: of everything that is known to change the result; "" if there is nothing.  unknown: what cannot be identified."""

    digest: str
    unknown: tuple[str, ...] = ()


# ---- weights ---------------------------------------------------------------------------------------------------------

_plain: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def weights_of(model: ModelPatcher, patched: bool = True, prefix: str = UNET, fresh: bool = True) -> Identity:
    """A network's weights: names, shapes and all values, and the epsilons of its norms. Equal in any precision.

    Args:
        patched: with LoRAs and other weight patches on it (their values, not their effect), or the plain network.
        prefix: of the weights that count.
        fresh: look at every value again. Otherwise a network whose tensors are at their old places with the same sampled values
            is taken for the one it was: enough for checks, not for what decides about results on a disk.
    """
    network = model.model.get_submodule(prefix.rstrip("."))
    found = model.get_key_patches(prefix or None)
    first = {name: _dense(entries[0][0]) for name, entries in found.items()}
    stamp = sampled_digest(model, False, prefix), tuple(tensor.data_ptr() for tensor in first.values())
    known = _plain.get(network)
    if fresh or known is None or known[0] != stamp:
        known = _plain[network] = stamp, _plain_digest(network, first)
    patches = {name: entries[1:] for name, entries in found.items() if len(entries) > 1}
    if not patched or not patches:
        return Identity(known[1])
    reader = _Reader()
    return Identity(reader.text([known[1], patches]), reader.found())


def model_digest(model: ModelPatcher, patched: bool, fresh: bool = True) -> str:
    """The digest that trajectories and training states carry, to tell another network. See `weights_of`."""
    return weights_of(model, patched, fresh=fresh).digest


def _plain_digest(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    out = hashlib.sha256(b"all values")
    for name, weight in sorted(weights.items()):
        out.update(f"{name}{tuple(weight.shape)}".encode())
        out.update(checksum(weight))
    for name, layer in network.named_modules():
        if hasattr(layer, "eps"):
            out.update(f"{name}{layer.eps}".encode())
    return out.hexdigest()


def _dense(weight: Tensor) -> Tensor:
    """A weight of a quantised format as the numbers that it stands for."""
    return weight.dequantize() if weight.is_quantized or type(weight) not in (Tensor, nn.Parameter) else weight


def made_by(recorded: str, model: ModelPatcher, patched: bool) -> bool:
    """Whether this network made what carries a digest: a `model_digest`, or the `sampled_digest` of an earlier version."""
    return recorded == model_digest(model, patched, fresh=False) or recorded == sampled_digest(model, patched)


# ---- patches ---------------------------------------------------------------------------------------------------------


def patches_of(model: ModelPatcher) -> Identity:
    """Everything on a MODEL besides weights and weight patches that may change what it computes."""
    reader, held = _Reader(model), _patches(model)
    return Identity(reader.text(held) if held else "", reader.found())


def part_of(part: Any) -> Identity:
    """A VAE's or CLIP_VISION's identity: class, weights, precision, what is patched onto it, functions put in a method's place."""
    network = part.first_stage_model if hasattr(part, "first_stage_model") else part.model
    reader, weights = _Reader(part.patcher), weights_of(part.patcher, prefix="")
    functions = {name: value for name, value in vars(part).items()
                 if isinstance(value, types.FunctionType | types.MethodType | functools.partial)}
    text = reader.text([type(part), weights.digest, getattr(part, "vae_dtype", getattr(part, "dtype", None)), functions,
                        _patches(part.patcher), network])
    return Identity(text, (*weights.unknown, *reader.found()))


def precision_of(model: ModelPatcher) -> str:
    """The types that a model's weights are kept and computed in."""
    return f"{model.model.get_dtype()} {model.model.manual_cast_dtype} {model.force_cast_weights}"


def _patches(model: ModelPatcher) -> dict[str, Any]:
    """All that a ModelPatcher holds besides weights and weight patches, empty containers left out."""
    # Savings change the way to a result and not the result.
    objects = {name: patch for name, patch in model.object_patches.items() if not isinstance(patch, Saving)}
    callbacks = {kind: {k: c for k, c in found.items() if k != keys.SAVINGS} for kind, found in model.callbacks.items()}
    parts = {"objects": objects, "options": model.model_options, "wrappers": model.wrappers,
             "callbacks": callbacks, "injections": model.injections, "models": model.additional_models,
             "weight wrappers": getattr(model, "weight_wrapper_patches", None), "hooks": getattr(model, "forced_hooks", None),
             "attachments": {k: v for k, v in model.attachments.items() if str(k).startswith(keys.PREFIX)},
             "layers": dict(_put_in_place(model))}
    return {name: part for name, part in parts.items() if not _empty(part)}


def _put_in_place(model: ModelPatcher) -> Iterable[tuple[str, Any]]:
    """What was put onto layers themselves, past the host: other forward functions, and hooks."""
    for name, module in model.model.named_modules():
        forward = vars(module).get("forward")
        own = getattr(forward, "__self__", None) is module and forward.__func__ is type(module).forward
        own = own or isinstance(forward, Saving)
        if forward is not None and not own and f"{name}.forward" not in model.object_patches_backup:
            yield f"{name}.forward", forward
        if hooks := _hooks(module):
            yield f"{name} hooks", hooks


def _hooks(module: nn.Module) -> list:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return value is None or (isinstance(value, list | tuple) and all(map(_empty, value)))


# ---- values ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Gives values of any kind a text that is equal for equal values, and notes those of which nothing can be known.

    Args:
        model: whose own layers are called by their names, as its weights are identified otherwise.
    """

    def __init__(self, model: ModelPatcher | None = None):
        self.layers = {} if model is None else {id(m): name for name, m in model.model.named_modules()}
        self.texts: dict[int, str] = {}
        self.held: list[Any] = []  # an object's id is its own only while it lives
        self.strangers: list[str] = []

    def found(self) -> tuple[str, ...]:
        """What cannot be identified."""
        return tuple(dict.fromkeys(self.strangers))

    def text(self, value: Any) -> str:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | slice | torch.dtype):
            return repr(value)
        if id(value) in self.layers:
            return f"layer {self.layers[id(value)]}"
        if id(value) not in self.texts:
            self.texts[id(value)] = "itself"  # until its text is known
            self.held.append(value)
            self.texts[id(value)] = hashlib.sha256(f"{type(value).__name__} {self._described(value)}".encode()).hexdigest()
        return self.texts[id(value)]

    def _listed(self, values: Iterable[Any]) -> str:
        return f"[{', '.join(map(self.text, values))}]"

    def _described(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{value.dtype} {tuple(value.shape)} {checksum(value).hex()}"
        if isinstance(value, np.ndarray):
            return self.text(torch.from_numpy(np.ascontiguousarray(value)))
        if isinstance(value, torch.device):
            return ""  # changes where, not what
        if isinstance(value, ModelPatcher):
            weights, inner = weights_of(value, prefix=""), _Reader(value)
            text = inner.text(_patches(value))
            self.strangers += (*weights.unknown, *inner.found())
            return f"{weights.digest} {text}"
        if isinstance(value, Mapping):
            return self._listed(sorted(f"{self.text(k)}: {self.text(v)}" for k, v in value.items() if not _empty(v)))
        if isinstance(value, set | frozenset):
            return self._listed(sorted(map(self.text, value)))
        if isinstance(value, list | tuple):
            return self._listed(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, enum.Enum):
            return f"{self._class(type(value))} {value.name}"
        if isinstance(value, types.MethodType):
            owner = value.__self__
            own = id(owner) in self.layers and getattr(type(owner), value.__name__, None) is value.__func__
            return f"{self.text(owner)} {value.__name__ if own else self.text(value.__func__)}"
        if isinstance(value, functools.partial):
            return self._listed((value.func, value.args, value.keywords))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.BuiltinFunctionType) and (value.__module__ or "builtins").split(".")[0] in LIBRARIES:
            return f"{value.__module__}.{value.__qualname__} {self.text(getattr(value, '__self__', None))}"
        if _written_by_us_or_the_host(type(value)) or (isinstance(value, nn.Module) and _known(type(value))):
            return self._object(value)
        return self._stranger(type(value))

    def _stranger(self, kind: type | types.FunctionType) -> str:
        self.strangers.append(f"{kind.__module__}.{kind.__qualname__}")
        return "unknown"

    def _function(self, value: types.FunctionType) -> str:
        ours = (value.__module__ or "").startswith(OURS)
        if not ours and not _of_host(value.__code__.co_filename):
            return self._stranger(value)
        # A host's function may have changed with the host; of ours, such changes are told in the changelog.
        name = _name(value) if ours else f"{_name(value)} {_code(value.__code__)}"
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return name + self._listed((cells, value.__defaults__, value.__kwdefaults__, vars(value)))

    def _class(self, value: type) -> str:
        for base in value.__mro__:
            if not _known(base):
                self._stranger(base)
        return " ".join(map(_name, value.__mro__))

    def _object(self, value: Any) -> str:
        if _name(type(value)).startswith("framepainter.") and hasattr(value, "identity"):
            held = value.identity()
        else:  # names with an underscore are memos, but for the parts of a module
            slots = [s for base in type(value).__mro__ for s in getattr(base, "__slots__", ()) if hasattr(value, s)]
            held = {**{s: getattr(value, s) for s in slots}, **getattr(value, "__dict__", {})}
            held = {name: item for name, item in held.items() if not name.startswith("_")}
        if isinstance(value, nn.Module):
            held = [held, value._parameters, value._buffers, value._modules, _hooks(value)]
        return f"{self._class(type(value))} {self.text(held)}"


def _written_by_us_or_the_host(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__.startswith(OURS) or (file is not None and _of_host(file))


def _known(kind: type) -> bool:
    return kind.__module__.split(".")[0] in LIBRARIES or _written_by_us_or_the_host(kind)


@functools.cache
def _of_host(file: str) -> bool:
    """Whether a file is one of ComfyUI's own: no custom node's, and no library's that lies beside them."""
    path = Path(file).resolve()
    first = path.relative_to(HOST).parts[0] if path.is_relative_to(HOST) else ""
    return first.startswith("comfy") or first.endswith(".py")


def _name(value: type | types.FunctionType) -> str:
    """The full name of a class or function, wherever this pack lies."""
    module = value.__module__
    return f"{f'framepainter.{module.removeprefix(OURS)}' if module.startswith(OURS) else module}.{value.__qualname__}"


def _code(code: types.CodeType) -> str:
    """A digest of a function's code."""
    out = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        out.update((_code(constant) if isinstance(constant, types.CodeType) else repr(constant)).encode())
    return out.hexdigest()[:16]
