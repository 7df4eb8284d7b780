"""The effect of a motion LoRA on the motion, and the cost of its training, at a small scale.

    <ComfyUI's python> bench/motion_lora.py --host COMFYUI [--clips N] [--write]
    <ComfyUI's python> bench/motion_lora.py --host COMFYUI --cost [--full] [--write]

Effect: held-out procedural clips of one object on a clear path, each learned by Train Motion LoRA's own run on the small base
model. The clip is then generated again from its first frame and fresh noise, and the flow from every later frame back to the
first is measured with the pack's own estimator and compared with the true one. --write puts table and picture into docs/.

Cost: time and peak memory of a training step, each way of checkpointing in a process of its own, random weights. --full takes
the network's real size at 896 x 512 and 576 x 320, 14 frames, which is for a GPU. --write puts the tables into docs/motion_lora.md.

Both end in bench/motion_lora.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making"), str(ROOT / "bench")]
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
import random_model  # noqa: E402
import small_model  # noqa: E402

RESULTS = ROOT / "bench" / "motion_lora.json"
DOCS, PICTURE = ROOT / "docs" / "motion_lora.md", ROOT / "docs" / "images" / "motion_lora.png"
MARK, COST_MARK = "<!-- table: bench/motion_lora.py -->", "<!-- table: bench/motion_lora.py --cost -->"

# ---- effect ----------------------------------------------------------------------------------------------------------

SCENES = {**small_model.SCENES, "sprites": (1, 1), "shift": (0.5, 0.8)}  # one object, 24 to 38 pixels of path
FIRST_SEED = 8001  # the small models were trained on others
FRAMES = small_model.FRAMES
NOISE_SEEDS = (1, 2, 3)
SAMPLING_STEPS = 20
FPS_ID, BUCKET, AUGMENTATION = 6, 127, 0.02
MOVING = 4.0  # pixels of true flow from which a place counts
TRAINED: dict[str, dict[str, Any]] = {
    "with LoRA": {"steps": 300, "learning_rate": 2e-3, "rank": 32, "numbers": "corrected"},
    "with LoRA, settings as released": {"steps": 250, "learning_rate": 5e-4, "rank": 32, "numbers": "release"},
}


class Clip(NamedTuple):
    """scenes: one of them.  frames: (T, H, W, 3).  truth: for each frame from the second, where it comes from in the first."""

    scenes: Any
    frames: Any
    truth: list


class Error(NamedTuple):
    """flow: mean end-point error of the flow over the moving object, pixels.  place: of the object's centre, pixels.
    picture: squared error where the object was or should be."""

    flow: float
    place: float
    picture: float


def draw(load, seed: int) -> Clip:
    import torch

    procedural = load("core.data.procedural")
    scenes = procedural.draw_scenes(1, FRAMES, procedural.SceneSettings(**{**SCENES}), torch.Generator().manual_seed(seed))
    truth = [procedural.correspondence(scenes, 0, t) for t in range(1, FRAMES)]
    return Clip(scenes, procedural.render(scenes)[0].movedim(1, -1).contiguous(), truth)


def centre(frame, background):
    """The middle of what differs from the ground, (x, y) in pixels."""
    import torch

    weight = ((frame - background).abs().amax(-1) - 0.06).clamp(0, 0.2)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in weight.shape), indexing="ij")
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum().clamp_min(1e-6)


def errors(load, frames, clip: Clip) -> Error:
    """frames: (T, H, W, 3) in [0, 1]."""
    estimate = load("core.flow.weight_free").weight_free_flow
    pictures, ground = frames.movedim(-1, 1), clip.scenes.background[0].movedim(0, -1)
    still = load("core.data.procedural").correspondence(clip.scenes, 0, 0).owner[0] > 0
    flow_error = pixels = place = picture = 0.0
    for t, true in enumerate(clip.truth, 1):
        found = estimate(pictures[t:t + 1], pictures[:1])
        moving = (true.owner > 0) & true.visible & (true.flow.norm(dim=1) > MOVING)
        flow_error += float((found - true.flow).norm(dim=1)[moving].sum())
        pixels += int(moving.sum())
        place += float((centre(frames[t], ground) - centre(clip.frames[t], ground)).norm()) / len(clip.truth)
        area = still | (true.owner[0] > 0)
        picture += float((frames[t] - clip.frames[t])[area].pow(2).mean()) / len(clip.truth)
    return Error(flow_error / max(1, pixels), place, picture)


def effect(load, options) -> dict:
    import comfy.sample
    import torch

    trainer, presets = (load(m) for m in ("host.training.motion_lora", "core.training.motion_lora.presets"))
    with torch.inference_mode():
        small = ROOT / "models" / "framepainter_small_base.safetensors"
        loaded = load("host.weights.loading").load(small, None, None, torch.float32)

    def generate(model, first, seed: int):
        edit = load("host.conditioning").edit_conditioning(loaded.clip_vision, loaded.vae, first, small_model.SIDE,
                                                           small_model.SIDE, FPS_ID, BUCKET, AUGMENTATION, 0)
        empty = torch.zeros(FRAMES, *edit.latent["samples"].shape[1:])
        latent = comfy.sample.sample(model, comfy.sample.prepare_noise(empty, seed), SAMPLING_STEPS, 1.0, "euler", "karras",
                                     edit.positive, edit.negative, empty, disable_pbar=True, seed=seed)
        return loaded.vae.decode(latent).float().clamp(0, 1)

    clips = [draw(load, FIRST_SEED + i) for i in range(options.clips)]
    loras: dict[str, list] = {}
    minutes = {}
    for name, changes in TRAINED.items():
        begun = time.time()
        settings = presets.choose("small network", **changes)
        with torch.inference_mode():
            loras[name] = [trainer.train(trainer.MotionInputs(loaded.model, loaded.clip_vision, loaded.vae, c.frames), settings,
                                         options.folder / "runs", 1.0) for c in clips]
        minutes[name] = (time.time() - begun) / 60 / len(clips)
        print(name, f"{minutes[name]:.1f} min a clip", flush=True)
    values: dict[str, list[list[Error]]] = {}
    pictures: dict[tuple[str, int], Any] = {}

    def add(name: str, i: int, made: list) -> None:
        values.setdefault(name, []).append([errors(load, frames, clips[i]) for frames in made])
        pictures[name, i] = made[0]

    with torch.inference_mode():
        for i, clip in enumerate(clips):
            first = clip.frames[:1]
            add("the true clip", i, [clip.frames])
            add("the first frame, not moving", i, [first.expand(FRAMES, -1, -1, -1)])
            models = {"without LoRA": loaded.model, **{name: made[i].model for name, made in loras.items()},
                      "with another clip's LoRA": loras["with LoRA"][(i + 1) % len(clips)].model}
            for name, model in models.items():
                add(name, i, [generate(model, first, seed) for seed in NOISE_SEEDS])
                print(FIRST_SEED + i, name, [f"{e.flow:.1f} px" for e in values[name][-1]], flush=True)
    return {"clips": options.clips, "seeds": len(NOISE_SEEDS), "minutes_a_clip": minutes, "pictures": pictures,
            "errors": {name: [[e._asdict() for e in clip] for clip in found] for name, found in values.items()}}


def effect_table(found: dict) -> str:
    lines = ["| what | flow error, px | of that without LoRA | worst clip | object's place, px | squared error |",
             "|---|---|---|---|---|---|"]
    base = found["errors"]["without LoRA"]
    for name, clips in found["errors"].items():
        def spread(key: str, digits: int, clips: list = clips) -> str:
            every = [e[key] for clip in clips for e in clip]
            return f"{statistics.mean(every):.{digits}f} ± {statistics.stdev(every):.{digits}f}"

        def mean(clip: list) -> float:
            return statistics.mean(e["flow"] for e in clip)

        ratios = [mean(c) / mean(b) for c, b in zip(clips, base, strict=True)]
        whole = statistics.mean(map(mean, clips)) / statistics.mean(map(mean, base))
        lines.append(f"| {name} | {spread('flow', 1)} | {whole:.2f} | {max(ratios):.2f} | {spread('place', 1)} | "
                     f"{spread('picture', 4)} |")
    return "\n".join(lines)


def effect_picture(load, found: dict, count: int = 2) -> None:
    """Rows: the source, without and with LoRA, the truth; `count` clips side by side."""
    import torch
    from PIL import Image

    rows = []
    for row, name in (("source: the first frame", "the true clip"), ("without LoRA", "without LoRA"), ("with LoRA", "with LoRA"),
                      ("truth", "the true clip")):
        cells: list = []
        for i in range(min(count, found["clips"])):
            frames = torch.nn.functional.interpolate(found["pictures"][name, i].movedim(-1, 1), 128, mode="bicubic").clamp(0, 1)
            cells += [f if t == 0 or row != "source: the first frame" else None for t, f in enumerate(frames.movedim(1, -1))]
        rows.append((row, cells))
    sheet = load("core.sheet").contact_sheet([f"frame {t + 1}" for t in range(FRAMES)] * count, rows)[0]
    PICTURE.parent.mkdir(exist_ok=True)
    levels = (sheet * 255).round().byte() // 4 * 4 + 2  # steps that cannot be seen make half the file
    Image.fromarray(levels.numpy()).save(PICTURE, optimize=True)
    print(PICTURE.relative_to(ROOT), PICTURE.stat().st_size)


# ---- cost ------------------------------------------------------------------------------------------------------------

SHAPES = {"small": (random_model.SMALL, 14, 24, 40), "896 x 512": (random_model.FULL, 14, 64, 112),
          "576 x 320": (random_model.FULL, 14, 40, 72)}  # widths, frames, latent height and width
WAYS = {  # what is computed again in the backward pass
    "none": "nothing",
    "spatial": "residual and spatial blocks",
    "whole": "residual blocks, whole transformers",
    "parts": "the same, feed-forward in parts",
}
RANK, DROP = 32, 0.1
TIMED = 3  # steps


def network(load, shape: str, way: str, made):
    """An SVD network with a LoRA to be trained.

    Args:
        made: name, shape -> a parameter.
    """
    import torch
    from comfy.ldm.modules.attention import FeedForward, SpatialVideoTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock

    training, lora = load("host.training.network"), load("core.training.lora")
    settings = {**random_model.svd_unet_settings(SHAPES[shape][0]), "dtype": torch.float32}
    with torch.device("meta"):
        unet = UNetModel(**settings, device="meta", operations=load("host.training.copies")._PlainLayers)
    unet.load_state_dict({name: made(name, tuple(p.shape)) for name, p in unet.state_dict().items()}, assign=True)
    out = training.TrainingNetwork(unet.eval()).requires_grad_(False)
    training.WITH_GRADIENTS = set()  # torch's own attention also where the host has another, as on a GPU
    load("host.models.savings").save_in(unet, by_row=True, untrained=True)
    lora.add_lora(unet, RANK, 0, layers=lora.temporal_layers(unet), normal=True, drop=DROP)
    for name, p in out.named_parameters():
        p.requires_grad_(lora.is_lora(name))
    again = {"none": (), "spatial": (VideoResBlock,)}.get(way, (VideoResBlock, SpatialVideoTransformer))
    blocks = [m for m in unet.modules() if isinstance(m, again)]
    if way == "spatial":
        blocks += [b for m in unet.modules() if isinstance(m, SpatialVideoTransformer) for b in m.transformer_blocks]
    for block in blocks:
        block.forward = training._Checkpointed(block.forward)
    if way == "parts":
        out.parts = load("core.training.in_parts").in_parts(unet, FeedForward)
    return out


def clip_of(load, shape: str, device):
    import torch

    widths, frames, h, w = SHAPES[shape]
    return load("core.training.motion_lora.objective").MotionClip(*(torch.randn(s, device=device) for s in (
        (frames, 4, h, w), (4, h, w), (1, widths["context_dim"]))))


def measured(load, shape: str, way: str) -> dict:
    """A training step's seconds, of processors if there is no GPU, and its peak bytes beyond what lies there before it."""
    import torch
    from attention_injection import give_back
    from measuring import PeakMemory, return_memory_at_once

    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    made = network(load, shape, way, lambda name, size: random_model.parameter(name, size, "bench").to(
        dtype if len(size) > 1 else torch.float32)).to(device)
    made.precision = "bf16" if cuda else "fp32"
    loss = load("core.training.motion_lora.objective").batch_loss(made, clip_of(load, shape, device), device=device)
    loop = load("core.training.loop")
    trainer = loop.Trainer({n: p for n, p in made.named_parameters() if p.requires_grad},
                           loop.TrainSettings(steps=99, learning_rate=5e-4, clip=0.0))
    return_memory_at_once(True)
    trainer.advance(loss)  # the optimiser's moments are there from now on
    trainer.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    give_back()
    with PeakMemory() as peak:
        trainer.advance(loss)
    return_memory_at_once(False)
    seconds = []
    clock = time.perf_counter if cuda else time.process_time  # others on the machine do not count
    for _ in range(TIMED):
        begun = clock()
        trainer.advance(loss)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - begun)
    return {"seconds": statistics.median(seconds), "peak": peak.bytes}


def counted(load, shape: str, way: str, half: bool) -> dict:
    """The same peak without a device and without arithmetic: the bytes of all tensors that the step's operations would make.

    kept: what is there between forward and backward pass.  resting: weights, LoRA and the optimiser's moments.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    motion, lora = load("core.training.motion_lora.objective"), load("core.training.lora")
    lora.dropout = lambda x, share: torch.native_dropout(x, share, True)[0]  # a GPU's, whose mask is one byte a value
    if half:  # a GPU's autocast has norms in fp32; fake tensors must be a CPU's, whose autocast has not
        for name in ("layer_norm", "group_norm"):
            plain = getattr(torch.nn.functional, name)
            setattr(torch.nn.functional, name, lambda x, *rest, plain=plain, **named: plain(x.float(), *rest, **named))
    with FakeTensorMode():
        made = network(load, shape, way, lambda _, size: torch.empty(
            size, dtype=torch.bfloat16 if half and len(size) > 1 else torch.float32))
        made.precision = "bf16" if half else "fp32"
        clip, latents = clip_of(load, shape, "cpu"), SHAPES[shape][1:]
        with live_bytes(made.parameters()) as live:
            value = motion.motion_loss(made, clip, torch.ones(1), torch.randn(1, latents[0], 4, *latents[1:]),
                                       torch.randn(1, 4, *latents[1:]), torch.tensor([motion.MICRO_CONDS["release"]]))
            kept = live.now
            value.backward()
    resting = sum(p.numel() * (p.element_size() + (8 if p.requires_grad else 0)) for p in made.parameters())
    return {"peak": live.peak, "kept": kept, "resting": resting}


def live_bytes(known):
    """A context that counts bytes of tensors that exist; `now` and `peak` leave out the known ones."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.now = self.peak = 0
            self.found = {}
            self.known = [t.untyped_storage() for t in known]  # held, so that no other gets their number
            self.numbers = {id(s) for s in self.known}

        def note(self, storage) -> None:
            number, size = id(storage), storage.nbytes()
            if number in self.numbers or number in self.found and self.found[number]() is storage:
                return
            self.now += size
            self.peak = max(self.peak, self.now)

            def gone(_) -> None:
                self.now -= size
                self.found.pop(number, None)

            self.found[number] = weakref.ref(storage, gone)

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.note(tensor.untyped_storage())
            return out

    return Live()


def cost(options) -> dict:
    """Every way in a process of its own."""
    rows = {}
    for shape in SHAPES:
        for way in WAYS:
            kinds = ["counted"] + (["measured"] if shape == "small" or options.full else [])
            for kind in kinds:
                command = [sys.executable, __file__, "--host", str(options.host), "--one", shape, way, kind]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(shape, way, kind, done.stderr.strip().splitlines()[-1:], flush=True)
                    continue
                rows.setdefault(shape, {}).setdefault(way, {})[kind] = json.loads(done.stdout.splitlines()[-1])
                print(shape, way, kind, done.stdout.splitlines()[-1], flush=True)
    return {"machine": options.name, "rows": rows}


def cost_table(found: dict) -> str:
    lines = []
    for shape, ways in found["rows"].items():
        widths, frames, h, w = SHAPES[shape]
        channels = "/".join(str(widths["model_channels"] * m) for m in widths["channel_mult"])
        has_time = any("measured" in kinds for kinds in ways.values())
        lines += [f"{channels} channels, {w * 8} x {h * 8} pixels, {frames} frames. " + (
                      f"Measured on {found['machine']}. " if has_time else "") + (
                      "Counted in fp32." if shape == "small" else "Counted in bf16, norms in fp32."), "",
                  "| computed again | kept, GB | peak, GB | with weights and optimiser | measured peak, GB | s a step |",
                  "|---|---|---|---|---|---|"]
        for way, kinds in ways.items():
            c, m = kinds["counted"], kinds.get("measured")
            lines.append(f"| {WAYS[way]} | {c['kept'] / 1e9:.2f} | {c['peak'] / 1e9:.2f} | "
                         f"{(c['peak'] + c['resting']) / 1e9:.1f} | " + (
                             f"{m['peak'] / 1e9:.2f} | {m['seconds']:.1f} |" if m else "| |"))
        lines.append("")
    return "\n".join(lines).strip()


def read() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def keep(part: str, found: dict) -> None:
    RESULTS.write_text(json.dumps({**read(), part: found}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("motion_lora"), help="for the runs, which go on where they were")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="change the documents")
    parser.add_argument("--cost", action="store_true", help="time and memory in place of the effect")
    parser.add_argument("--full", action="store_true", help="measure the real sizes too, for a GPU")
    parser.add_argument("--name", default=f"{os.cpu_count()} CPU cores, no GPU", help="the machine in words")
    parser.add_argument("--one", nargs=3, metavar=("SHAPE", "WAY", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        found = cost(options)
        if options.write:
            keep("cost", found)
            pages.write_table(DOCS, COST_MARK, cost_table(found))
        print(cost_table(found))
        return
    load = tools_pack.open_pack(options.host.resolve())
    import torch

    if options.one:
        shape, way, kind = options.one
        with torch.inference_mode(False), torch.enable_grad():
            print(json.dumps(measured(load, shape, way) if kind == "measured" else counted(load, shape, way, shape != "small")))
        return
    found = effect(load, options)
    print(effect_table(found))
    if options.write:
        effect_picture(load, found)
        pages.write_table(DOCS, MARK, effect_table(found))
        found.pop("pictures")
        keep("effect", found)


if __name__ == "__main__":
    main()
