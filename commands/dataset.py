"""Make and show datasets without a server.

    <ComfyUI's python> commands/dataset.py videos FOLDER OUT [--width W --height H --pairs N ...]
    <ComfyUI's python> commands/dataset.py procedural OUT --count N [...]
    <ComfyUI's python> commands/dataset.py show OUT sheet.png [--first I --count N]
    <ComfyUI's python> commands/dataset.py split DATA KEPT HELD_OUT [--share 0.1 --seed 0]
    <ComfyUI's python> commands/dataset.py export DATA OUT

`split` holds whole videos out, so that no video is in both parts. `export` writes the folders that evaluate.py compares: source,
truth, sketch, coarse, moved, disoccluded, and the drags. Interrupted runs resume when started again. ComfyUI is needed by `videos`
alone, for its models/optical_flow folder: the one in whose custom_nodes
this pack lies, COMFYUI_DIR, or --host. Exit code: 0, 1 if there was nothing usable, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(os.path.abspath(__file__)).parent  # not resolved: the pack may be linked into custom_nodes
sys.path.insert(0, str(HERE.parent / "tools"))
import pack as tools_pack  # noqa: E402


def core(module: str) -> Any:
    """A module of core/, such as "data.pairs", without ComfyUI."""
    import importlib

    tools_pack.package("framepainter_core", HERE.parent / "core")
    return importlib.import_module(f"framepainter_core.{module}")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = out.add_subparsers(dest="command", required=True)
    videos = commands.add_parser("videos", help="pairs from a folder of videos")
    videos.add_argument("folder", type=Path, help="videos; sub-folders of pictures count as videos")
    videos.add_argument("out", type=Path, help="folder of the dataset")
    videos.add_argument("--fps", type=float, default=24.0, help="pictures a second of folders of pictures (default 24)")
    videos.add_argument("--flow", default="automatic", help="automatic, weight-free, or a RAFT file in models/optical_flow")
    videos.add_argument("--host", type=Path, help="ComfyUI's folder")
    videos.add_argument("--cpu", action="store_true", help="do not use a graphics card")
    add_settings(videos, core("data.pairs").PairSettings)
    made = commands.add_parser("procedural", help="pairs of moving shapes with exact motion")
    made.add_argument("out", type=Path, help="folder of the dataset")
    add_settings(made, core("data.procedural_pairs").ProceduralSettings)
    show = commands.add_parser("show", help="contact sheet of a dataset")
    show.add_argument("out", type=Path, help="folder of the dataset")
    show.add_argument("sheet", type=Path, help="picture to write")
    show.add_argument("--first", type=int, default=0, help="number of the first pair (default 0)")
    show.add_argument("--count", type=int, default=8, help="pairs (default 8)")
    parts = commands.add_parser("split", help="a part to train on and a held-out part, by whole videos")
    parts.add_argument("data", type=Path, help="folder of the dataset")
    parts.add_argument("kept", type=Path, help="folder of the new dataset to train on")
    parts.add_argument("held_out", type=Path, help="folder of the new dataset to evaluate on")
    parts.add_argument("--share", type=float, default=0.1, help="of the videos to hold out, at least one (default 0.1)")
    parts.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    pictures = commands.add_parser("export", help="a dataset as folders of pictures, for evaluate.py")
    pictures.add_argument("data", type=Path, help="folder of the dataset")
    pictures.add_argument("out", type=Path, help="folder to write to")
    return out


def add_settings(command: argparse.ArgumentParser, settings: type) -> None:
    """An option for each field of a settings class."""
    for field in fields(settings):
        name = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, tuple):
            command.add_argument(name, nargs=2, type=type(field.default[0]), default=field.default, metavar=("LEAST", "MOST"),
                                 help=f"default {field.default[0]} {field.default[1]}")
        else:
            command.add_argument(name, type=type(field.default), default=field.default, help=f"default {field.default}")


def chosen(args: argparse.Namespace, settings: type) -> Any:
    """The settings that the options give."""
    values = {f.name: getattr(args, f.name) for f in fields(settings)}
    return settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def progress() -> Any:
    """Callbacks that show a line that is written over, with the time that is left."""
    eta = core("eta").Eta()

    def show_line(done: int, total: int) -> None:
        print(f"\r{eta.line(done, total)}", end="", file=sys.stderr, flush=True)

    return core("callbacks").Callbacks(progress=show_line)


def estimator(args: argparse.Namespace) -> Any:
    """What estimates motion; ComfyUI is opened for it."""
    flow = tools_pack.open_pack(tools_pack.find_host(args.host), args.cpu)("host.data.flow")
    flow.register()
    return flow.estimator(args.flow)


def main(given: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console of another code page prints ? for a letter it lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = parser().parse_args(given)
    try:
        return {"videos": from_videos, "procedural": from_scenes, "show": show, "split": split,
                "export": export}[args.command](args)
    except (ValueError, OSError) as error:
        print(f"dataset: {error}", file=sys.stderr)
        return 2


def from_videos(args: argparse.Namespace) -> int:
    pairs, videos, shards = core("data.pairs"), core("video.source"), core("data.shard_writer")
    settings = chosen(args, pairs.PairSettings).checked()
    clips = videos.find_clips(args.folder, args.fps)
    motion = estimator(args)
    writer = shards.ShardWriter(args.out, pairs.pair_settings(settings, motion))
    pairs.build_from_clips(writer, clips, motion, settings, progress())
    return told(writer)


def from_scenes(args: argparse.Namespace) -> int:
    pairs, shards = core("data.procedural_pairs"), core("data.shard_writer")
    settings = chosen(args, pairs.ProceduralSettings).checked()
    writer = shards.ShardWriter(args.out, pairs.procedural_settings(settings))
    pairs.build_procedural(writer, settings, progress())
    return told(writer)


def told(writer: Any) -> int:
    """Print what the dataset contains."""
    print(file=sys.stderr)
    print(core("data.shard_writer").report(writer.folder))
    return 0 if writer.samples else 1


def show(args: argparse.Namespace) -> int:
    from PIL import Image

    sheets, index = core("data.contact_sheet"), core("data.shards").ShardIndex(args.out, check=False)
    last = min(args.first + args.count, len(index))
    if not 0 <= args.first < last:
        raise ValueError(f"--first is {args.first}, --count {args.count}; the dataset has {len(index)} pairs, numbered from 0")
    picture = sheets.sheet([index[i] for i in range(args.first, last)])[0]
    kind = Image.registered_extensions().get(args.sheet.suffix.lower(), "PNG")
    with core("atomic").replacing(args.sheet) as partial:
        Image.fromarray((picture * 255).round().byte().numpy()).save(partial, kind)
    print(sheets.counts(len(index), index.skipped, (args.first, last - 1)))
    return 0


def split(args: argparse.Namespace) -> int:
    index = core("data.shards").ShardIndex(args.data)
    writers = core("data.split").split(index, args.kept, args.held_out, args.share, args.seed, progress())
    print(file=sys.stderr)
    for writer in writers:
        print(f"{writer.samples} pairs of {len(writer.done)} videos in {writer.folder}")
    return 0


def export(args: argparse.Namespace) -> int:
    index = core("data.shards").ShardIndex(args.data)
    written = core("evaluation.export").export(index, args.out, len(index), progress())
    print(file=sys.stderr)
    print(f"{len(written)} pairs in {args.out}")
    for line in index.skipped:
        print(f"skipped: {line}", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
