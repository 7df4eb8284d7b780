"""The effect of Match Attention's change_mask on spatial attention alone and on temporal attention as well, at a small scale.

    <ComfyUI's python> bench/change_mask.py --host COMFYUI [--scenes N] [--write]

Clips of one moving shape whose first frame is edited so that the truth of every frame can be drawn: other colours, a larger shape,
a shape of another form, no shape. The mask is white where the shape is in source or truth, and two pixels around. Squared error
against the truth as a share of the unedited clip's, frames after the first. --write puts the table into docs/i2vedit.md.
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

PAGE, MARK = ROOT / "docs" / "i2vedit.md", "<!-- table: bench/change_mask.py -->"
FRAMES, STEPS, SIDE, SEED, MARGIN = 4, 20, 96, 3001, 2
SCENE = {"sprites": (1, 1), "radius": (0.3, 0.4), "shift": (0.3, 0.5), "turn": 20.0, "growth": 0.05, "contrast": 0.06, "texture": 2}
EDITS: dict[str, Callable[[Any], Any]] = {
    "recoloured": lambda s: s._replace(texture=s.texture[:, :, [2, 0, 1]]),
    "enlarged": lambda s: s._replace(radius=s.radius * 1.4),
    "another form": lambda s: s._replace(exponent=10.0 - s.exponent.clamp(2.0, 8.0)),
    "erased": lambda s: s._replace(present=s.present & False),
}
WAYS = ("no mask", "spatial attention", "spatial and temporal")


class Case(NamedTuple):
    """source, truth: (T, H, W, 3).  mask: (T, H, W)."""

    source: Any
    truth: Any
    mask: Any


def cases(load: Callable[[str], Any], edit: Callable[[Any], Any], count: int) -> list[Case]:
    import torch

    procedural, distance = load("core.data.procedural"), load("core.keeping.distance")
    settings = procedural.SceneSettings(**{**small_model.SCENES, **SCENE})
    out: list[Case] = []
    seed = SEED
    while len(out) < count:
        drawn = procedural.draw_scenes(1, FRAMES, settings, torch.Generator().manual_seed(seed))
        seed += 1
        if bool((drawn.centre.abs() > 0.6).any()):
            continue
        source, truth = (procedural.render(d)[0].movedim(1, -1) for d in (drawn, edit(drawn)))
        if (source - truth).pow(2).mean() < 0.004:
            continue
        there = [torch.stack([procedural.correspondence(d, 0, f).owner[0] > 0 for f in range(FRAMES)])
                 for d in (drawn, edit(drawn))]
        mask = torch.stack([distance.grown(a | b, MARGIN) for a, b in zip(*there, strict=True)])
        out.append(Case(source, truth, mask.float()))
    return out


class Bench:
    """The small base model."""

    def __init__(self, load: Callable[[str], Any]):
        import torch

        self.load = load
        with torch.inference_mode():
            self.loaded = load("host.weights.loading").load(ROOT / "models" / "framepainter_small_base.safetensors", None, None,
                                                            torch.float32)

    def inverted(self, clip: Any, steps: int, generator: Any) -> tuple[Any, list]:
        """A clip's trajectory, and the conditioning that it was inverted with."""
        import torch

        load, loaded, host = self.load, self.loaded, self.load("host.conditioning")
        pictures, _ = load("core.inversion.sarp").perturb_frames(clip, generator)
        noise = load("core.inversion.condition").pixel_noise(SIDE, SIDE, generator)
        positive, latents = host.source_conditioning(loaded.clip_vision, loaded.vae, pictures, host.MicroConds(8, 30, 0.02), noise)
        levels = torch.tensor(load("core.edm").karras_sigmas(steps))
        return load("host.inversion.edm").invert(loaded.model, positive, {"samples": latents}, levels), positive

    def sampled(self, model: Any, source: Any, given: tuple[list, list], guidance: float) -> Any:
        """Latents (T, 4, h, w) sampled from where an inversion ended, guidance rising from 1 over the frames."""
        import comfy.sample
        import comfy.samplers
        import torch

        start = self.load("host.inversion.edm").start_latent(source)["samples"]
        guided = self.load("host.video.stages").linear_guidance(model, 1.0)
        return comfy.sample.sample_custom(guided, torch.zeros_like(start), guidance, comfy.samplers.sampler_object("euler"),
                                          torch.tensor(source.sigmas), *given, start, disable_pbar=True, seed=0)

    def edited_given(self, first: Any, generator: Any) -> tuple[list, list]:
        """Conditioning of an edited clip, from its first frame (1, H, W, 3)."""
        host, loaded = self.load("host.conditioning"), self.loaded
        noise = self.load("core.inversion.condition").latent_noise(SIDE // 8, SIDE // 8, generator)
        return host.edited_conditioning(loaded.clip_vision, loaded.vae, host.ClipStart(first), host.MicroConds(6, 30, 0.02), noise)

    def edited(self, case: Case, way: str) -> Any:
        """(T, H, W, 3)."""
        import torch

        injection, run = self.load("host.attention.injection"), self.load("host.attention.injection_run")
        generator = torch.Generator().manual_seed(0)
        source, _ = self.inverted(case.source, STEPS, generator)
        given = self.edited_given(case.truth[:1], generator)
        masks = run.Masks() if way == "no mask" else run.Masks(case.mask)
        whole = run.inject_temporal
        if way == "spatial attention":
            run.inject_temporal = lambda probabilities, v, change, own: whole(probabilities, v, None, own)
        try:
            model = injection.inject_attention(self.loaded.model, source, run.Settings(), masks=masks)
            return self.loaded.vae.decode(self.sampled(model, source, given, 1.2))
        finally:
            run.inject_temporal = whole


def table(bench: Bench, count: int) -> list[str]:
    import torch

    lines = [f"| {count} clips each | " + " | ".join(WAYS) + " |", "| --- |" + " --- |" * len(WAYS)]
    for name, edit in EDITS.items():
        shares: dict[str, list[float]] = {way: [] for way in WAYS}
        for case in cases(bench.load, edit, count):
            for way in WAYS:
                with torch.inference_mode():
                    error, nothing = ((x[1:] - case.truth[1:]).pow(2).mean() for x in (bench.edited(case, way), case.source))
                shares[way].append(float(error / nothing))
        values = [torch.tensor(shares[way]) for way in WAYS]
        lines.append(f"| {name} | " + " | ".join(f"{v.mean():.2f} ± {v.std():.2f}" for v in values) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = table(Bench(tools_pack.open_pack(options.host.resolve())), options.scenes)
    print("\n".join(lines))
    if options.write:
        pages.write_table(PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
