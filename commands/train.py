"""Train FramePainter without a server, in one process or on several GPUs.

    <ComfyUI's python> commands/train.py --dataset FOLDER --model FILE --out RUN [--preset "24 GB"] [--steps N] ...
    torchrun --nproc-per-node 2 commands/train.py ...          also accelerate launch; --fsdp shards the weights

Runs again with the same settings resume where they stopped. The run's folder gets framepainter.safetensors, the two files of the
authors' form, and lora.safetensors if a LoRA was trained.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def open_pack(given: Path | None) -> Callable[[str], Any]:
    """Make ComfyUI and the pack importable; see tools/pack.py for both functions of it."""
    sys.path.insert(0, str(ROOT / "tools"))
    import pack

    sys.path.remove(str(ROOT / "tools"))
    try:
        host = pack.find_host(given)
    except ValueError as error:
        raise SystemExit(f"train.py: {error}") from None
    # A GPU for each process, before ComfyUI asks which one there is.
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return pack.open_pack(host, cpu=bool(os.environ.get("FRAMEPAINTER_CPU")))


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = out.add_argument
    add("--host", type=Path, help="ComfyUI's folder; otherwise COMFYUI_DIR, or the one that this pack is installed in")
    add("--dataset", type=Path, required=True, help="folder of a dataset (commands/dataset.py)")
    add("--model", type=Path, required=True, help="file to start from: SVD checkpoint, FramePainter single file or UNet")
    add("--encoder", type=Path, help="the authors' control encoder, if --model is their UNet")
    add("--clip-and-vae", type=Path, help="SVD checkpoint with CLIP vision and VAE, if --model has none")
    add("--framepainter", type=Path, help="single file whose matching attention and control encoder to go on from")
    add("--new", action="store_true", help="start matching attention and control encoder from new weights though --model has them")
    add("--out", type=Path, required=True, help="folder of the run")
    add("--preset", default="24 GB", help="paper, '24 GB', '16 GB', '12 GB' or 'small network'")
    add("--fsdp", action="store_true", help="several processes share weights, gradients and moments out (FSDP)")
    add("--bare", action="store_true", help="leave CLIP vision and VAE out of the single file")
    text = {"what_trains": "everything; 'matching and encoder'; 'matching, encoder and LoRA'",
            "signal": "sketch, coarse, drag or mixed", "matching_loss": "'cross entropy', 'squared error' or off",
            "precision": "bf16 or fp32", "semantics": "release or paper"}
    number = {"learning_rate": float, "matching_weight": float, "ema": float}
    for name in ("what_trains", "signal", "steps", "batch", "accumulate", "learning_rate", "matching_loss", "matching_weight",
                 "ema", "precision", "save_every", "preview_every", "seed", "rank", "semantics", "pixels"):
        add("--" + name.replace("_", "-"), type=str if name in text else number.get(name, int),
            help=text.get(name, "see docs/training.md") + "; default: the preset's")
    add("--checkpointing", action=argparse.BooleanOptionalAction, default=None, help="default: the preset's")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return open_pack(options.host)("host.training.command").main(options)


if __name__ == "__main__":
    raise SystemExit(main())
