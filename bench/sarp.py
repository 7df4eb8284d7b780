"""The effect of Smooth Area Perturbation on an inversion, at a small scale (I2VEdit, Table 2).

    <ComfyUI's python> bench/sarp.py --host COMFYUI [--train STEPS] [--clips N] [--write]

A small SVD network is trained on clips as cameras give them: soft shapes, slow waves of colour, and faint noise everywhere.
Then clips are inverted whose ground is one colour without noise, as they are and perturbed, and the inverted latents'
Anderson-Darling statistic is taken. Pixels become latents without loss (four neighbouring grey values are the four
channels), so the noise that decides arrives in the latents as it is. --write puts the table into docs/i2vedit.md.

The network lies in tests/data/noisy_clips.safetensors. It was made with --train 1100 and --train 1800 --further, 18 minutes on
one core; the first of the two ran with an AUGMENTATION of 0.02 still.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

NETWORK = ROOT / "tests" / "data" / "noisy_clips.safetensors"
RESULTS = ROOT / "bench" / "sarp.json"
PAGE, BEGIN = ROOT / "docs" / "i2vedit.md", "<!-- table: bench/sarp.py -->"
UNET = {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": [1, 1], "context_dim": 16,
        "transformer_depth": [0, 1], "transformer_depth_middle": 1, "transformer_depth_output": [0, 0, 1, 1],
        "num_head_channels": 16}
HEAD_WIDTH = 16
GROUPS = 4  # of the norms, see share_norms
SIDE, FRAMES = 48, 4  # of the clips that are inverted
TRAINED_SIDE, BATCH, RATE = 24, 3, 2e-3
SENSOR = 0.005  # standard deviation of a camera's noise, pixels on -1 to 1
CONTENT = 0.3  # model space is grey / CONTENT
AUGMENTATION = 0.005  # noise on the condition's pixels, as faint as the sensor's: there is no VAE here that averages it
SOFTNESS = 2.0  # pixels; the noise is what is sharp in these clips
STEPS = 25  # of an inversion, on the released schedule
LEVELS = (0.004, 0.0167, 0.05, 0.2, 0.8, 4.0)  # of the filters that the first layer starts from
LOW, MIDDLE, HIGH = 0.002, 1.0, 700.0  # noise levels in training; three quarters of them lie below MIDDLE
GREYS = (-1.0, -0.3, 0.0, 0.25, 1.0)  # of the grounds; pure black and white included
TRAINING_LIKE = "noise everywhere, as in training"
SHAPES = {"sprites": (1, 3), "radius": (0.25, 0.5)}
FEWER_SHAPES = {"sprites": (1, 2), "radius": (0.2, 0.35)}  # of a clip with a ground: it fills about three quarters
SETTINGS = {
    "as it is": None,
    "perturbed, clamped, zero border (released)": {"limits": "clamp", "border": "zero"},
    "perturbed, clamped": {"limits": "clamp", "border": "repeat"},
    "perturbed, mirrored inward (default)": {"limits": "inward", "border": "repeat"},
}


# ---- clips -----------------------------------------------------------------------------------------------------------


def blur(pictures):
    """Gaussian, SOFTNESS pixels wide, over the last two axes."""
    import torch
    import torch.nn.functional as F

    reach = math.ceil(3 * SOFTNESS)
    weights = torch.exp(-torch.arange(-reach, reach + 1.0) ** 2 / (2 * SOFTNESS**2))
    weights = (weights / weights.sum())[None, None]
    flat = F.pad(pictures.reshape(-1, 1, *pictures.shape[-2:]), (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, weights[..., None]), weights[:, :, None]).reshape(pictures.shape)


def clips(procedural, count: int, side: int, generator, ground: float | None = None):
    """Grey clips (count, FRAMES, 1, side, side), on -1 to 1, and where there is noise; without a ground, also the first frames
    with another draw of the noise, for the condition.

    Without a ground as in training: soft shapes before slow waves or one colour, noise everywhere, not even cut off at black
    and white. With one, that colour exactly wherever no shape is; the shapes are as a camera sees them.
    """
    import torch

    settings = procedural.SceneSettings(height=side, width=side, shift=(0.2, 0.6), texture=3, contrast=0.3,
                                        **(SHAPES if ground is None else FEWER_SHAPES))
    scenes = procedural.draw_scenes(count, FRAMES, settings, generator)
    shapes = blur(procedural.render(scenes)[:, :, :1] * 2 - 1)
    alone = scenes._replace(texture=torch.ones_like(scenes.texture), background=torch.zeros_like(scenes.background))
    cover = blur(procedural.render(alone)[:, :, :1])
    grey = 1.05 * (torch.rand(count, 1, 1, 1, 1, generator=generator) * 2 - 1)
    waves = 0.4 * (torch.rand(count, 1, 1, 1, 1, generator=generator) < 0.5) * (scenes.background[:, None, :1] * 2 - 1)
    if ground is not None:
        grey, waves = torch.full_like(grey, ground), torch.zeros_like(waves)
    behind = grey + waves
    clean = torch.lerp(behind, 0.6 * grey + 0.35 * shapes, cover)
    noisy = clean + SENSOR * torch.randn(cover.shape, generator=generator)
    if ground is None:
        return noisy, clean[:, :1] + SENSOR * torch.randn(clean[:, :1].shape, generator=generator)
    seen = cover > 0.005
    return torch.where(seen, noisy.clamp(-1, 1), behind), seen


def latents(grey):
    """(..., 1, H, W) on -1 to 1 -> (..., 4, H/2, W/2) in model space."""
    import torch

    return torch.nn.functional.pixel_unshuffle(grey, 2) / CONTENT


def condition(first, generator):
    """First frames (B, 1, 1, H, W) -> the image condition of all frames, (B * FRAMES, 4, h, w)."""
    import torch

    first = latents(first + AUGMENTATION * torch.randn(first.shape, generator=generator))
    return first.expand(-1, FRAMES, -1, -1, -1).flatten(0, 1)


# ---- network ---------------------------------------------------------------------------------------------------------


def network(load):
    """The host's SVD UNet, small; its first layer starts from the best linear filters of some noise levels."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from random_model import svd_unet_settings
    from small_model import initialise

    torch.manual_seed(0)
    model = initialise(UNetModel(**{**svd_unet_settings(UNET), **UNET}, device="cpu", dtype=torch.float32,
                                 operations=comfy.ops.disable_weight_init))
    torch.nn.init.zeros_(model.out[2].weight)
    torch.nn.init.zeros_(model.out[2].bias)
    filters, first = noise_filters(load), model.input_blocks[0][0]
    with torch.no_grad():
        first.weight[:len(filters)] = filters
        first.bias[:len(filters)] = 0
    return share_norms(model)


def share_norms(model):
    """Eight channels a group of the norms; in the published network ten share one. The host always makes 32 groups, and 32
    channels alone in their groups would each be brought to full strength, however faint."""
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.GroupNorm):
            layer.num_groups = GROUPS
    return model


def noise_filters(load):
    """3 x 3 filters (4 * levels, 8, 3, 3) that tell the prediction's target from input and condition with least squares.

    Sensor noise is a four-hundredth of what the grey values are; a few thousand steps would not find it from random weights.
    """
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(99)
    grey, first = clips(load("core.data.procedural"), 32, TRAINED_SIDE, generator)
    x0, image = latents(grey).flatten(0, 1), condition(first, generator)
    out = []
    for sigma in LEVELS:
        taken, _, target = noised(load, x0, torch.full((len(x0),), sigma), generator)
        seen = F.unfold(torch.cat([taken, image], 1), 3).movedim(1, -1).flatten(0, 1).double()
        wanted = target[:, :, 1:-1, 1:-1].flatten(2).movedim(1, -1).flatten(0, 1).double()
        square = seen.T @ seen / len(seen) + 1e-7 * torch.eye(seen.shape[1], dtype=torch.float64)
        out.append(torch.linalg.solve(square, seen.T @ wanted / len(seen)).T.reshape(4, 8, 3, 3).float())
    return torch.cat(out)


def noised(load, x0, sigma, generator):
    """Network input, timestep and the v to predict of latents (B, 4, h, w) at levels (B,)."""
    import torch

    return load("core.edm").add_noise(x0, torch.randn(x0.shape, generator=generator), sigma)


def vector():
    """The network's vector of numbers, (1, 768), as the host makes it of fps 8, motion 127 and the augmentation."""
    import torch
    from comfy.model_base import Timestep

    embed = Timestep(256)
    return torch.cat([embed(torch.tensor([float(n)])) for n in (8, 127, AUGMENTATION)], 1)


def train(load, steps: int, further: bool) -> None:
    """EDM training; averages of the weights are kept.

    Args:
        further: from the network that is there, instead of a new one.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    procedural = load("core.data.procedural")
    model, before = network(load), 0
    if further:
        model.load_state_dict({n: t.float() for n, t in load_file(str(NETWORK)).items()})
        with safe_open(str(NETWORK), framework="pt") as file:
            before = int(file.metadata()["steps"])
    torch.set_grad_enabled(True)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(before)
    y, context = vector().expand(BATCH * FRAMES, -1), torch.zeros(BATCH * FRAMES, 1, UNET["context_dim"])
    started, shown = time.time(), []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        grey, first = clips(procedural, BATCH, TRAINED_SIDE, generator)
        share, faint = torch.rand(BATCH, generator=generator), torch.rand(BATCH, generator=generator) < 0.75
        sigma = torch.where(faint, LOW * (MIDDLE / LOW) ** share, MIDDLE * (HIGH / MIDDLE) ** share)
        sigma = sigma.repeat_interleave(FRAMES)
        taken, t, target = noised(load, latents(grey).flatten(0, 1), sigma, generator)
        v = model(torch.cat([taken, condition(first, generator)], 1), t, context=context, y=y,
                  num_video_frames=FRAMES, transformer_options={})
        loss = (v - target).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(0.995, (step + 1) / (step + 10))
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 1 - decay)
        shown.append(float(loss))
        if step % 50 == 49:
            print(step + 1, f"{statistics.mean(shown[-100:]):.4f}", f"{time.time() - started:.0f} s", flush=True)
        if step % 200 == 199 or step == steps - 1:
            NETWORK.parent.mkdir(parents=True, exist_ok=True)
            save_file({n: p.half() for n, p in average.items()}, str(NETWORK), metadata={"steps": str(before + step + 1)})
    torch.set_grad_enabled(False)


def load_network(load):
    """The trained network as the host runs it."""
    import torch
    from safetensors.torch import load_file

    tensors = {n: t.float() for n, t in load_file(str(NETWORK)).items()}
    model = load("host.weights.building").build_unet(tensors, torch.float32, HEAD_WIDTH, diffusers_epsilon=False)
    share_norms(model.model.diffusion_model)
    return model


# ---- measuring -------------------------------------------------------------------------------------------------------


def inverted(load, model, grey, noise, setting: dict | None):
    """Invert a clip (FRAMES, 1, H, W), perturbed or not: its inverted noise.

    Args:
        noise: (FRAMES + 2, 3, H, W) for the perturbation.
    """
    import torch

    host, sarp, schedule = load("host.inversion.edm"), load("core.inversion.sarp"), load("core.edm")
    scale = 0.18215  # the host's, of LATENT
    clip = grey.expand(-1, 3, -1, -1)
    first = key = clip[:1]
    if setting is not None:
        found = sarp.perturb_clip(clip, noise, **setting)
        clip, first, key = found.clip, found.first_frame, found.key_frame
    pixel_noise = torch.randn(1, 1, *grey.shape[-2:], generator=torch.Generator().manual_seed(7))
    pictures = [latents(picture[:, :1] + AUGMENTATION * pixel_noise) for picture in (key, first)]
    image = load("core.inversion.condition").source_condition(*pictures, FRAMES)
    conditioning = load("host.conditioning")
    positive, _ = conditioning.svd_conditioning(torch.zeros(1, 1, UNET["context_dim"]), image,
                                                conditioning.MicroConds(8, 127, AUGMENTATION))
    with torch.inference_mode():
        found = host.invert(model, positive, {"samples": latents(clip[:, :1]) / scale},
                            torch.tensor(schedule.karras_sigmas(STEPS)))
    return found.inverted


def measure(load, count: int) -> dict[str, dict[str, list[float]]]:
    """Anderson-Darling statistics, one a clip, by ground and setting; the last row for clips as in training."""
    import torch

    procedural, statistic = load("core.data.procedural"), load("core.inversion.normality").anderson_darling
    model = load_network(load)
    table: dict[str, dict[str, list[float]]] = {}
    for ground in (*GREYS, None):
        generator = torch.Generator().manual_seed(9000)  # the set-up was chosen on clips of seed 5000
        rows: dict[str, list[float]] = {name: [] for name in SETTINGS}
        shares = []
        for _ in range(count):
            grey, seen = clips(procedural, 1, SIDE, generator, ground)
            while ground is None and grey.abs().max() >= 1:  # a file cannot hold it: it would be cut off before any noise
                grey, seen = clips(procedural, 1, SIDE, generator, ground)
            shares.append(0.0 if ground is None else 1 - float(seen.float().mean()))
            noise = torch.randn((FRAMES + 2, 3, SIDE, SIDE), generator=generator)
            for name, setting in SETTINGS.items():
                rows[name].append(round(statistic(inverted(load, model, grey[0], noise, setting)).statistic, 2))
        name = TRAINING_LIKE if ground is None else f"{ground:+.2f}"
        table[name] = rows
        print(name, f"ground {min(shares):.2f} to {max(shares):.2f} of the picture", json.dumps(rows), flush=True)
    return table


def lines(table: dict[str, dict[str, list[float]]]) -> list[str]:
    """A Markdown table: mean (least to most) of the clips, and by how much the default lowers the mean."""
    out = ["| ground | " + " | ".join(SETTINGS) + " | falls by |", "| --- |" + " --- |" * (len(SETTINGS) + 1)]
    for ground, rows in table.items():
        cells = [f"{statistics.mean(v):.3g} ({min(v):.3g} to {max(v):.3g})" for v in rows.values()]
        means = [statistics.mean(v) for v in rows.values()]
        out.append(f"| {ground} | " + " | ".join(cells) + f" | {means[0] / means[-1]:.1f} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--train", type=int, default=0, help="steps; 0 takes the network that is there")
    parser.add_argument("--further", action="store_true", help="train the network that is there instead of a new one")
    parser.add_argument("--clips", type=int, default=4, help="clips a ground")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host, cpu=True)
    if args.train:
        train(load, args.train, args.further)
    table = measure(load, args.clips)
    text = "\n".join(lines(table))
    print(text)
    if args.write:
        found = {"clips": args.clips, "steps": STEPS, "side": SIDE, "frames": FRAMES, "statistic": table}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        pages.write_table(PAGE, BEGIN, text)


if __name__ == "__main__":
    main()
