"""RAFT from torchvision, with the user's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights.pickled import load_tensors
from .consistency import FlowError
from .weight_free import enlarged

# ---- RAFT ------------------------------------------------------------------------------------------------------------

RAFT_STRIDE, RAFT_LEAST = 8, 128  # RAFT's own: sides are multiples of 8, correlation pyramids need 16 cells


def load_raft(path: Path) -> torch.nn.Module:
    """torchvision's RAFT, small or large as the file's shapes say. Nothing is downloaded and no code is unpickled.

    Raises:
        FlowError: the file is not readable, or is not a state dict of either.
    """
    from torchvision.models import optical_flow

    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            from safetensors.torch import load_file

            tensors = load_file(str(path))
        else:
            tensors = load_tensors(path)
    except Exception as error:  # zip, pickle and safetensors errors have no common base
        text = " ".join(str(error).split())[:200]
        raise FlowError(f"'{path.name}' cannot be read as weights ({type(error).__name__}: {text}). Download it "
                        "again.") from None
    found = tensors.get("feature_encoder.convnormrelu.0.weight") if isinstance(tensors, Mapping) else None
    make = {32: optical_flow.raft_small, 64: optical_flow.raft_large}.get(0 if found is None else len(found))
    if make is None:
        raise FlowError(f"'{path.name}' is not one of torchvision's RAFT state dicts (no feature_encoder of width 32 or 64). "
                        "Use raft_small or raft_large of torchvision.")
    model = make(weights=None, progress=False)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise FlowError(f"'{path.name}' does not fit torchvision's {make.__name__}: {text}") from None
    return model.eval().float()


def raft_flow(model: Callable[[Tensor, Tensor], Sequence[Tensor]], target: Tensor, source: Tensor) -> Tensor:
    """RAFT (Teed and Deng 2020) at the pictures' own size; small ones are enlarged to the 128 pixels that it needs.

    Args, returns: see the head of this module; `model` is on the pictures' device.
    """
    height, width = target.shape[-2:]
    scale = max(1.0, RAFT_LEAST / min(height, width))
    size = tuple(-(-round(s * scale) // RAFT_STRIDE) * RAFT_STRIDE for s in (height, width))
    pair = [F.interpolate(x.float(), size, mode="bilinear", antialias=True) * 2 - 1 for x in (target, source)]
    return enlarged(model(*pair)[-1], (height, width)).to(target)
