"""The example paint_and_propagate against the truth, and other edits of other such videos, in miniature.

    <ComfyUI's python> bench/paint.py --host COMFYUI [--scenes 4] [--write]

First table: the example as it is shipped (seven frames in two clips of four, two discs that move, one erased by a lasso), by the
nodes' own parts and the settings of its file. Squared error, 1 being full scale: in the first frame where the disc was; in the
others where the disc was or the remaining one has moved. Second: other videos of that kind, true edited first frame, of three
edits of one shape: erased, larger by 1.45, in the other's colours; the error of the same places as a share of doing nothing, mean
(least to most). --write puts both tables into docs/paint_and_propagate.md. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import erased  # noqa: E402
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
import signals  # noqa: E402

MARKS = {"example": "<!-- table: bench/paint.py, example -->", "edits": "<!-- table: bench/paint.py, edits -->"}
EXAMPLE = erased.ROOT / "workflows" / "api" / "paint_and_propagate.json"
SEED = 31064  # the example's is one lower
# As in workflows/inputs/README.md; both shapes stay in the picture and apart.
SCENE = {"height": 96, "width": 96, "sprites": (2, 2), "radius": (0.28, 0.42), "shift": (0.45, 0.6), "turn": 15.0, "growth": 0.04,
         "texture": 2, "contrast": 0.05}
LARGER, REACH, CLIP_END = 1.45, 0.8, 4
VISIBLE = 0.004  # mean squared difference that an edit makes


def larger(scenes: Any) -> Any:
    import torch

    return scenes._replace(radius=scenes.radius * torch.tensor([[LARGER, 1.0]]))


EDITS: dict[str, Callable[[Any], Any]] = {
    "erased": lambda s: s._replace(present=s.present & s.present.new_tensor([[False, True]])),
    "in the other's colours": lambda s: s._replace(texture=s.texture[:, [1, 1]]),
    "larger by 1.45": larger,
}


def painted(editor: signals.Editor, frame: Any) -> Any:
    """The edited first frame as the example makes it. (1, H, W, 3) -> the same."""
    import comfy.sample

    prompt = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    set_to = {n["class_type"].removeprefix("FramePainter"): {k: v for k, v in n["inputs"].items() if not isinstance(v, list)}
              for n in prompt.values()}

    def run(name: str, **linked: Any) -> Any:
        return editor.run(name, **linked, **set_to[name])

    loaded, sampler = editor.model("coarse"), set_to["KSampler"]
    signal = run("CoarseSignal", picture=frame)[0][0]
    positive, negative, latent = (
        part[0] for part in run("Conditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, image=frame))
    model = run("Guidance", model=run("ApplyEditSignal", model=loaded.model, framepainter=loaded.weights, signal=signal)[0])[0]
    mask = run("EditMask", picture=frame, signal=signal)[0]
    latent = run("KeepLatent", latent=latent, vae=loaded.vae, picture=frame, mask=mask)[0]
    out = comfy.sample.sample(
        model, comfy.sample.prepare_noise(latent["samples"], sampler["seed"]), sampler["steps"], sampler["cfg"],
        sampler["sampler_name"], sampler["scheduler"], positive, negative, latent["samples"], noise_mask=latent.get("noise_mask"),
        disable_pbar=True, seed=sampler["seed"])
    edited = run("PickEditedFrame", images=loaded.vae.decode(out))[0]
    return run("KeepUntouched", original=frame, edited=edited, mask=mask)[0]


def error(bench: erased.Bench, found: Any, frames: slice) -> float:
    """Squared error in the area of some frames."""
    return float((found - bench.truth)[frames].pow(2).mean(-1)[bench.area[frames]].mean())


def example_table(bench: erased.Bench, editor: signals.Editor) -> list[str]:
    first, later = slice(0, 1), slice(1, None)
    frame = painted(editor, bench.clip[:1])
    still = frame.expand_as(bench.clip)
    rows = {"the source, unedited": bench.clip, "the painted frame, not moving": still,
            "painted and propagated": bench.run(0, first=frame),
            "the same with 60 steps of motion LoRA": bench.run(0, lora=True, first=frame)}
    return ["| what | first frame | frames 2 to 7 |", "| --- | --- | --- |",
            *(f"| {name} | {error(bench, found, first):.3f} | {error(bench, found, later):.3f} |" for name, found in rows.items())]


def videos(load: Callable[[str], Any], count: int) -> list[Any]:
    """Scenes of the example's kind: two shapes in the picture and apart."""
    import torch

    procedural = load("core.data.procedural")
    found: list[Any] = []
    seed = SEED
    while len(found) < count:
        drawn = procedural.draw_scenes(1, 7, procedural.SceneSettings(**SCENE), torch.Generator().manual_seed(seed))
        seed += 1
        apart = (drawn.centre[:, 0] - drawn.centre[:, 1]).norm(dim=-1).min() > drawn.radius.sum() * 1.2
        clear = all((procedural.render(drawn) - procedural.render(edit(drawn))).pow(2).mean() > VISIBLE for edit in EDITS.values())
        if bool((drawn.centre.abs() < REACH).all()) and bool(apart) and clear:
            found.append(drawn)
    return found


def edits_table(bench: erased.Bench, load: Callable[[str], Any], count: int) -> list[str]:
    render = load("core.data.procedural").render
    spans = {"first clip": slice(1, CLIP_END), "second clip": slice(CLIP_END, None)}
    lines = [f"| {count} videos, one of two shapes | not moving | {' | '.join(spans)} | both | with 60 steps of motion LoRA |",
             "|" + " --- |" * 6]
    scenes = videos(load, count)
    for name, edit in EDITS.items():
        cells: list[list[float]] = [[] for _ in range(5)]
        for drawn in scenes:
            bench.take(*(render(s)[0].movedim(1, -1).contiguous() for s in (drawn, edit(drawn))))
            plain, tuned = bench.run(0), bench.run(0, lora=True)
            still, later = bench.truth[:1].expand_as(bench.truth), slice(1, None)
            shown = [(still, later), *((plain, span) for span in spans.values()), (plain, later), (tuned, later)]
            for kept, (frames, span) in zip(cells, shown, strict=True):
                kept.append(error(bench, frames, span) / error(bench, bench.clip, span))
        lines.append(f"| {name} | " + " | ".join(f"{sum(v) / len(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in cells) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("paint"), help="for the stages; delete it to start over")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--write", action="store_true", help=f"rewrite both tables in {erased.PAGE.name}")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    load = tools_pack.open_pack(options.host.resolve(), cpu=True)
    import torch

    bench = erased.Bench(load, options.folder)
    with torch.inference_mode():
        tables = {"example": example_table(bench, signals.Editor(load))}
        print("\n".join(tables["example"]), flush=True)
        tables["edits"] = edits_table(bench, load, options.scenes)
    if options.write:
        for name, lines in tables.items():
            pages.write_table(erased.PAGE, MARKS[name], "\n".join(lines))


if __name__ == "__main__":
    main()
