"""Choosing a flow estimator: one interface for those that can start from a given flow and those that cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .consistency import FlowError, FlowFunction
from .dis import dis_flow, have_dis
from .quick import quick_flow
from .raft import load_raft, raft_flow

FLOWS = ("auto", "dis", "own", "raft")

PairFlow = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def starting_nowhere(flow: FlowFunction) -> PairFlow:
    """Wraps an estimator that cannot start from a given flow, for callers that pass one."""
    return lambda target, source, start: flow(target, source)


def pair_flow(choice: str, weights: Path | None = None) -> tuple[PairFlow, str]:
    """An estimator and its name.

    Args:
        choice: auto is DIS if OpenCV is there, else own.
        weights: RAFT's, for raft.

    Raises:
        FlowError: it is not available here.
    """
    if choice == "dis" or (choice == "auto" and have_dis()):
        if not have_dis():
            raise FlowError("OpenCV is not installed. Install opencv-python-headless, or choose own")
        return dis_flow, "DIS"
    if choice == "raft":
        if weights is None:
            raise FlowError("no RAFT weights are found. Give torchvision's raft_small or raft_large, or choose another flow")
        model = load_raft(weights)

        def raft(target: Tensor, source: Tensor) -> Tensor:
            with torch.no_grad():
                return raft_flow(model, target, source)

        return starting_nowhere(raft), f"RAFT {weights.name}"
    return quick_flow, "own"
