"""What the three editing signals and the training-free paths do, measured on held-out procedural scenes.

    <ComfyUI's python> bench/signals.py --host COMFYUI [--scenes N] [--seeds N] [--write]

Every edit goes through the nodes, with texts as the editors write them, on the small models in models/. Rewrites the table in
docs/touching.md with --write. About a minute a method on two CPU cores.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making")]
import made_up_edits  # noqa: E402
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
import small_model  # noqa: E402

PAGE, BEGIN = ROOT / "docs" / "touching.md", "<!-- table: bench/signals.py -->"
SEED = 31  # no training seed is as small
STEPS, CFG, STRENGTH = 20, 2.0, 1.0
OBJECT = 0.15  # difference from the empty background that is the object


class Method(NamedTuple):
    """label; model: which small one; signals: attached in this order; matching: off to take the branch away; clock: weak and
    strong of FramePainter Dual Clock, or None."""

    label: str
    model: str
    signals: tuple[str, ...] = ()
    matching: bool = True
    clock: tuple[float, float] | None = None


METHODS = [
    Method("sketch", "sketch", ("sketch",)),
    Method("drag", "drag", ("drag",)),
    Method("coarse edit", "coarse", ("coarse",)),
    Method("sketch + drag", "sketch", ("sketch", "drag")),
    Method("sketch + drag", "drag", ("sketch", "drag")),
    Method("coarse edit + drag", "coarse", ("coarse", "drag")),
    Method("sketch + drag + coarse edit", "coarse", ("sketch", "drag", "coarse")),
    Method("sketch + dual clock", "sketch", ("sketch", "clip"), clock=(0.5, 0.8)),
    Method("dual clock + coarse edit", "coarse", ("coarse", "clip"), clock=(0.5, 0.8)),
    Method("drag, training-free", "sketch", ("drag",)),
    Method("drag, training-free, no matching attention", "sketch", ("drag",), matching=False),
    Method("drag, training-free", "base", ("drag",), matching=False),
    Method("dual clock, training-free", "base", ("clip",), matching=False, clock=(0.32, 0.42)),
    Method("dual clock, training-free", "base", ("clip",), matching=False, clock=(0.6, 0.8)),
    Method("dual clock, training-free", "sketch", ("clip",), clock=(0.6, 0.8)),
]


class Editor:
    """Runs the pack's nodes without a server."""

    def __init__(self, load: Callable[[str], Any], folder: Path = small_model.MODELS):
        self.load, self.folder = load, folder
        self.nodes = {node.define_schema().node_id.removeprefix("FramePainter"): node for node in load("nodes").NODES}
        self.models: dict[str, Any] = {}

    def run(self, name: str, *args: Any, **inputs: Any) -> tuple:
        return self.nodes[name].execute(*args, **inputs).args

    def model(self, name: str) -> Any:
        if name not in self.models:
            path = self.folder / f"framepainter_small_{name}.safetensors"
            self.models[name] = self.load("host.weights.loading").load(path, None, None, None)
        return self.models[name]

    def signals(self, edit: made_up_edits.Edit) -> dict[str, Any]:
        """Everything that a user gives, by the signal nodes."""
        moved = self.run("CoarseSignal", picture=edit.source, pieces=edit.filled)
        return {"sketch": self.run("SketchSignal", picture=edit.source, strokes=edit.strokes)[0][0],
                "drag": self.run("DragSignal", edit.source, edit.points)[0][0],
                "coarse": self.run("CoarseSignal", picture=edit.source, pieces=edit.pieces)[0][0],
                "clip": (moved[0][0], moved[4][0], moved[5][0])}

    def edit(self, method: Method, edit: made_up_edits.Edit, seed: int) -> tuple[Any, Any, list]:
        """Edited picture and reconstruction (1, H, W, 3), and the signals that went in."""
        import comfy.sample

        loaded, given = self.model(method.model), self.signals(edit)
        height, width = edit.source.shape[1:3]
        positive, negative, latent = (part[0] for part in self.run(
            "Conditioning", loaded.clip_vision, loaded.vae, edit.source, width, height, "exact", 6, 128, 0.02, seed))
        model = loaded.model
        if not method.matching:
            model = self.run("MatchingAttention", model, "off", 1.0)[0]
        used = []
        for kind in method.signals:
            if kind == "clip":
                signal, clip, mask = given["clip"]
                model, latent = self.run("DualClock", model, loaded.vae, latent, clip, mask, *method.clock)
            else:
                signal = given[kind]
                model = self.run("ApplyEditSignal", model, signal, STRENGTH, 0.0, 1.0, framepainter=loaded.weights)[0]
            used.append(signal)
        model = self.run("Guidance", model, "inverse square")[0]
        samples = latent["samples"]
        out = comfy.sample.sample(model, comfy.sample.prepare_noise(samples, seed), STEPS, CFG, "euler", "karras", positive,
                                  negative, samples, noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed)
        return (*self.run("PickEditedFrame", loaded.vae.decode(out)), used)

    def keep(self, edit: made_up_edits.Edit, edited: Any, reconstruction: Any, used: list) -> tuple[Any, Any]:
        """The edit put back where its own mask says, and its weights."""
        masks = [self.run("EditMask", edit.source, 0.12, 0.1, 3, 0, signal=signal, edited=edited, compare=reconstruction)[0]
                 for signal in used]
        union = masks[0]
        for mask in masks[1:]:
            union = union.maximum(mask)
        return self.run("KeepUntouched", edit.source, edited, union, 4, "outside", "mean", "error")


def position(load: Callable[[str], Any], picture: Any, background: Any) -> tuple[float, float] | None:
    """Centroid of what differs from the empty background, specks aside; None if nothing does."""
    area = load("core.signals.area").difference_area(picture, background, OBJECT)[0]
    if not bool(area.any()):
        return None
    rows, columns = area.nonzero(as_tuple=True)
    return float(columns.float().mean()), float(rows.float().mean())


def measure(load: Callable[[str], Any], edit: made_up_edits.Edit, picture: Any, kept: Any = None, weight: Any = None) -> dict:
    """Numbers of one edited picture."""
    ssim = load("core.evaluation.metrics").ssim_map(picture.movedim(-1, 1), edit.target.movedim(-1, 1))[0]
    there, wanted = (position(load, p, edit.background) for p in (picture, edit.target))
    still = edit.still
    out = {"position": math.dist(there, wanted) if there else None, "ssim": float(ssim[edit.moved].mean()),
           "still": float((picture - edit.source).abs()[0][still].mean()) * 255}
    if kept is not None:
        outside = weight[0] == 0
        ssim = load("core.evaluation.metrics").ssim_map(kept.movedim(-1, 1), edit.target.movedim(-1, 1))[0]
        out |= {"kept": float((kept - edit.source).abs()[0][still].mean()) * 255, "outside": float(outside.float().mean()),
                "changed": float((kept != edit.source)[0].any(-1)[outside].sum()), "kept ssim": float(ssim[edit.moved].mean())}
    return out


COLUMNS = {"position": "position error, pixels", "ssim": "SSIM, moved area", "still": "change of the still area, of 255",
           "kept ssim": "SSIM after keeping", "kept": "change of the still area after keeping",
           "changed": "changed pixels outside the mask"}


def row(label: str, model: str, values: list[dict]) -> str:
    """A line of the table: means over scenes and seeds."""
    cells = []
    for name in COLUMNS:
        seen = [v[name] for v in values if v.get(name) is not None]
        digits = {"position": 1, "ssim": 3, "kept ssim": 3, "changed": 0}.get(name, 2)
        missing = len([v for v in values if name in v and v[name] is None])
        text = f"{sum(seen) / len(seen):.{digits}f}" if seen else ""
        if name == "changed" and seen:
            text = f"{int(sum(seen))}"
        cells.append(text + (f" ({missing} of {len(values)} lost)" if missing else ""))
    return f"| {label} | {model} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="*", help="only edits with these small models, such as sketch drag")
    parser.add_argument("--folder", type=Path, default=small_model.MODELS, help="where the small models are")
    parser.add_argument("--pictures", type=Path, help="write a sheet of the first scenes there")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    import torch

    with torch.inference_mode():
        editor = Editor(load, options.folder)
        edits = made_up_edits.edits(load, small_model.SCENES, options.scenes, SEED)
        sheet = [[e.source, e.target] for e in edits[:4]]
        lines = ["| edit | small model | " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * (2 + len(COLUMNS))]
        lines.append(row("nothing", "", [measure(load, e, e.source) for e in edits]))
        vae = editor.model("base").vae
        lines.append(row("the truth, through the small autoencoder", "",
                         [measure(load, e, vae.decode(vae.encode(e.target))) for e in edits]))
        rough = [editor.run("CoarseSignal", picture=e.source, pieces=e.filled)[1][0] for e in edits]
        lines.append(row("the rough edit itself, filled", "", [measure(load, e, r) for e, r in zip(edits, rough, strict=True)]))
        print("\n".join(lines), flush=True)
        for method in METHODS:
            label = method.label + (f", {method.clock[0]} and {method.clock[1]}" if method.clock else "")
            if options.models is not None and method.model not in options.models:
                continue
            values = []
            for number, edit in enumerate(edits):
                for seed in range(options.seeds):
                    edited, reconstruction, used = editor.edit(method, edit, seed)
                    kept, weight = editor.keep(edit, edited, reconstruction, used)
                    values.append(measure(load, edit, edited, kept, weight))
                    if seed == 0 and number < len(sheet):
                        sheet[number] += [edited, kept]
            lines.append(row(label, method.model, values))
            print(lines[-1], flush=True)
    if options.pictures:
        from PIL import Image

        grid = torch.cat([torch.cat(pictures, 2) for pictures in sheet], 1)[0]
        Image.fromarray((grid * 255).round().byte().numpy()).resize((grid.shape[1] * 2, grid.shape[0] * 2), 0).save(
            options.pictures)
    if options.write:
        pages.write_table(PAGE, BEGIN, "\n".join(lines))


if __name__ == "__main__":
    main()
