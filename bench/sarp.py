"""What Smooth Area Perturbation does to an inversion, in miniature (I2VEdit, Table 2).

    python bench/sarp.py --host COMFYUI [--train STEPS] [--clips N]

A small SVD network is trained on clips as cameras give them: textures, slow waves of colour, and faint noise everywhere.
Then clips with areas of one colour are inverted, as they are and perturbed, and the inverted latents' Anderson-Darling
statistic is taken. Pixels become latents without loss (four neighbouring grey values are the four channels), so the noise
that decides arrives in the latents as it is. The network lies in tests/data/noisy_clips.safetensors; --train makes it anew.
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

NETWORK = ROOT / "tests" / "data" / "noisy_clips.safetensors"
RESULTS = ROOT / "bench" / "sarp.json"
UNET = {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": [1, 1], "context_dim": 16,
        "transformer_depth": [1, 0], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 0, 0],
        "num_head_channels": 16}
HEAD_WIDTH = 16
SIDE, FRAMES = 16, 4
SENSOR = 0.005  # standard deviation of the training clips' noise, pixels on -1 to 1
CONTENT = 0.3  # about the deviation of the training clips' grey values; model space is grey / CONTENT
EPSILON = 0.5  # of the norms, see soften
AUGMENTATION = 0.02
STEPS = 15  # of an inversion
GREYS = (-1.0, -0.3, 0.0, 0.25, 1.0)  # of the constant areas; pure black and white included


def clips(procedural, count: int, generator, ground: float | None = None):
    """Grey clips (count, FRAMES, 1, SIDE, SIDE) of low contrast around a mean; with a constant ground if one is given."""
    import torch

    settings = procedural.SceneSettings(height=SIDE, width=SIDE, sprites=(1, 2), radius=(0.25, 0.4), shift=(0.2, 0.6),
                                        texture=4, contrast=0.3)
    frames = procedural.render(procedural.draw_scenes(count, FRAMES, settings, generator))[:, :, :1] * 2 - 1
    mean = torch.rand(count, 1, 1, 1, 1, generator=generator) * 2 - 1
    if ground is not None:
        scenes = procedural.draw_scenes(count, FRAMES, settings, generator)
        scenes = scenes._replace(background=torch.full_like(scenes.background, 0.5))
        frames = procedural.render(scenes)[:, :, :1] * 2 - 1
        mean = torch.full((count, 1, 1, 1, 1), ground)
    return (mean + 0.4 * frames).clamp(-1, 1)


def latents(grey):
    """(..., 1, H, W) on -1 to 1 -> (..., 4, H/2, W/2) in model space."""
    import torch

    return torch.nn.functional.pixel_unshuffle(grey, 2) / CONTENT


def network():
    """The host's SVD UNet, small, with torch's own first weights and its residual branches closed."""
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
    return soften(model)


def soften(model):
    """Norms that leave faint signals faint. Of 32 channels in 32 groups each is a group of its own, and would be brought to
    full strength alone; in the published network ten share a group, and the stronger ones set its scale."""
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.GroupNorm):
            layer.eps = EPSILON
    return model


def vector():
    """The network's vector of numbers, (1, 768), as the host makes it of fps 8, motion 127, augmentation 0.02."""
    import torch
    from comfy.model_base import Timestep

    embed = Timestep(256)
    return torch.cat([embed(torch.tensor([float(n)])) for n in (8, 127, AUGMENTATION)], 1)


def train(load, steps: int) -> None:
    """EDM training, log-uniform noise levels; averages of the weights are kept."""
    import torch
    from safetensors.torch import save_file

    procedural = load("core.data.procedural")
    torch.set_grad_enabled(True)
    model, batch = network(), 16
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    y, context = vector().expand(batch * FRAMES, -1), torch.zeros(batch * FRAMES, 1, UNET["context_dim"])
    started = time.time()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        grey = clips(procedural, batch, generator)
        noisy = (grey + SENSOR * torch.randn(grey.shape, generator=generator)).clamp(-1, 1)
        x0 = latents(noisy).flatten(0, 1)
        first = latents(noisy[:, :1] + AUGMENTATION * torch.randn(noisy[:, :1].shape, generator=generator))
        condition = first.expand(-1, FRAMES, -1, -1, -1).flatten(0, 1)
        low, high = math.log(0.002), math.log(80.0)
        sigma = torch.exp(low + (high - low) * torch.rand(batch, generator=generator)).repeat_interleave(FRAMES)
        s = sigma[:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator)
        x = x0 + s * noise
        target = (x / (s**2 + 1) - x0) * (s**2 + 1).sqrt() / s
        v = model(torch.cat([x / (s**2 + 1).sqrt(), condition], 1), 0.25 * sigma.log(), context=context, y=y,
                  num_video_frames=FRAMES, transformer_options={})
        loss = (v - target).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(0.9985, (step + 1) / (step + 10))
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 1 - decay)
        if step % 50 == 0 or step == steps - 1:
            print(step, f"{float(loss):.4f}", f"{time.time() - started:.0f} s", flush=True)
        if step % 250 == 249 or step == steps - 1:
            NETWORK.parent.mkdir(parents=True, exist_ok=True)
            save_file({n: p.half() for n, p in average.items()}, str(NETWORK), metadata={"steps": str(step + 1)})
    torch.set_grad_enabled(False)


def load_network(load):
    """The trained network as the host runs it."""
    import torch
    from safetensors.torch import load_file

    tensors = {n: t.float() for n, t in load_file(str(NETWORK)).items()}
    model = load("host.building").build_unet(tensors, torch.float32, HEAD_WIDTH, diffusers_epsilon=False)
    soften(model.model.diffusion_model)
    return model


def inverted(load, model, grey, noise, setting: dict | None):
    """Invert a clip (FRAMES, 1, SIDE, SIDE), perturbed or not: its inverted noise."""
    import torch

    host, sarp, schedule = load("host.inversion"), load("core.inversion.sarp"), load("core.inversion.schedule")
    scale = 0.18215  # the host's, of LATENT
    clip = grey.expand(-1, 3, -1, -1)
    first = key = clip[:1]
    if setting is not None:
        found = sarp.perturb_clip(clip, noise, **setting)
        clip, first, key = found.clip, found.first_frame, found.key_frame
    pixel_noise = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    condition = [latents(picture[:, :1] + AUGMENTATION * pixel_noise) for picture in (key, first)]
    image = load("core.inversion.condition").source_condition(*condition, FRAMES)
    positive, _ = load("host.conditioning").svd_conditioning(torch.zeros(1, 1, UNET["context_dim"]), image, 8, 127,
                                                             AUGMENTATION)
    with torch.inference_mode():
        found = host.invert(model, positive, {"samples": latents(clip[:, :1]) / scale},
                            torch.tensor(schedule.karras_sigmas(STEPS, 80.0)))
    return found.inverted


SETTINGS = {
    "as it is": None,
    "perturbed, clamped, zero border (released)": {"limits": "clamp", "border": "zero"},
    "perturbed, clamped": {"limits": "clamp", "border": "repeat"},
    "perturbed, mirrored inward (default)": {"limits": "inward", "border": "repeat"},
}


def measure(load, count: int) -> dict[str, dict[str, float]]:
    """Mean Anderson-Darling statistic by ground and setting; a row "clean noise" and one for the training's own clips."""
    import torch

    procedural, statistic = load("core.data.procedural"), load("core.inversion.normality").anderson_darling
    model = load_network(load)
    table: dict[str, dict[str, float]] = {}
    for ground in (*GREYS, None):
        generator = torch.Generator().manual_seed(5000)
        rows: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(count):
            grey = clips(procedural, 1, generator, ground)[0]
            if ground is None:
                grey = (grey + SENSOR * torch.randn(grey.shape, generator=generator)).clamp(-1, 1)
            noise = torch.randn((FRAMES + 2, 3, SIDE, SIDE), generator=generator)
            for name, setting in SETTINGS.items():
                rows[name].append(statistic(inverted(load, model, grey, noise, setting)).statistic)
        table["noise everywhere, as in training" if ground is None else f"{ground:+.2f}"] = {
            name: statistics.mean(values) for name, values in rows.items()}
        print(json.dumps({str(ground): {n: round(statistics.mean(v), 2) for n, v in rows.items()}}), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--train", type=int, default=0, help="steps; 0 takes the network that is there")
    parser.add_argument("--clips", type=int, default=4, help="clips a ground")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host, cpu=True)
    if args.train:
        train(load, args.train)
    table = measure(load, args.clips)
    RESULTS.write_text(json.dumps({"clips": args.clips, "steps": STEPS, "side": SIDE, "frames": FRAMES, "statistic": table},
                                  indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
