"""Finding inf and NaN where they arise, before they are saved."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

BY_VAE = "A VAE may overflow in fp16: start ComfyUI with --fp32-vae or --bf16-vae, or connect another VAE."
BY_CLIP_VISION = "CLIP vision may overflow in fp16: start ComfyUI with --force-fp32, or connect another one."


class NotFinite(ValueError):
    """Values are inf or NaN. The text says which ones, and what to do."""


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that contain inf or NaN."""
    return [name for name, t in tensors.items() if not _finite(t)]


def _finite(values: Tensor) -> bool:
    """Batches of pictures are tested one by one, because the test needs more memory than they do."""
    return all(bool(part.isfinite().all()) for part in (values if values.ndim == 4 else (values,)))


def check_finite(what: str, tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Refuse inf and NaN.

    Args:
        what: what the tensors belong to, for the message.  tensors: by the name to show.  remedy: what to do about it; sentences.

    Raises:
        NotFinite: see there.
    """
    bad = not_finite(tensors)
    if bad:
        raise NotFinite(f"{what} cannot be used: inf or NaN in its {' and '.join(bad)}. {remedy}")
