"""Compare a folder of edited pictures with a folder of true ones.

    python commands/evaluate.py --edited FOLDER --truth FOLDER [--source FOLDER] [--moved FOLDER] [--disoccluded FOLDER]
        [--clip-vision FILE] [--lpips] [--json FILE] [--csv FILE] [--sheet FILE] [--host COMFYUI_DIR]

Pictures are matched by their file names without the extension. Run it with ComfyUI's Python. Pictures that have no partner, cannot
be read or have another size are named, skipped and counted. Exit code: 0 if something was evaluated, 1 if nothing could be, 2 for
wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(os.path.abspath(__file__)).parent  # not resolved: the pack may be linked into custom_nodes
sys.path.insert(0, str(HERE.parent / "tools"))
import pack as tools_pack  # noqa: E402

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
KINDS = ("edited", "truth", "source", "moved", "disoccluded")
SHOWN = 8  # names in a message


class Wrong(Exception):
    """An argument cannot be used; the text says why."""


def by_name(folder: Path, kind: str, skipped: list[str]) -> dict[str, Path]:
    """Pictures of a folder under their names without ending. Two of one name are both skipped: either could be meant."""
    if not folder.is_dir():
        raise Wrong(f"--{kind}: {folder} is not a folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in ENDINGS:
            found.setdefault(path.stem, []).append(path)
    for paths in found.values():
        if len(paths) > 1:
            skipped.append(f"{kind}: {' and '.join(p.name for p in paths)} have one name")
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def read(path: Path, mask: bool) -> Any:
    """A picture as (H, W, 3), or a mask's brightness as (H, W), in [0, 1]; turned as its EXIF says."""
    import torch
    from framepainter_pack.core.picture_file import read_picture  # open_pack gave the pack this name

    return torch.from_numpy(read_picture(path, grey=mask))


def read_pairs(folders: dict[str, dict[str, Path]], names: list[str], pair: Callable[..., Any],
               skipped: list[str]) -> Iterator[Any]:
    """Read one pair after another; what cannot be used goes to `skipped` with the reason."""
    for name in names:
        parts: dict[str, Any] = {}
        for kind in KINDS:
            path = folders.get(kind, {}).get(name)
            if path is None:
                continue
            try:
                parts[kind] = read(path, kind in ("moved", "disoccluded"))
            except Exception as error:  # Pillow's decoders raise almost anything on damaged files
                skipped.append(f"{path} is not readable ({type(error).__name__}: {error})")
        if "edited" not in parts or "truth" not in parts:
            continue
        height, width = parts["truth"].shape[:2]
        other = {k: v for k, v in parts.items() if v.shape[:2] != (height, width)}
        for kind, image in other.items():
            skipped.append(f"{folders[kind][name]} is {image.shape[1]} x {image.shape[0]}, its truth {width} x {height}")
        if "edited" in other:
            continue
        yield pair(name, **{k: v for k, v in parts.items() if k not in other})


def load_clip_vision(pack: Callable[[str], Any], path: Path) -> Any:
    """CLIP vision out of an SVD or FramePainter checkpoint, or from a file of its own."""
    if not path.is_file():
        raise Wrong(f"--clip-vision: {path} does not exist")
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise Wrong(f"--clip-vision: {path.name} is not a .safetensors file; other forms may hold code")
    import comfy.clip_vision

    loading = pack("host.weights.loading")
    try:
        try:
            clip, _ = loading.load_clip_and_vae(path)
        except loading.WeightsError:  # not a checkpoint; then a file of its own
            clip = comfy.clip_vision.load(str(path))
    except Exception as error:  # the host's loader trips in many ways over other files
        raise Wrong(f"--clip-vision: {path.name} cannot be loaded ({type(error).__name__}: {error})") from error
    if clip is None or isinstance(clip, loading.Absent):
        raise Wrong(f"--clip-vision: {path.name} holds no CLIP vision model that this ComfyUI knows")
    return clip


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Compare edited pictures with true ones.")
    parser.add_argument("--edited", type=Path, required=True, help="folder of edited pictures")
    parser.add_argument("--truth", type=Path, required=True, help="folder of true pictures, of the same names and sizes")
    parser.add_argument("--source", type=Path, help="folder of unedited pictures: adds what leaving them alone would score")
    parser.add_argument("--moved", type=Path, help="folder of masks: white where the truth shows what the source has elsewhere")
    parser.add_argument("--disoccluded", type=Path, help="folder of masks: white where the truth shows what the source lacks")
    parser.add_argument("--clip-vision", type=Path, help="a .safetensors file with CLIP vision, for CLIP-FID")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS, if the package and its weights are installed")
    parser.add_argument("--host", type=Path, help="ComfyUI's folder, if the pack does not lie in its custom_nodes")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--csv", type=Path, help="write each pair's values here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (.png)")
    parser.add_argument("--rows", type=int, default=8, help="most pairs on the contact sheet (default 8)")
    parser.add_argument("--cpu", action="store_true", help="do not use a graphics card")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = arguments(given)
    for stream in (sys.stdout, sys.stderr):  # a console of another code page prints ? for a letter it lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return evaluate(args)
    except Wrong as wrong:
        print(f"evaluate: {wrong}", file=sys.stderr)
        return 2


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate what the arguments name, print the report and write the files asked for."""
    skipped: list[str] = []
    folders = {kind: by_name(getattr(args, kind), kind, skipped) for kind in KINDS if getattr(args, kind) is not None}
    for path in (args.json, args.csv, args.sheet):  # before the work, not after it
        if path is not None and path.is_dir():
            raise Wrong(f"{path} is a folder; name a file")
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Wrong(f"the folder of {path} cannot be made: {error.strerror}") from error
    if args.sheet is not None and args.sheet.suffix.lower() != ".png":
        raise Wrong(f"--sheet: {args.sheet.name} does not end in .png")
    names = sorted(folders["edited"].keys() & folders["truth"].keys())
    for kind, pictures in folders.items():
        alone = sorted(pictures.keys() - set(names))
        skipped += [f"{pictures[name]} has no partner in {args.truth if kind == 'edited' else args.edited}" for name in alone]
    notes = [f"{len(missing)} of {len(names)} pairs have no picture in --{kind}: {listed(missing)}"
             for kind, pictures in folders.items() if (missing := [name for name in names if name not in pictures])]

    found = None
    if names:
        try:
            host_folder = tools_pack.find_host(args.host)
        except ValueError as error:
            raise Wrong(str(error)) from None
        pack = tools_pack.open_pack(host_folder, args.cpu)
        host = pack("host.evaluation")
        clip = None if args.clip_vision is None else load_clip_vision(pack, args.clip_vision)
        found = host.evaluate_set(read_pairs(folders, names, host.Pair, skipped), len(names), clip, args.lpips, args.rows)
    if skipped:
        notes.append(f"{len(skipped)} pictures were skipped")
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    if found is None or not found.names:
        print("evaluate: no pair could be evaluated. Edited and true pictures need the same names, without ending.",
              file=sys.stderr)
        return 1
    found = found._replace(notes=[*notes, *found.notes])
    print(found.report())
    try:
        write(args, found, pack)
    except pack("core.atomic").WriteError as error:
        raise Wrong(str(error)) from error
    return 0


def write(args: argparse.Namespace, found: Any, pack: Callable[[str], Any]) -> None:
    """Write the files that were asked for; one that was there is replaced as a whole."""
    atomic = pack("core.atomic")
    if args.json is not None:
        atomic.write_text(args.json, found.json())
    if args.csv is not None:
        atomic.write_text(args.csv, pack("core.evaluation.table").to_csv(found.names, found.values))
    if args.sheet is not None:
        from PIL import Image

        with atomic.replacing(args.sheet) as partial:
            Image.fromarray((found.sheet[0].numpy() * 255).round().astype("uint8")).save(partial, "png")


def listed(names: list[str]) -> str:
    """Names for a message, not more than a few."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


if __name__ == "__main__":
    sys.exit(main())
