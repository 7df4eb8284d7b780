"""Where weight files are looked for, under the host's own model folders (extra_model_paths.yaml included)."""

from __future__ import annotations

from pathlib import Path

import folder_paths

OWN = "framepainter"
SUFFIXES = (".safetensors", ".sft")
UNETS = (OWN, "diffusion_models", "checkpoints")
ENCODERS = (OWN, "controlnet", "diffusion_models")
PICTURES = ("checkpoints", OWN)  # files with CLIP vision and VAE inside
SHIPPED = Path(__file__).resolve().parents[2] / "models"


def register() -> None:
    """Add models/framepainter, and the small models that come with the pack, to the host's model folders."""
    folder_paths.add_model_folder_path(OWN, str(Path(folder_paths.models_dir, OWN)))
    folder_paths.add_model_folder_path(OWN, str(SHIPPED))
    folder_paths.folder_names_and_paths[OWN][1].update(SUFFIXES)


def names(kinds: tuple[str, ...]) -> list[str]:
    """Safetensors files in the given folders, those of the first folder first, each name once.

    A new node chooses the first: of the models that come with the pack that is one which edits, and what can never be chosen as a
    model, an encoder by its published name, stands last.
    """
    found = [n for kind in kinds for n in folder_paths.get_filename_list(kind) if n.lower().endswith(SUFFIXES)]
    return sorted(dict.fromkeys(found), key=_late)


def _late(name: str) -> int:
    """Place of a name in the lists; equal ones keep their order."""
    shipped = [f"framepainter_small_{signal}.safetensors" for signal in ("sketch", "drag", "coarse", "base")]
    if name in shipped:
        return 1 + shipped.index(name)
    if name == "small_text_to_image.safetensors" or name.startswith("encoder_"):
        return 10
    return 0


def find(name: str, kinds: tuple[str, ...]) -> Path:
    """The file of that name in the first of the folders that has it.

    Raises:
        FileNotFoundError: none has; the text says where to put it.
    """
    for kind in kinds:
        path = folder_paths.get_full_path(kind, name)
        if path is not None:
            return Path(path)
    first, *others = kinds
    also = f" ({' and '.join(others)} are searched as well)" if others else ""
    raise FileNotFoundError(f"'{name}' was not found. Put the file into {folder_paths.get_folder_paths(first)[0]}{also}, press R "
                            "to refresh the lists, and choose it again.")
