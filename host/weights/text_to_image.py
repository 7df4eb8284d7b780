"""The pack's small text-to-image model -> MODEL, CLIP, VAE.

The host's own loaders (0.3.75) recognise Stable Diffusion 1.x at its published size only: Load Checkpoint and Load
Diffusion Model want 320 channels and text embeddings of 768, Load CLIP and Load VAE build networks of fixed widths. What
they would build for another width is built here from the same classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher

from ...core.models import small_autoencoder
from ...core.weights import text_to_image as names
from ...core.weights.framepainter import Shapes, differences
from ...core.weights.safetensors_header import BrokenFile, Header, read_header
from . import folders
from .building import build_clip, build_text_unet, build_vae, expected_text_unet, unet_config
from .loading import WeightsError, read_tensors, under

KINDS = (folders.OWN,)  # where such files are looked for


def _expected_vae(shapes: Shapes) -> Shapes:
    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in small_autoencoder.from_shapes(shapes).state_dict().items()}


_EXPECTED = {"UNet": lambda shapes: expected_text_unet(unet_config(shapes)), "VAE": _expected_vae,
             "text encoder": names.expected_text}  # name -> shape that each part must have, told from what it has


class TextToImage(NamedTuple):
    """The three outputs of the host's Load Checkpoint."""

    model: ModelPatcher
    clip: Any
    vae: Any


def listed() -> list[str]:
    """The files of this kind among the host's folders."""
    return [name for name in folders.names(KINDS) if _is_one(folders.find(name, KINDS))]


def _is_one(path: Path) -> bool:
    try:
        header = read_header(path)
    except (BrokenFile, OSError):
        return False
    return names.is_text_to_image(header.tensors, header.metadata)


def load(path: Path, dtype: torch.dtype | None = None) -> TextToImage:
    """Load a small text-to-image model.

    Args:
        dtype: of the UNet's weights; None leaves it to the host.

    Raises:
        WeightsError: the file is broken, of another kind, or incomplete.
    """
    header = _checked(path)
    text = read_tensors(path, under(header, names.TEXT))
    vocabulary = read_tensors(path, {"ids": names.VOCABULARY})["ids"]
    text[names.TABLE] = names.whole_table(text[names.TABLE], vocabulary)
    return TextToImage(_load_unet(path, dtype), build_clip(text, int(header.metadata[names.HEADS])),
                       build_vae(read_tensors(path, under(header, names.VAE))))


def _load_unet(path: Path, dtype: torch.dtype | None, disable_dynamic: bool = False) -> ModelPatcher:
    """The UNet of a file that has been checked. Newer hosts call this again for an independent copy."""
    model = build_text_unet(read_tensors(path, under(read_header(path), names.UNET)), dtype, disable_dynamic)
    model.cached_patcher_init = (_load_unet, (path, dtype))
    return model


def _checked(path: Path) -> Header:
    try:
        header = read_header(path)
    except BrokenFile as error:
        raise WeightsError(f"'{path.name}' is not usable: {error}. Install the pack again.") from None
    if not names.is_text_to_image(header.tensors, header.metadata):
        raise WeightsError(f"'{path.name}' is not a small text-to-image model of this pack. Load a Stable Diffusion 1.x "
                           "checkpoint with Load Checkpoint, a FramePainter model with Load FramePainter.")
    problems = []
    for part, prefix in names.PARTS.items():
        shapes = {new: header.tensors[old].shape for new, old in under(header, prefix).items()}
        try:
            problems += [f"{part}: {p}" for p in differences(_EXPECTED[part](shapes), shapes)]
        except KeyError as error:  # asked for by name
            problems.append(f"{part}: missing {error.args[0]}")
        except Exception as error:  # the host's detection trips in other ways over a UNet with holes
            problems.append(f"{part}: its layout cannot be read ({type(error).__name__}: {error})")
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise WeightsError(f"'{path.name}' is incomplete: {shown}. Install the pack again.")
    return header
