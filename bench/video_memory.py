"""How much memory a video takes on top of its own frames in Keep Untouched and Propagate Edit.

    <ComfyUI's python> bench/video_memory.py --host COMFYUI [--frames 24] [--only NAME ...]

Frames of 1920 x 1080, working size 1024 x 576. Each row is the largest resident memory of a process of its own, over what it held
when the input was there. Of Propagate Edit everything but the network runs: an edited clip is the source clip in 8 bit, as a stage
on the disk gives it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402

SIZE, WORKING = (1080, 1920), (576, 1024)
MIB = 2**20


def resident(name: str) -> int:
    """A line of this process's status in bytes: VmRSS, or VmHWM, the largest since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def keep(load: Callable[[str], Any], count: int) -> Callable[[], Any]:
    """Keep Untouched, a result of the working size, a mask a frame."""
    import torch

    node = load("nodes.keeping").KeepUntouched
    original, edited = torch.rand(count, *SIZE, 3), torch.rand(count, *WORKING, 3)
    mask = torch.zeros(count, *WORKING)
    mask[:, 200:400, 300:600] = 1
    return lambda: node.execute(original, edited, mask, 16, "outside", "off", "error")


def propagate(load: Callable[[str], Any], count: int) -> Callable[[], Any]:
    """The job without the network."""
    import torch

    job, stages = load("host.video.propagate"), load("host.video.stages").Stages
    small = load("host.weights.loading").load(ROOT / "models" / "framepainter_small_base.safetensors", None, None, torch.float32)
    frames = torch.rand(count, *SIZE, 3)
    plan = load("core.video.clips").plan(count, 24.0, 14)

    def edit(self: Any, number: int, start: Any) -> dict[str, Any]:
        clip = (self.footage.clip(number) * 255).round().byte()
        return {"frames": clip, "latents": torch.zeros(len(clip), 4, WORKING[0] // 8, WORKING[1] // 8)}

    stages.edit = edit
    models = job.Models(small.model, small.clip_vision, small.vae)
    settings = job.Settings(*WORKING, lora="none")
    folder = Path(tempfile.mkdtemp())
    return lambda: job.Job(models, frames, frames[:1], plan, settings, folder).run()


ROWS: dict[str, Callable[[Callable[[str], Any], int], Callable[[], Any]]] = {
    "Keep Untouched": keep,
    "Propagate Edit": propagate,
}


def measure(load: Callable[[str], Any], name: str, count: int) -> None:
    """Print a row."""
    import torch

    with torch.inference_mode():
        work = ROWS[name](load, count)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM from here
        before, begun = resident("VmRSS"), time.process_time()
        result = work()
        seconds, peak = time.process_time() - begun, resident("VmHWM") - before
        del result
    video = count * SIZE[0] * SIZE[1] * 3 * 4
    print(f"| {name} | {peak / MIB:.0f} MiB | {peak / video:.2f} | {seconds / count * 1000:.0f} ms |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--only", nargs="*", choices=ROWS, help="rows")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(tools_pack.open_pack(options.host.resolve(), cpu=True), options.row, options.frames)
        return
    print(f"| {options.frames} frames of 1080p | on top of the input | of the frames' size | CPU time a frame |")
    print("|" + " --- |" * 4, flush=True)
    for name in options.only or ROWS:
        subprocess.run([sys.executable, __file__, "--host", str(options.host), "--frames", str(options.frames), "--row", name],
                       check=True)


if __name__ == "__main__":
    main()
