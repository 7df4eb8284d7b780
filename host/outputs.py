"""Files and folders under the host's output and input folders, by the names that users give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ..core.atomic import PARTIAL, WriteError, write_errors
from ..core.names import is_folder_name, printable

SETS = "framepainter_datasets"
LONGEST = 200  # bytes of one part of a prefix; most disks take 255, of which the number and the ending need some
SHOWN = 80     # characters of a name in a message


def output() -> Path:
    """The host's output folder, links resolved."""
    return Path(folder_paths.get_output_directory()).resolve()


def roots(under: str) -> list[Path]:
    """A folder of that name under output, and the one under input."""
    return [Path(root, under) for root in (folder_paths.get_output_directory(), folder_paths.get_input_directory())]


def shown(name: str) -> str:
    """A name in quotes for a message, shortened if it is long."""
    name = name if len(name) <= SHOWN else name[:SHOWN - 3] + "..."
    return "'" + printable(name).replace("\n", "\\n").replace("\t", "\\t") + "'"


# ---- to write --------------------------------------------------------------------------------------------------------


def new_file(prefix: str, ending: str) -> Path:
    """A file under the output folder that is not there yet, `<prefix>_<number>_<ending>`; its folder is made.

    Args:
        prefix: as the host's own saving nodes take it, sub-folders and %year% included.
        ending: with its dot. A dot in the prefix is part of the name.

    Raises:
        ValueError: the prefix cannot be a name, or leads out of the output folder.
        WriteError: the folder cannot be made or read.
    """
    if printable(prefix) != prefix or "\n" in prefix or "\t" in prefix:
        raise ValueError(f"filename_prefix is {shown(prefix)}, which has characters that no file can have in its name. Use "
                         "letters, digits, _, -, dots and spaces.")
    parts = prefix.replace("\\", "/").split("/")
    if not parts[-1].strip(". "):
        raise ValueError(f"filename_prefix is {shown(prefix)}, which names no file. Write a name, with a folder before it if you "
                         "like, such as 'folder/name'.")
    if any(len(part.encode()) > LONGEST for part in parts):
        raise ValueError(f"filename_prefix is {shown(prefix)}, which has a part of more than {LONGEST} bytes. Choose a shorter "
                         "name.")
    try:
        with write_errors(Path(folder_paths.get_output_directory(), prefix).parent):
            folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except (WriteError, ValueError):
        raise
    except Exception:  # the host's only word for this
        raise ValueError(f"filename_prefix is {shown(prefix)}, which leads out of the output folder '{output()}'. Choose another "
                         "name.") from None
    while (path := Path(folder, f"{name}_{number:05}_{ending}")).exists():
        number += 1
    return path


def result_of(path: Path) -> tuple[str, str]:
    """Name and sub-folder of a file under the output folder, as the page asks for it."""
    folder = path.parent.resolve().relative_to(output()).as_posix()
    return path.name, "" if folder == "." else folder


def workflow_texts(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """The workflow as the host hands it to nodes that save, for a file's head; nothing if the host was started without that."""
    if args.disable_metadata:
        return {}
    about = {**({} if prompt is None else {"prompt": prompt}), **(extra or {})}
    return {key: json.dumps(value) for key, value in about.items()}


def new_folder(parent: str, name: str, widget: str) -> Path:
    """The folder of that name under a folder of the output folder. It is not made.

    Args:
        widget: the input that gives the name, for messages.

    Raises:
        ValueError: some system could not write the name, or it leads out of the output folder.
    """
    if not is_folder_name(name):
        raise ValueError(f"{widget} is {shown(name)}; use up to 80 letters, digits, _, - and dots, beginning with a letter or "
                         "digit.")
    place = inside(output(), f"{parent}/{name}")
    if place is None:  # a link may lead out
        raise ValueError(f"{widget} is '{name}', which leads out of the output folder '{output()}'. Choose another name.")
    return place


# ---- to read ---------------------------------------------------------------------------------------------------------


def stamp(find: Callable[..., Path], *given: Any) -> tuple[int, int] | None:
    """Time and size of the file that `find(*given)` finds, by which a node is run again when the file changes; None if there is
    none."""
    try:
        found = find(*given).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def inside(base: Path, name: str) -> Path | None:
    """A path below a folder, links resolved; None if it leads out of the folder, or is no path."""
    try:
        place = (base / name).resolve()
        place.exists()  # raises for a name that the disk does not take
    except (OSError, ValueError, RuntimeError):  # too long; a NUL character; links in a circle
        return None
    return place if place.is_relative_to(base.resolve()) else None


def dataset(name: str) -> Path:
    """The folder of a dataset to read: whole, or relative to the output folder or to that of all datasets.

    Raises:
        ValueError: it is not under the output folder, or not there.
    """
    given = name.strip()
    for base in ("", SETS):
        place = inside(output(), str(Path(base, given))) if given else None
        if place is not None and (place / "dataset.json").is_file():
            return place
    raise ValueError(f"dataset is {shown(name)}, which is no finished dataset under the output folder '{output()}'. Connect the "
                     "dataset output of a dataset node, or run the node that makes it to its end.")


def input_folder(name: str) -> Path | None:
    """A folder to read, whole or relative to the input folder; None if it is not there."""
    try:
        place = Path(folder_paths.get_input_directory(), name.strip())
        return place if place.is_dir() else None
    except (OSError, ValueError):
        return None


def saved_names(under: str) -> list[str]:
    """Safetensors files of a folder under output and input, those of the output folder first; what is unfinished is left out."""
    found = [str(p.relative_to(folder).as_posix()) for folder in roots(under) if folder.is_dir()
             for p in sorted(folder.rglob("*.safetensors")) if PARTIAL not in p.name]
    return list(dict.fromkeys(found))


def saved_path(name: str, under: str) -> Path:
    """The file of that name in a folder under output or input.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the name leads out of the folders, or is none.
    """
    for folder in roots(under):
        path = inside(folder, name)
        if path is None:
            raise ValueError(f"{shown(name)} lies outside of the folder {folder}. Choose a file from the list.")
        if path.is_file():
            return path
    raise FileNotFoundError(f"{shown(name)} is in none of the folders {', '.join(map(str, roots(under)))}. Put the file into one "
                            "of them, press R to refresh the list, and choose it again.")
