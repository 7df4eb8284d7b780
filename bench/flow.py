"""The weight-free flow estimator against exact motion, beside OpenCV's two estimators where `cv2` can be imported.

    <ComfyUI's python> bench/flow.py --host COMFYUI [--only 512 ...] [--write]

Procedural pairs as Procedural Dataset makes them by default (1 to 2 shapes, up to 26 degrees, 15 % growth), seed 0. Mean end-
point error of visible pixels; the share of moving pixels within a pixel; the share of pixels whose visibility (flow there and
back agree) is right. Seconds of the processor for one direction, one thread. --write puts the table into docs/training_data.md.
Two minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "bench")]
import measuring  # noqa: E402
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

PAGE, MARK = ROOT / "docs" / "training_data.md", "<!-- table: bench/flow.py -->"
SETS = {(64, 64): 8, (192, 128): 6, (512, 288): 2, (1024, 576): 1}  # width x height: pairs
GROUNDS = ("smooth", "textured")
FARNEBACK = (0.5, 5, 15, 3, 5, 1.2, 0)  # pyramid scale, levels, window, iterations, neighbourhood, its deviation, flags
Flow = Callable[[Any, Any], Any]  # (target, source), (1, 3, H, W) each -> (1, 2, H, W)


def farneback(target: Any, source: Any) -> Any:
    """OpenCV's polynomial expansion (Farneback 2003) on brightness."""
    import cv2
    import torch

    grey = [cv2.cvtColor((p[0].movedim(0, -1) * 255).round().byte().numpy(), cv2.COLOR_RGB2GRAY) for p in (target, source)]
    return torch.from_numpy(cv2.calcOpticalFlowFarneback(*grey, None, *FARNEBACK)).movedim(-1, 0)[None]


def estimators(load: Callable[[str], Any]) -> dict[str, Flow]:
    found: dict[str, Flow] = {"weight-free": load("core.flow.weight_free").weight_free_flow}
    if load("core.flow.dis").have_dis():
        found |= {"DIS": load("core.flow.dis").dis_flow, "Farneback": farneback}
    else:
        print("no cv2: DIS and Farneback are left out", file=sys.stderr)
    return found


def row(load: Callable[[str], Any], estimate: Flow, pairs: list[Any]) -> list[str]:
    """Means over the pixels of all pairs."""
    import torch

    agree = load("core.data.motion").agree
    sums = torch.zeros(4, 2, dtype=torch.float64)  # moving, within 1, still, visibility: sum and count
    taken = 0.0
    for pair in pairs:
        target, source, truth, visible = pair.target[None], pair.source[None], pair.flow.float(), pair.visible
        kept: list[Any] = []
        taken += measuring.seconds(lambda a=target, b=source, out=kept: out.append(estimate(a, b)))
        error = (kept[0][0] - truth).norm(dim=0)
        moving, still = visible & (truth.norm(dim=0) > 0), visible & (truth.norm(dim=0) == 0)
        right = agree(kept[0], estimate(source, target))[0] == visible
        for n, values in enumerate((error[moving], (error[moving] < 1).float(), error[still], right.flatten().float())):
            sums[n] += torch.tensor([values.double().sum(), values.numel()])
    means = [f"{value:.2f}" for value in (sums[:, 0] / sums[:, 1]).tolist()]
    return [*means, f"{taken / len(pairs):.2f}"]


def table(load: Callable[[str], Any], widths: list[int] | None) -> list[str]:
    import torch

    module, found = load("core.data.procedural_pairs"), estimators(load)
    lines = ["| pictures | mean motion, pixels | background | method | moving | within 1 | still | visibility | s |",
             "|" + " --- |" * 9]
    for (width, height), count in SETS.items():
        if widths and width not in widths:
            continue
        for ground in GROUNDS:
            pairs = module.procedural_samples(module.ProceduralSettings(count, width, height, background=ground), 0)
            moved = torch.cat([p.flow.float().norm(dim=0)[p.visible] for p in pairs])
            shown = torch.stack([p.visible.float().mean() for p in pairs]).mean()
            length = f"{moved[moved > 0].mean():.0f}"
            first = [f"{width} x {height}", length, ground]
            rows = [[name, *row(load, estimate, pairs)] for name, estimate in found.items()]
            for cells in (*rows, ["*everything visible*", "", "", "", f"{shown:.2f}", ""]):
                lines.append(f"| {' | '.join([*first, *cells])} |")
                print(lines[-1], flush=True)
                first = ["", "", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--only", nargs="*", type=int, choices=[w for w, _ in SETS], help="widths")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve(), cpu=True)
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        lines = table(load, options.only)
    if options.write:
        pages.write_table(PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
