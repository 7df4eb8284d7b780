"""How well an inversion reproduces a clip, and how well I2VEdit carries a recoloured first frame, at a small scale.

    <ComfyUI's python> bench/i2vedit.py --host COMFYUI [--scenes N] [--write]

First table: clips are inverted and sampled again with their own conditioning, unguided, without and with attention injection;
relative error of the latents. Second: a shape's colour channels are exchanged in the first frame; mean squared error against the
true recoloured clip over the pixels that the edit changes, frames after the first, 25 steps, unguided. Small base model. --write
puts both tables into docs/i2vedit.md. Some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import change_mask  # noqa: E402
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

MARKS = {"inversion": "<!-- table: bench/i2vedit.py, inversion -->", "colours": "<!-- table: bench/i2vedit.py, colours -->"}
STEPS, EDIT_STEPS = (5, 10, 25, 50), 25
CHANGED = 25 / 255  # largest difference of a channel that counts as changed
Settings = Callable[[Any], Any]  # of the module injection_run
WAYS: dict[str, Settings | None] = {
    "sampled from the inverted noise, no matching": None,
    "preset *local edit*, threshold 0.35": lambda run: run.Settings(),
    "preset *global style*, threshold 0.7": lambda run: run.Settings(thresholds=(0.7, 0.7), betas=(0.8, 0.9)),
    "all attention the source's": lambda run: run.Settings(betas=(1.0, 1.0)),  # with a mask of all, see below
}


def inversion_table(bench: change_mask.Bench, clips: list[Any]) -> list[str]:
    """Relative error of the latents when a clip is inverted and sampled unedited."""
    import torch

    injection, run = bench.load("host.attention.injection"), bench.load("host.attention.injection_run")
    names = [f"clip {n}" for n in range(1, len(clips) + 1)]
    lines = ["| steps | " + " | ".join(f"{name} | matched" for name in names) + " |", "| --- |" + " --- | --- |" * len(clips)]
    for steps in STEPS:
        cells = []
        for clip in clips:
            source, positive = bench.inverted(clip, steps, torch.Generator().manual_seed(0))
            wanted = source.states[0]
            for model in (bench.loaded.model, injection.inject_attention(bench.loaded.model, source, run.Settings())):
                found = bench.sampled(model, source, (positive, positive), 1.0) * bench.loaded.model.get_model_object(
                    "latent_format").scale_factor
                cells.append(float((found - wanted).norm() / wanted.norm()))
        lines.append(f"| {steps} | " + " | ".join(f"{c:.3f}" for c in cells) + " |")
        print(lines[-1], flush=True)
    return lines


def colours_table(bench: change_mask.Bench, cases: list[change_mask.Case]) -> list[str]:
    """Error of the changed pixels of the frames after the first."""
    import torch

    injection, run = bench.load("host.attention.injection"), bench.load("host.attention.injection_run")
    kept: dict[str, list[float]] = {}

    def add(name: str, case: change_mask.Case, frames: Any) -> None:
        area = (case.truth - case.source).abs().amax(-1)[1:] > CHANGED
        kept.setdefault(name, []).append(float((frames - case.truth)[1:].pow(2).mean(-1)[area].mean()))

    for case in cases:
        add("the source, unedited", case, case.source)
        add("the edited frame, not moving", case, case.truth[:1].expand_as(case.truth))
        generator = torch.Generator().manual_seed(0)
        source, _ = bench.inverted(case.source, EDIT_STEPS, generator)
        given = bench.edited_given(case.truth[:1], generator)
        for name, settings in WAYS.items():
            model = bench.loaded.model
            if settings is not None:
                masks = run.Masks(stay=torch.ones_like(case.mask)) if name.startswith("all") else run.Masks()
                model = injection.inject_attention(model, source, settings(run), masks=masks, hold=False)
            add(name, case, bench.loaded.vae.decode(bench.sampled(model, source, given, 1.0)))
    return [f"| what, {len(cases)} scenes | error |", "| --- | --- |",
            *(f"| {name} | {sum(v) / len(v):.3f} |" for name, v in kept.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="rewrite both tables in docs/i2vedit.md")
    options = parser.parse_args()
    bench = change_mask.Bench(tools_pack.open_pack(options.host.resolve()))
    import torch

    with torch.inference_mode():
        cases = change_mask.cases(bench.load, change_mask.EDITS["recoloured"], options.scenes)
        tables = {"inversion": inversion_table(bench, [case.source for case in cases[:2]]), "colours": colours_table(bench, cases)}
    for kind, lines in tables.items():
        print("\n".join(lines))
        if options.write:
            pages.write_table(change_mask.PAGE, MARKS[kind], "\n".join(lines))


if __name__ == "__main__":
    main()
