"""How an edit drifts over the clips of a long video, with and without each measure against it, at a small scale.

    <ComfyUI's python> bench/long_video.py --host COMFYUI [--only NAME ...] [--write]
    <ComfyUI's python> bench/long_video.py --host COMFYUI --scenes N [--write]

The example video (16 frames in five clips of four, a disc whose colours were exchanged in the first frame) goes through Propagate
Edit on the small base model; every clip is compared with the true recoloured video: squared error, as a share of that of
doing nothing. --scenes: N other such videos, with and without skip-interval attention alone. --write puts the table into
docs/long_videos.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making")]
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
import small_model  # noqa: E402

PAGE = ROOT / "docs" / "long_videos.md"
MARKS = {False: "<!-- table: bench/long_video.py -->", True: "<!-- table: bench/long_video.py --scenes -->"}
BASE: dict[str, Any] = {"lora": "one for all clips", "skip_interval": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "colours not matched, else as the example": {},
    "without skip-interval": {"skip_interval": False},
    "without motion LoRA": {"lora": "none"},
    "without both": {"lora": "none", "skip_interval": False},
    "a LoRA for each clip": {"lora": "one a clip"},
    "a LoRA for each clip, without skip-interval": {"lora": "one a clip", "skip_interval": False},
    "as published: clip 0 by its own LoRA's network": {"lora": "as published"},
    "without attention injection": {"matching": False},
    "pixels carried": {"carry": "pixels"},
    "colour match 1": {"colour_match": 1.0},
    "anchor 0.5": {"anchor": 0.5},
}
SKIP = {"with skip-interval": {"lora": "none"}, "without": {"lora": "none", "skip_interval": False}}
STEPS, LORA_STEPS, RANK, RATE = 20, 60, 8, 1e-3
FRAMES, SEED = 16, 2004  # the example's seed is one lower
VISIBLE = 0.005  # mean squared difference that an edit makes; the example's is 0.034
# Of the example video as well, see workflows/inputs/README.md.
SCENE = {"sprites": (1, 1), "radius": (0.36, 0.45), "shift": (0.45, 0.6), "turn": 20.0, "growth": 0.05, "contrast": 0.06,
         "texture": 2}


def read(path: Path) -> Any:
    """(T, H, W, 3) in [0, 1]."""
    import av
    import torch

    with av.open(str(path)) as file:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float() / 255


class Case(NamedTuple):
    """clip, truth: (T, H, W, 3) in [0, 1], the video and the recoloured one.  edited: (1, H, W, 3), its first frame."""

    clip: Any
    truth: Any
    edited: Any


def example() -> Case:
    """The example's video."""
    import numpy as np
    import torch
    from PIL import Image

    inputs = ROOT / "workflows" / "inputs"

    def picture(name: str) -> Any:
        return torch.from_numpy(np.array(Image.open(inputs / name).convert("RGB"))).float() / 255

    truth = torch.stack(picture("long_clip_truth.png").split(96, 1))
    return Case(read(inputs / "long_clip.mp4"), truth, picture("long_clip_edited.png")[None])


def scenes(load: Callable[[str], Any], count: int) -> list[Case]:
    """Videos of the example's kind whose disc stays in the picture and looks different with its colours exchanged."""
    import torch

    procedural = load("core.data.procedural")
    settings = procedural.SceneSettings(**{**small_model.SCENES, **SCENE})
    found: list[Case] = []
    seed = SEED
    while len(found) < count:
        drawn = procedural.draw_scenes(1, FRAMES, settings, torch.Generator().manual_seed(seed))
        seed += 1
        if bool((drawn.centre.abs() > 1).any()):
            continue
        clip, truth = (procedural.render(d)[0].movedim(1, -1) for d in
                       (drawn, drawn._replace(texture=drawn.texture[:, :, [2, 0, 1]])))
        if (clip - truth).pow(2).mean() > VISIBLE:
            found.append(Case(clip, truth, truth[:1]))
    return found


class Bench:
    """The small base model, and what is asked of it."""

    def __init__(self, load: Callable[[str], Any], folder: Path):
        import torch

        self.load, self.folder = load, folder
        with torch.inference_mode():
            small = ROOT / "models" / "framepainter_small_base.safetensors"
            loaded = load("host.weights.loading").load(small, None, None, torch.float32)
        self.models = load("host.video.propagate").Models(loaded.model, loaded.clip_vision, loaded.vae)
        self.plan = load("core.video.clips").plan(FRAMES, 7.0, 4)

    def run(self, case: Case, changes: dict[str, Any]) -> tuple[list[float], Any, Any]:
        """Each clip's share of the error of doing nothing; the last clip's drift; all frames."""
        import torch

        propagate, presets = self.load("host.video.propagate"), self.load("core.training.motion_lora.presets")
        settings = propagate.Settings(**{
            "height": 96, "width": 96, "steps": STEPS, "guidance": 1.2, "motion_bucket": 30,
            "match": self.load("host.attention.injection_run").Settings(thresholds=(0.7, 0.7), betas=(0.8, 0.9)),
            "motion": presets.MotionSettings(steps=LORA_STEPS, rank=RANK, learning_rate=RATE, precision="fp32"),
            **BASE, **changes})
        with torch.inference_mode():
            result = propagate.Job(self.models, case.clip, case.edited, self.plan, settings, self.folder).run()
        shares = []
        for begin, end in self.plan.clips:
            span = slice(begin + 1, end)  # the first frame is the clip before's, or was given
            error, nothing = ((x[span] - case.truth[span]).pow(2).mean() for x in (result.frames, case.clip))
            shares.append(float(error / nothing))
        last = self.load("core.video.drift").drift(result.clips[-1].float() / 255, case.truth[slice(*self.plan.clips[-1])])
        return shares, last, result.frames


def table_of_variants(bench: Bench, only: list[str] | None) -> list[str]:
    """The example's table; frames of every variant go into the folder."""
    import torch
    from torchvision.utils import save_image

    case = example()
    lines = ["| variant | " + " | ".join(f"clip {i + 1}" for i in range(len(bench.plan.clips))) + " | colour | sharpness |",
             "| --- |" + " --- |" * (len(bench.plan.clips) + 2)]
    for name, changes in VARIANTS.items():
        if only and name not in only:
            continue
        shares, last, frames = bench.run(case, changes)
        lines.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in shares) + f" | {last.colour:.3f} | {last.sharpness:.2f} |")
        print(lines[-1], flush=True)
        shown = torch.cat([torch.cat(list(x[::3]), 1) for x in (case.clip, frames, case.truth)], 0)
        save_image(shown.movedim(-1, 0), bench.folder / f"{name.replace(' ', '_')}.png")
    return lines


def table_of_scenes(bench: Bench, count: int) -> list[str]:
    """Mean, deviation, and in how many videos skip-interval attention does better, clip by clip."""
    import torch

    found: dict[str, list[list[float]]] = {name: [] for name in SKIP}
    for case in scenes(bench.load, count):
        for name, changes in SKIP.items():
            shares, last, _ = bench.run(case, changes)
            found[name].append([*shares, float(last.colour)])
            print(name, " ".join(f"{v:.3f}" for v in found[name][-1]), flush=True)
    values = {name: torch.tensor(rows) for name, rows in found.items()}
    lines = [f"| {count} videos | " + " | ".join(f"clip {i + 1}" for i in range(len(bench.plan.clips))) + " | colour |",
             "| --- |" + " --- |" * (len(bench.plan.clips) + 1)]
    for name, rows in values.items():
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(rows.mean(0), rows.std(0), strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    better = (values["with skip-interval"] < values["without"]).sum(0).tolist()
    return [*lines, "| better with it | " + " | ".join(f"{n} of {count}" for n in better) + " |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("long_video"), help="for the stages; delete it to start over")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--scenes", type=int, default=0, help="other videos, with and without skip-interval attention")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    bench = Bench(tools_pack.open_pack(options.host.resolve()), options.folder)
    lines = table_of_scenes(bench, options.scenes) if options.scenes else table_of_variants(bench, options.only)
    print("\n".join(lines))
    if options.write:
        pages.write_table(PAGE, MARKS[bool(options.scenes)], "\n".join(lines))


if __name__ == "__main__":
    main()
