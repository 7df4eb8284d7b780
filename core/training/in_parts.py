"""Feed-forward layers a few rows at a time, so that their width does not decide how much memory a training step takes.

At 896 x 512 and 14 frames the widest intermediate of a feed-forward layer with a LoRA is 0.5 GB, and a dozen of them are
alive when it is differentiated. Rows do not see each other there, so each part can be computed, and computed again, alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PART = 1 << 22  # elements that go into a layer at once; 8 MB in 16 bits, eight times that inside


class Parts:
    """What the layers of a network share.

    again: compute each part's inside again in the backward pass, as memory is short. The values are the same either way, since the
    parts are.
    """

    def __init__(self) -> None:
        self.again = True


class InParts:
    """A forward whose rows are independent, in parts."""

    def __init__(self, forward: Callable[[Tensor], Tensor], elements: int = PART, parts: Parts | None = None):
        self.forward, self.elements, self.parts = forward, elements, parts or Parts()

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, ..., C) -> (rows, ..., D)."""
        if not torch.is_grad_enabled():
            return self.forward(x)
        count = min(len(x), -(-x.numel() // self.elements))
        return torch.cat([self._part(part) for part in x.tensor_split(count)])

    def _part(self, x: Tensor) -> Tensor:
        return checkpoint(self.forward, x, use_reentrant=False) if self.parts.again else self.forward(x)


def in_parts(model: nn.Module, kind: type[nn.Module], elements: int = PART) -> Parts:
    """Give every layer of a kind that forward, in place; what they share is returned."""
    parts = Parts()
    for module in model.modules():
        if isinstance(module, kind):
            module.forward = InParts(module.forward, elements, parts)
    return parts
