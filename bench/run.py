"""What people wait for, in one table: the network's steps in seconds and in floating-point operations, and the pieces around it.

    python dev.py bench [--steps N] [--name "words for this machine"] [--write]
    python dev.py bench --gpu [--write]

Without a card: times of the small network at 256 x 192 (random weights), operations of the real one at 1024 x 576, counted
without arithmetic, and times of the pieces; under five minutes on two free cores. Beside each stands what commit 07a463f had.
--gpu: the real network on a card, see bench/on_card.py. --write puts the table into bench/results.md, or bench/results_gpu.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making"), str(ROOT / "bench")]
import guided_step  # noqa: E402
import measuring  # noqa: E402
import pack as tools_pack  # noqa: E402
import pieces  # noqa: E402

RESULTS, ON_CARD = ROOT / "bench" / "results.md", ROOT / "bench" / "results_gpu.md"
# Of 07a463f, the last commit before the savings: operations of a guided step in units of 1e12 (plain SVD's too), and the pieces.
BEFORE = {"plain SVD": 12.98, "+ cross-frame attention": 15.80, "+ matching attention (paper)": 14.45,
          "+ matching attention (release)": 15.80, "+ control alone (release)": 13.44, "+ matching and control (paper)": 14.91,
          "+ matching and control (release)": 16.27}


def steps(load: Callable[[str], Any], count: int) -> list[str]:
    """Rows of the guided step."""
    import arithmetic
    import torch

    with torch.inference_mode():
        parts = guided_step.networks(load, "small", torch.float32)
        models = guided_step.variants(load, *parts, guided_step.strokes("small"))
    edit, switched = guided_step.conditioning(load, "small"), load("host.models.savings").switched
    with switched(False):
        off = guided_step.measure(models, edit, count)
    on = guided_step.measure(models, edit, count)
    counted = arithmetic.guided_steps(load)
    base, plain = on[guided_step.PLAIN].seconds, counted[guided_step.PLAIN]
    rows = []
    for name, found in on.items():
        before = BEFORE[name]
        rows.append(f"| {name} | {before:.2f} | {before / BEFORE[guided_step.PLAIN]:.3f} | {counted[name] / 1e12:.2f} | "
                    f"**{counted[name] / plain:.3f}** | {off[name].seconds / off[guided_step.PLAIN].seconds:.3f} | "
                    f"{found.seconds / base:.3f} | {found.peak / 2**20:.0f} |")
    return rows


def around(load: Callable[[str], Any]) -> list[str]:
    """Rows of the pieces: what, at 07a463f, now."""
    import arithmetic

    motion, working = arithmetic.motion_steps(load), pieces.working(load)
    sizes = {name: f"{taken:.1f} s, {peak / 2**20:.0f} MiB" for name, (taken, peak) in working.items()}
    here, decoder, peak = pieces.reading(load)
    rows = [
        ("motion LoRA step over a forward pass, 576 x 320, 14 frames, checkpointing: operations, memory enough", "3.20",
         f"{motion['with memory enough']:.2f}"),
        ("the same where memory is short", "3.20", f"{motion['where memory is short']:.2f}"),
        ("800 long strokes on 12 megapixels", "12.9 s", f"{pieces.strokes(load):.1f} s"),
        ("feather of 64 pixels about two far dots, 12 megapixels", "3.0 s", f"{pieces.feather(load):.1f} s"),
        ("2 000 drags on 72 x 128 tokens", "quadratic", f"{pieces.drags(load) * 1000:.1f} ms"),
        ("24 frames of 1080p to the working size", "1604 MiB", sizes["to_working"]),
        ("and back", "1139 MiB", sizes["from_working"]),
        ("Read Video, 1080p, a frame; memory in parts of the result", "29 ms", f"{here * 1000:.0f} ms, and {decoder * 1000:.0f} ms "
         f"in the decoder meanwhile; {peak:.2f}"),
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def on_cpu(load: Callable[[str], Any], options: argparse.Namespace) -> str:
    import torch

    width, height = guided_step.PIXELS["full"][::-1]
    small = " x ".join(map(str, guided_step.PIXELS["small"][::-1]))
    about = measuring.machine(options.name), f"torch {torch.__version__.split('+')[0]}"
    return "\n".join([
        "# What people wait for", "",
        f"Written by `python dev.py bench --write`; run it on your machine to compare. {'; '.join(about)}; one thread, seconds of "
        "the processor.", "",
        "## A guided step of two frames", "",
        f"Operations: of the real network (320/640/1280/1280) at {width} x {height}, in 1e12, counted, for every step but a run's "
        f"first, which also encodes the start of the control frame. Time: of a small network (64/128/128/128) at {small}, which "
        "overstates control, as its encoder is the real one's. Ratios are to plain SVD.", "",
        "| | operations at 07a463f | ratio | operations | ratio | time, savings off | time | peak MiB beyond weights |",
        "|---|---|---|---|---|---|---|---|", *steps(load, options.steps), "",
        "## Around it", "", "| | 07a463f | now |", "|---|---|---|", *around(load), "",
        "Frame 0 of an edit is decoded even if only the edit is used (6.94e12 operations): VAE Decode is ComfyUI's node and runs "
        "before Pick Edited Frame, and SVD's decoder mixes frames, so that without frame 0 the edit would be another picture.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--gpu", action="store_true", help="the real network on a card")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a variant (default 5)")
    parser.add_argument("--name", help="the machine in words, for the table")
    parser.add_argument("--write", action="store_true", help="put the table into bench/")
    options = parser.parse_args()
    if options.host is None:
        parser.error("run it as `python dev.py bench`, or name ComfyUI's folder with --host")
    sys.path.insert(0, str(options.host.resolve()))
    from comfy.cli_args import args

    if not options.gpu:
        args.use_pytorch_cross_attention = True  # as on a card; torch counts its operations
    load = tools_pack.open_pack(options.host.resolve(), cpu=not options.gpu)
    import torch

    if options.gpu:
        import on_card

        if not torch.cuda.is_available():
            parser.error("--gpu: torch sees no card here")
        text = on_card.table(load, options.steps, options.name)
    else:
        torch.set_num_threads(1)
        text = on_cpu(load, options)
    print(text)
    if options.write:
        path = ON_CARD if options.gpu else RESULTS
        path.write_text(text, encoding="utf-8")
        print(f"Written to {path}")


if __name__ == "__main__":
    main()
