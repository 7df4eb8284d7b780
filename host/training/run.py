"""What every training run shares: outside of inference mode, callbacks, result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import autocast

from ...core.training import loop
from ...core.training.framepainter import objective


@contextmanager
def differentiable():
    """Outside of the host's inference mode, with gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


class Watch(NamedTuple):
    """Whom a run tells what it does; every one may be None.

    cached: (done, all) examples.  stepped: a finished Step.  preview: (step, picture (H, W, 3) in [0, 1]).
    check_stop: called often; what it raises ends the run after the state was saved.
    """

    cached: Callable[[int, int], None] | None = None
    stepped: Callable[[loop.Step], None] | None = None
    preview: Callable[[int, Tensor], None] | None = None
    check_stop: Callable[[], None] | None = None


class Finished(NamedTuple):
    """A run at its end: the trained tensors by the network's names (averages where there are any), the steps it made."""

    tensors: dict[str, Tensor]
    steps: int


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a run changes, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def in_precision(call: nn.Module, device: torch.device, precision: str) -> objective.Network:
    """The network as the objective calls it, in the run's precision."""
    def network(*inputs: Any) -> tuple[Tensor, list[objective.Asked]]:
        with autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            v, asked = call(*inputs)
        return v.float(), asked

    return network
