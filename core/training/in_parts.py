"""Feed-forward layers a few rows at a time, so that their width does not decide how much memory a training step takes.

At 512 x 896 and 14 frames the widest intermediate of a feed-forward layer with a LoRA is 0.5 GB, and a dozen of them are
alive when it is differentiated. Rows do not see each other there, so each part can be computed, and computed again, alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PART = 1 << 22  # elements that go into a layer at once; 8 MB in 16 bits, eight times that inside


class InParts:
    """A forward whose rows are independent, in parts; each part's inside is computed again in the backward pass."""

    def __init__(self, forward: Callable[[Tensor], Tensor], elements: int = PART):
        self.forward, self.elements = forward, elements

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, ..., C) -> (rows, ..., D)."""
        if not torch.is_grad_enabled():
            return self.forward(x)
        count = min(len(x), -(-x.numel() // self.elements))
        return torch.cat([checkpoint(self.forward, part, use_reentrant=False) for part in x.tensor_split(count)])


def in_parts(model: nn.Module, kind: type[nn.Module], elements: int = PART) -> None:
    """Give every layer of a kind that forward, in place."""
    for module in model.modules():
        if isinstance(module, kind):
            module.forward = InParts(module.forward, elements)
