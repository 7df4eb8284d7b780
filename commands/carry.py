"""Carry edited frames through a video: no model, no server, no ComfyUI.

    python commands/carry.py --video IN --keyframe K EDITED.png [--keyframe ...] [--mask M.png] [--flow auto|dis|own|raft] --out OUT

IN is a video or a folder of pictures; K counts frames from 0. EDITED.png is that frame, edited, at the same size. OUT is a folder,
which gets 00000.png and so on, or a video: .mkv keeps every bit outside the edit, .mp4 is H.264. The edit is where EDITED.png
differs from the frame; with a mask, only the part inside it. Other pixels stay the same, bit for bit.
A run into a folder that was stopped is resumed by the same command, and gives the same bits as one that was not.
Exit code: 0, 2 for bad input with one line that says what.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]


class OneLine(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    out = OneLine(prog="carry.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = out.add_argument
    add("--video", type=Path, required=True, help="video file or folder of pictures")
    add("--keyframe", nargs=2, action="append", required=True, metavar=("K", "EDITED.png"),
        help="number of a frame from 0, and the edited frame; may be given several times")
    add("--mask", type=Path, action="append", default=[],
        help="picture of the video's size: white where the keyframe is edited, nothing else of it is carried; once for all "
             "keyframes, or once for each in their order. Without it: where the edited frame differs")
    add("--keep", type=Path, help="picture, or folder of one picture a frame: white stays as it is in every frame")
    add("--flow", choices=("auto", "dis", "own", "raft"), default="auto",
        help="what estimates motion. auto: dis if OpenCV is installed, else own")
    add("--raft", type=Path, help="torchvision's RAFT weights, for --flow raft; otherwise searched in models/optical_flow of "
                                  "COMFYUI_DIR and in torch's own cache")
    add("--out", type=Path, required=True, help="folder for pictures, or video file (.mkv, .avi, .mp4, .mov)")
    add("--confidence", type=Path, help="folder for pictures of how sure each pixel is, white: sure")
    add("--change", type=Path, help="folder for pictures of what was changed, white: changed")
    return out


def open_core() -> Any:
    """Import the pack's core, which needs no ComfyUI, as a package of its own."""
    sys.path.insert(0, str(ROOT / "tools"))
    import pack

    sys.path.remove(str(ROOT / "tools"))
    pack.package("framepainter_core", ROOT / "core")
    return lambda module: importlib.import_module(f"framepainter_core.{module}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console of another code page prints ? for a letter it lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    core = open_core()
    try:
        return carry(options, core)
    except (core("carry.run").CarryError, core("flow.consistency").FlowError, core("atomic").WriteError) as error:
        print(f"carry.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def carry(options: argparse.Namespace, core: Any) -> int:
    import torch

    torch.set_grad_enabled(False)
    run, files = core("carry.run"), core("carry.files")
    frames = files.open_frames(options.video)
    try:
        edits = edits_of(options, run, files)
        estimate, name = core("flow.choice").pair_flow(options.flow, options.raft or raft_weights())
        writers = outputs(options, frames, run, files)
        work = work_of(options, frames, edits, name, core)
        job = run.Carry(frames, edits, estimate, keep=keeper(options.keep, frames, run, files), work=work)
        begin = time.perf_counter()
        for done in job.run():
            for kind, writer in writers:
                writer.write(done.number, getattr(done, kind))
        for _, writer in writers:
            writer.close()
        if work is not None:
            work.finish()
    finally:
        frames.close()
    took = time.perf_counter() - begin
    print(f"{frames.count} frames of {frames.size[1]} x {frames.size[0]}, flow {name}: {took / frames.count:.3f} s a frame")
    return 0


def edits_of(options: argparse.Namespace, run: Any, files: Any) -> list[Any]:
    """The keyframes as given."""
    masks = options.mask * len(options.keyframe) if len(options.mask) == 1 else options.mask
    if masks and len(masks) != len(options.keyframe):
        raise run.CarryError(f"{len(masks)} masks are given for {len(options.keyframe)} keyframes. Give one, or one for each.")
    out = []
    for i, (number, path) in enumerate(options.keyframe):
        if not (number.isascii() and number.isdigit()):
            raise run.CarryError(f"keyframe '{number}' is not the number of a frame, 0 or more.")
        mask = files.picture_from(masks[i], grey=True) if masks else None
        out.append(run.Edit(int(number), files.picture_from(Path(path)), mask))
    return out


def work_of(options: argparse.Namespace, frames: Any, edits: list[Any], flow: str, core: Any) -> Any:
    """Where a run into a folder keeps what a second one goes on from; None for a video, which is written whole."""
    if not options.out.is_dir():
        return None
    read = [options.video, options.keep, options.raft]
    files = [p for path in read if path for p in (sorted(path.iterdir()) if path.is_dir() else [path])]
    about = [f"{p.resolve()}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
    places = [str(p and p.resolve()) for p in (options.out, options.confidence, options.change)]
    inputs = core("digest").digest(frames.count, frames.size, flow, *about, *places, *(part for e in edits for part in e))
    work = core("carry.work").Work(options.out / ".carry", inputs)
    wanted = [folder / f"{n:05d}.png" for folder in (options.out, options.confidence, options.change) if folder
              for n in range(work.reached()[0])]
    if not all(path.is_file() for path in wanted):
        work.finish()
        work = core("carry.work").Work(options.out / ".carry", inputs)
    return work


def keeper(path: Path | None, frames: Any, run: Any, files: Any) -> Any:
    """Number of a frame -> mask of what stays there."""
    if path is None:
        return lambda number: None
    if path.is_dir():
        paths = files.FolderFrames(path).paths
        if len(paths) != frames.count:
            raise run.CarryError(f"--keep holds {len(paths)} pictures, the video has {frames.count} frames.")
    else:
        paths = [path] * frames.count

    def keep(number: int) -> Any:
        mask = files.picture_from(paths[number], grey=True)
        if tuple(mask.shape) != tuple(frames.size):
            raise run.CarryError(f"'{paths[number].name}' of --keep is {mask.shape[1]} x {mask.shape[0]} pixels, the video "
                                 f"{frames.size[1]} x {frames.size[0]}.")
        return mask

    keep(0)
    return keep


def outputs(options: argparse.Namespace, frames: Any, run: Any, files: Any) -> list[tuple[str, Any]]:
    """What is written where: (part of a result, writer)."""
    if options.out.resolve() == options.video.resolve():
        raise run.CarryError("--out is --video. Choose another place, so that the video stays.")
    if options.out.suffix.lower() in files.VIDEOS and not options.out.is_dir():
        sound = options.video if options.video.is_file() else None
        writers = [("image", files.VideoWriter(options.out, frames.size, frames.rate, sound))]
    elif options.out.is_file() or (options.out.suffix and not options.out.is_dir()):
        raise run.CarryError(f"--out '{options.out}' is neither a folder nor a video that can be written "
                             f"({', '.join(sorted(files.VIDEOS))}).")
    else:
        writers = [("image", files.PictureWriter(options.out))]
    extra = (("confidence", options.confidence), ("change", options.change))
    return writers + [(kind, files.PictureWriter(folder)) for kind, folder in extra if folder]


def raft_weights() -> Path | None:
    """A RAFT file where ComfyUI or torch would have put it; larger ones first."""
    import torch

    places = [Path(torch.hub.get_dir(), "checkpoints")]
    if os.environ.get("COMFYUI_DIR"):
        places.insert(0, Path(os.environ["COMFYUI_DIR"], "models", "optical_flow"))
    found = [p for place in places for p in sorted(place.glob("*raft*")) if p.suffix in (".pth", ".pt", ".safetensors")]
    return next(iter(sorted(found, key=lambda p: "large" not in p.name)), None)


if __name__ == "__main__":
    sys.exit(main())
