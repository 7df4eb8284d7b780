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
from ...core.weights.weight_file import WeightFile, WeightsError, briefly
from . import folders
from .building import build_clip, build_text_unet, build_vae, expected_text_unet, unet_config

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
        file = _open(path)
    except WeightsError:
        return False
    return names.is_text_to_image(file.shapes, file.header.metadata)


def _open(path: Path) -> WeightFile:
    return WeightFile.open(path, "Install the pack again.")


def load(path: Path, dtype: torch.dtype | None = None) -> TextToImage:
    """Load a small text-to-image model.

    Args:
        dtype: of the UNet's weights; None leaves it to the host.

    Raises:
        WeightsError: the file is broken, of another kind, or incomplete.
    """
    file = _open(path)
    heads = _check(file)
    text = file.read(file.under(names.TEXT))
    vocabulary = file.read({"ids": names.VOCABULARY})["ids"]
    try:
        text[names.TABLE] = names.whole_table(text[names.TABLE], vocabulary)
    except (ValueError, IndexError, RuntimeError, TypeError) as error:
        raise _incomplete(file, [f"text encoder: its vocabulary does not fit its table ({error})"]) from None
    return TextToImage(_unet_of(file, dtype), build_clip(text, heads), build_vae(file.read(file.under(names.VAE))))


def _load_unet(path: Path, dtype: torch.dtype | None, disable_dynamic: bool = False) -> ModelPatcher:
    """The UNet of a file that has been checked. Newer hosts call this again for an independent copy."""
    return _unet_of(_open(path), dtype, disable_dynamic)


def _unet_of(file: WeightFile, dtype: torch.dtype | None, disable_dynamic: bool = False) -> ModelPatcher:
    model = build_text_unet(file.read(file.under(names.UNET)), dtype, disable_dynamic)
    model.cached_patcher_init = (_load_unet, (file.path, dtype))
    return model


def _check(file: WeightFile) -> int:
    """Refuse a file of another kind, or with other tensors than such a model has; the text encoder's heads."""
    if not names.is_text_to_image(file.shapes, file.header.metadata):
        raise WeightsError(f"'{file.name}' is not a small text-to-image model of this pack. Load a Stable Diffusion 1.x "
                           "checkpoint with Load Checkpoint, a FramePainter model with Load FramePainter.")
    problems = []
    for part, prefix in names.PARTS.items():
        shapes = file.shapes_of(file.under(prefix))
        try:
            problems += [f"{part}: {p}" for p in differences(_EXPECTED[part](shapes), shapes)]
        except KeyError as error:  # asked for by name
            problems.append(f"{part}: missing {error.args[0]}")
        except Exception as error:  # the host's detection trips in other ways over a UNet with holes
            problems.append(f"{part}: its layout cannot be read ({type(error).__name__}: {error})")
    heads = file.header.metadata[names.HEADS]
    width = file.shapes.get(names.TEXT + names.TABLE, (0, 0))[-1]
    if not (heads.isascii() and heads.isdigit() and len(heads) < 6 and int(heads) and width % int(heads) == 0):
        problems.append(f"text encoder: '{heads[:20]}' heads do not divide its {width} channels")
    if problems:
        raise _incomplete(file, problems)
    return int(heads)


def _incomplete(file: WeightFile, problems: list[str]) -> WeightsError:
    return WeightsError(f"'{file.name}' is incomplete: {briefly(problems)}. {file.remedy}")
