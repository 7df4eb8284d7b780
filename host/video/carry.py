"""Carrying an edit inside ComfyUI: optical flow models of other nodes, frames in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...core.flow.choice import PairFlow, pair_flow, starting_nowhere
from ...core.flow.consistency import FlowError
from ...core.flow.raft import raft_flow

FLOWS = {"automatic": "auto", "DIS": "dis", "own": "own"}


class BatchFrames:
    """A batch of frames (T, H, W, 3)."""

    def __init__(self, images: Tensor):
        self.images, self.count, self.size = images, len(images), tuple(images.shape[1:3])

    def read(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        return (self.images[n].cpu() for n in numbers)


def flow_between(choice: str, model: Any = None) -> PairFlow:
    """What estimates motion.

    Args:
        choice: one of FLOWS.
        model: OPTICAL_FLOW of ComfyUI's Load Optical Flow Model, a ModelPatcher around torchvision's RAFT; takes precedence.

    Raises:
        ValueError: `model` is something else, or DIS is chosen without OpenCV.
    """
    if model is None:
        return pair_flow(FLOWS[choice])[0]
    network = getattr(model, "model", None)
    if not callable(network):
        raise FlowError(f"'optical_flow' is of type {type(model).__name__}. Connect the output of Load Optical Flow Model.")
    device = mm.get_torch_device()

    def estimate(target: Tensor, source: Tensor) -> Tensor:
        mm.load_models_gpu([model])
        with torch.no_grad():
            return raft_flow(network, target.to(device), source.to(device)).to(target)

    return starting_nowhere(estimate)
