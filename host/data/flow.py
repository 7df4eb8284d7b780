"""Optical flow models out of models/optical_flow, run as the host's own models: loaded, offloaded, counted."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as mm
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.data.motion import Estimated
from ...core.flow.raft import load_raft, raft_flow
from ...core.flow.weight_free import weight_free_flow

FOLDER = "optical_flow"  # newer hosts' own name for it
SUFFIXES = (".safetensors", ".sft", ".pth", ".pt")
AUTOMATIC, WEIGHT_FREE = "automatic", "weight-free"


def register() -> None:
    """Make models/optical_flow one of the host's model folders, where it is not yet."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir, FOLDER)))
    folder_paths.folder_names_and_paths[FOLDER][1].update(SUFFIXES)


def names() -> list[str]:
    """Files that may be RAFT, larger variants first."""
    found = [n for n in folder_paths.get_filename_list(FOLDER) if n.lower().endswith(SUFFIXES)]
    return sorted(found, key=lambda n: ("raft" not in n.lower(), "large" not in n.lower(), n))


def choices() -> list[str]:
    """What `estimator` takes."""
    return [AUTOMATIC, WEIGHT_FREE, *names()]


def find(name: str) -> Path:
    """A file by its name.

    Raises:
        FileNotFoundError: it is not there; the text lists the folders searched.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise FileNotFoundError(f"'{name}' is in none of the folders {', '.join(folder_paths.get_folder_paths(FOLDER))}. Put "
                                "torchvision's RAFT weights there, or choose 'weight-free'.")
    return Path(path)


def estimator(choice: str) -> Estimated:
    """What estimates motion: RAFT from a file, or the weight-free estimator. "automatic" takes the first RAFT file, if any.

    Raises:
        FileNotFoundError, FlowError: the file is not there, or is not RAFT.
    """
    if choice == AUTOMATIC:
        choice = next((n for n in names() if "raft" in n.lower()), WEIGHT_FREE)
    device = mm.get_torch_device()
    if choice == WEIGHT_FREE:
        return Estimated(WEIGHT_FREE, weight_free_flow, device)
    model = load_raft(find(choice))
    patcher = ModelPatcher(model, load_device=device, offload_device=mm.unet_offload_device())

    def run(target: Tensor, source: Tensor) -> Tensor:
        mm.load_models_gpu([patcher])
        with torch.no_grad():
            return raft_flow(model, target, source)

    return Estimated(f"RAFT {choice}", run, device)
