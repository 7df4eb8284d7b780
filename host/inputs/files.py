"""Picture and video files that a workflow may name: the examples that come with the pack, and the user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...core.picture_file import read_picture
from ..outputs import shown

Kind = Literal["image", "video"]
EXAMPLES = Path(__file__).resolve().parents[2] / "workflows" / "inputs"
MARK = " [example]"  # as the host marks files of its output folder: "name.png [output]"
NO_MASK = 64  # side of the host's black mask for a picture without transparency


def names(kind: Kind) -> list[str]:
    """Examples first, then the files in the input folder, as the host's own loaders list them."""
    examples = folder_paths.filter_files_content_types(sorted(p.name for p in EXAMPLES.iterdir()), [kind])
    own = [entry.name for entry in os.scandir(folder_paths.get_input_directory()) if entry.is_file()]
    return [name + MARK for name in examples] + sorted(folder_paths.filter_files_content_types(own, [kind]))


def find(name: str) -> Path:
    """The file of that name.

    Raises:
        FileNotFoundError: there is none, or not within the folders that it may lie in; the text says what to do.
    """
    try:
        path = _place(name)
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long; a NUL character; links in a circle
        found = False
    if not found:
        raise FileNotFoundError(f"{shown(name)} is neither in the input folder nor one of the examples. Press R to refresh the "
                                "list and choose a file, or upload it with the node's button.")
    return path


def _place(name: str) -> Path:
    if name.endswith(MARK):
        return EXAMPLES / Path(name.removesuffix(MARK)).name
    path = Path(folder_paths.get_annotated_filepath(name)).resolve()
    folders = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    return path if any(path.is_relative_to(Path(folder).resolve()) for folder in folders) else EXAMPLES / "outside"


def picture(name: str) -> tuple[Tensor, Tensor]:
    """(B, H, W, 3) in [0, 1] and (B, h, w), 1 where it is transparent; a user's file as the host's Load Image reads it."""
    path = find(name)
    if name.endswith(MARK):
        return torch.from_numpy(np.ascontiguousarray(read_picture(path)))[None], torch.zeros(1, NO_MASK, NO_MASK)
    from nodes import LoadImage  # the host's module, which is heavy and needed by a server alone

    try:
        return LoadImage().load_image(name)
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ValueError(f"{shown(name)} cannot be read as a picture ({type(error).__name__}: {error}). Save it again in another "
                         "format, or choose another file.") from None


def video(name: str) -> Any:
    """The file as the host's VIDEO."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(find(name)))
