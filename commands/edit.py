"""Edit every pair of a dataset with a model, to be compared with the truth.

    <ComfyUI's python> commands/edit.py --dataset FOLDER --model FILE --out FOLDER [--signal sketch|coarse|drag]
        [--steps N] [--cfg X] [--strength X] [--seed N] [--encoder FILE] [--clip-and-vae FILE] [--host COMFYUI_DIR] [--cpu]

Each pair's source picture is edited by its own signal and written as OUT/<key>.png, at the pair's size; `dataset.py export` gives
the other folders that evaluate.py wants under the same names. An interrupted run resumes: pictures that are there are kept.
Exit code: 0, 1 if a model or the dataset cannot be used, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(os.path.abspath(__file__)).parent  # not resolved: the pack may be linked into custom_nodes
sys.path.insert(0, str(HERE.parent / "tools"))
import pack as tools_pack  # noqa: E402

SIGNALS = ("sketch", "coarse", "drag")
NOTE = "edit.json"  # in the folder of the results: what made them


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="edit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--dataset", type=Path, required=True, help="folder of a dataset (commands/dataset.py)")
    out.add_argument("--model", type=Path, required=True, help="FramePainter checkpoint of one file, or the authors' UNet")
    out.add_argument("--encoder", type=Path, help="the authors' control encoder, if --model is their UNet")
    out.add_argument("--clip-and-vae", type=Path, help="SVD checkpoint with CLIP vision and VAE, if --model has none")
    out.add_argument("--out", type=Path, required=True, help="folder of the edited pictures")
    out.add_argument("--signal", choices=SIGNALS, default="sketch", help="what the model was trained on (default sketch)")
    out.add_argument("--steps", type=int, default=25, help="default 25")
    out.add_argument("--cfg", type=float, default=3.0, help="guidance at the first step (default 3)")
    out.add_argument("--strength", type=float, default=0.8, help="of the signal (default 0.8)")
    out.add_argument("--seed", type=int, default=0, help="of the noise, the same for every pair (default 0)")
    out.add_argument("--host", type=Path, help="ComfyUI's folder; otherwise COMFYUI_DIR, or the one that this pack is installed in")
    out.add_argument("--cpu", action="store_true", help="do not use a graphics card")
    return out


def main(given: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console of another code page prints ? for a letter it lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = parser().parse_args(given)
    try:
        check(args)
        pack = tools_pack.open_pack(tools_pack.find_host(args.host), args.cpu)
    except ValueError as wrong:
        print(f"edit: {wrong}", file=sys.stderr)
        return 2
    try:
        return edit(args, pack)
    except (ValueError, OSError, AttributeError) as error:  # AttributeError: a part that the model's file does not hold
        print(f"edit: {error}", file=sys.stderr)
        return 1


def check(args: argparse.Namespace) -> None:
    """Refuse numbers that no sampler takes.

    Raises:
        ValueError: which, and what it may be.
    """
    if args.steps < 1:
        raise ValueError(f"--steps is {args.steps}; at least 1")
    if not 0 <= args.strength <= 2:
        raise ValueError(f"--strength is {args.strength}; 0 to 2")
    if not 0 <= args.cfg <= 100:
        raise ValueError(f"--cfg is {args.cfg}; 0 to 100")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed is {args.seed}; 0 or more")


def edit(args: argparse.Namespace, pack: Callable[[str], Any]) -> int:
    """Edit all pairs."""
    import torch
    from PIL import Image

    atomic, eta = pack("core.atomic"), pack("core.eta").Eta()
    index = pack("core.data.shards").ShardIndex(args.dataset)
    begin(args, atomic)
    edits = pack("host.signals.edit")
    settings = edits.EditSettings(args.steps, args.cfg, args.strength, args.seed)
    with torch.inference_mode():
        loaded = pack("host.weights.loading").load(args.model, args.encoder, args.clip_and_vae, None)
        for number, sample in enumerate(index, 1):
            path = args.out / f"{sample.key}.png"
            if not path.is_file():
                signal = signal_of(pack, sample, args.signal)
                picture = edits.edit_picture(loaded, sample.source.movedim(0, -1)[None], signal, settings)
                with atomic.replacing(path) as partial:
                    Image.fromarray((picture[0] * 255).round().byte().cpu().numpy()).save(partial, "PNG")
            print(f"\r{eta.line(number, len(index))}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for line in index.skipped:
        print(f"skipped: {line}", file=sys.stderr)
    print(f"{sum(1 for _ in args.out.glob('*.png'))} pictures in {args.out}")
    return 0


def begin(args: argparse.Namespace, atomic: Any) -> None:
    """Record the model and settings in the folder, so that it holds results of one model and one set of settings only.

    Raises:
        ValueError: the folder holds others.
    """
    stat = args.model.stat()
    made = {"model": args.model.name, "bytes": stat.st_size, "dataset": args.dataset.resolve().name, "signal": args.signal,
            "steps": args.steps, "cfg": args.cfg, "strength": args.strength, "seed": args.seed}
    args.out.mkdir(parents=True, exist_ok=True)
    note = args.out / NOTE
    if note.is_file():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        other = [f"{n} was {before.get(n)}, now it is {v}" for n, v in made.items() if before.get(n) != v]
        if other:
            raise ValueError(f"'{args.out}' holds edits made otherwise ({', '.join(other[:3])}). Choose another --out, or delete "
                             "the folder.")
    elif any(args.out.glob("*.png")):
        raise ValueError(f"'{args.out}' holds pictures of another origin. Choose another --out.")
    atomic.write_text(note, json.dumps(made, indent=1) + "\n")


def signal_of(pack: Callable[[str], Any], sample: Any, kind: str) -> Any:
    """A pair's own editing signal, as the node of that kind gives it."""
    signal = pack("core.signals.edit_signal").EditSignal
    if kind == "drag":
        height, width = sample.source.shape[-2:]
        state = json.dumps(pack("core.evaluation.export").drag_state(sample))
        return signal("drag", points=pack("core.signals.points").read_drags(state, height, width).points)
    picture = sample.sketch if kind == "sketch" else sample.coarse
    return signal(kind, control=picture.movedim(0, -1)[None].contiguous())


if __name__ == "__main__":
    sys.exit(main())
