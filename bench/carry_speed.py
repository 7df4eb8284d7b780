"""What carrying an edit takes at 1080p: `commands/carry.py` in a process of its own, on videos of several lengths.

    <ComfyUI's python> bench/carry_speed.py [--frames N ...] [--flow auto|dis|own] [--size WIDTH HEIGHT] [--write]

The video is a photograph under a moving camera, 1920 x 1080, H.264; one edit recolours 29 % of it, the other replaces 12 %.
Processor time is user and system time of the process and of the one that decodes, less what a video of one frame takes; memory is
the larger one's peak. Neither depends much on what else the machine does. --write puts the table into docs/paint_and_propagate.md.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import carry as cases  # noqa: E402

MARK = "<!-- table: bench/carry_speed.py -->"


def make_video(path: Path, count: int, width: int, height: int) -> np.ndarray:
    """Write it; returns the first frame as it will be decoded."""
    import av

    still = (cases.photo("coffee", height + 200, width + 240)[0].movedim(0, -1) * 255).byte().numpy()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "12"}
        for i in range(count):
            x, y = int(100 + 100 * math.sin(i / 20)), int(80 + 80 * math.sin(i / 31))
            part = np.ascontiguousarray(still[y:y + height, x:x + width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        file.mux(stream.encode(None))
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def edits(first: np.ndarray) -> dict[str, np.ndarray]:
    x = torch.from_numpy(first).float() / 255
    pasted = x.clone()
    height, width = x.shape[:2]
    rows, columns = slice(height * 5 // 18, height * 35 // 54), slice(width * 5 // 16, width * 5 // 8)
    pasted[rows, columns] = x[rows, columns].flip(1)
    middle = x[height // 2 - 40:height // 2 - 20, width // 2 - 60:width // 2 - 40].mean((0, 1))
    change = cases.recolour(middle, cases.HUES[1], 0.12)
    return {name: (y * 255).round().byte().numpy() for name, y in (("recoloured", change(x)), ("pasted", pasted))}


def run(folder: Path, edit: str, flow: str) -> tuple[float, float]:
    """Processor seconds and peak MiB of one run."""
    command = [sys.executable, str(cases.ROOT / "commands" / "carry.py"), "--video", str(folder / "in.mp4"), "--keyframe", "0",
               str(folder / f"{edit}.png"), "--flow", flow, "--out", str(folder / "out.mkv")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(child.pid, 0)
    if code:
        sys.exit(f"{' '.join(command)} failed")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[24, 240])
    parser.add_argument("--flow", default="auto", choices=("auto", "dis", "own"))
    parser.add_argument("--size", type=int, nargs=2, default=[1920, 1080], metavar=("WIDTH", "HEIGHT"), help="of the video, even")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = [f"Flow: {options.flow}.", "", "| edit | frames | processor seconds a frame | peak memory, MiB |", "| --- " * 4 + "|"]
    begin: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (1, *options.frames):
            for edit, picture in edits(make_video(folder / "in.mp4", count, *options.size)).items():
                Image.fromarray(picture).save(folder / f"{edit}.png")
                seconds, peak = run(folder, edit, options.flow)
                if count == 1:
                    begin[edit] = seconds
                else:
                    lines.append(f"| {edit} | {count} | {(seconds - begin[edit]) / (count - 1):.2f} | {peak:.0f} |")
                    print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.write:
        cases.pages.write_table(cases.PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
