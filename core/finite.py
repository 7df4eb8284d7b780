"""Inf and NaN are caught where they arise, so that they neither spread nor stay on a disk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SENDER = "Look at the node that it comes from."


class NotFinite(ValueError):
    """Inf or NaN where numbers should be. The text says what holds it, and what to do."""


def check_finite(values: Tensor, what: str, remedy: str) -> Tensor:
    """The values, if all are finite.

    Args:
        what: they are, as the beginning of a sentence, such as "'images'".  remedy: a sentence.

    Raises:
        NotFinite: the text also says how many are not, and in which entry of a batch.
    """
    if torch.isfinite(values).all():  # over all at once, as there is hardly ever one
        return values
    bad = ~torch.isfinite(values)
    entries = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist() if bad.ndim > 1 else []
    where = f" in {len(entries)} of {len(bad)} entries, the first is number {entries[0]}" if len(bad.shape) > 1 else ""
    raise NotFinite(f"{what} has inf or NaN for {int(bad.sum())} of {bad.numel()} values{where}. {remedy}")


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with inf or NaN in it, or ""."""
    return next((n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()), "")
