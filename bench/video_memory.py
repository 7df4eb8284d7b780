"""How much memory a video takes on top of its own frames in Keep Untouched and Propagate Edit.

    <ComfyUI's python> bench/video_memory.py --host COMFYUI [--write]

Frames of 1920 x 1080, working size 1024 x 576; a photo of 4000 x 3000. Each row is the largest resident memory of a process of
its own, over what it held when the input was there. Of Propagate Edit everything but the network runs: an edited clip is the source
clip in 8 bit, as a stage on the disk gives it. On Linux. --write puts the table into docs/long_videos.md. 8 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

PAGE, MARK = ROOT / "docs" / "long_videos.md", "<!-- table: bench/video_memory.py -->"
SIZE, PHOTO, WORKING = (1080, 1920), (3000, 4000), (576, 1024)  # height, width
MIB = 2**20


def resident(name: str) -> int:
    """A line of this process's status in bytes: VmRSS, or VmHWM, the largest since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def keep(load: Callable[[str], Any], count: int, size: tuple[int, int] = SIZE) -> Callable[[], Any]:
    """Keep Untouched, a result of the working size, a mask a frame."""
    import torch

    node = load("nodes.keeping").KeepUntouched
    original, edited = torch.rand(count, *size, 3), torch.rand(count, *WORKING, 3)
    mask = torch.zeros(count, *WORKING)
    mask[:, 200:400, 300:600] = 1
    return lambda: node.execute(original, edited, mask, 16, "outside", "off", "stretch")


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


class Row(NamedTuple):
    """What is done to how many pictures of which size; before: at 07a463f, the last commit before the savings."""

    work: Callable[..., Callable[[], Any]]
    count: int
    size: tuple[int, int]
    before: str = ""


ROWS = {
    "Keep Untouched, a photo of 4000 x 3000": Row(partial(keep, size=PHOTO), 1, PHOTO),
    "Keep Untouched, 24 frames": Row(keep, 24, SIZE, "1595 MiB"),
    "Propagate Edit, 24 frames": Row(propagate, 24, SIZE, "1871 MiB"),
    "Propagate Edit, 96 frames": Row(propagate, 96, SIZE),
}


def measure(load: Callable[[str], Any], name: str) -> None:
    """Print a row."""
    import torch

    row = ROWS[name]
    with torch.inference_mode():
        work = row.work(load, row.count)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM from here
        before, begun = resident("VmRSS"), time.process_time()
        result = work()
        seconds, peak = time.process_time() - begun, resident("VmHWM") - before
        del result
    share = peak / (row.count * row.size[0] * row.size[1] * 3 * 4)
    print(f"| {name} | {peak / MIB:.0f} MiB | {share:.2f} | {row.before} | {seconds / row.count:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    options = parser.parse_args()
    if options.row:
        measure(tools_pack.open_pack(options.host.resolve(), cpu=True), options.row)
        return
    lines = ["| | on top of the input | of the input's size | at 07a463f | seconds of the processor a frame |", "|" + " --- |" * 5]
    for name in ROWS:
        done = subprocess.run([sys.executable, __file__, "--host", str(options.host), "--row", name], check=True, text=True,
                              stdout=subprocess.PIPE)
        lines.append(done.stdout.splitlines()[-1])
        print(lines[-1], flush=True)
    if options.write:
        pages.write_table(PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
