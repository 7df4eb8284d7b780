"""Train the small models that the pack ships, from scratch, on procedural clips (see models/README.md).

    python dev.py models STAGE [--folder WORK]

Stages, in their order: autoencoder, decoder, image-encoder, base, sketch, refine, drag, coarse. Each resumes where it was stopped,
and ends with a file in the work folder; the last five with a checkpoint that Load FramePainter reads. refine trains the sketch
model further, on pairs of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import pack as tools_pack  # noqa: E402

MODELS = Path(__file__).resolve().parents[2] / "models"
SIDE = 96  # pixels
SCENES = {"height": SIDE, "width": SIDE, "sprites": (1, 2), "radius": (0.28, 0.45), "shift": (0.3, 0.9), "turn": 26.0,
          "growth": 0.15, "texture": 3, "contrast": 0.22}
CONTEXT = 32  # width of the image embedding
CLIP = {"model_type": "clip_vision_model", "hidden_act": "gelu", "hidden_size": 64, "image_size": 96,
        "intermediate_size": 128, "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 16,
        "projection_dim": CONTEXT}


@dataclass(frozen=True)
class Stage:
    """How a part is trained."""

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0


STAGES = {
    "autoencoder": Stage(2500, 32, 1e-3),
    "decoder": Stage(4000, 24, 8e-4),
    "image-encoder": Stage(800, 64, 1e-3),
    "base": Stage(2200, 8, 6e-4),
    "sketch": Stage(2000, 8, 5e-4),
    "refine": Stage(3000, 8, 5e-4, seed=1),
    "drag": Stage(600, 8, 4e-4),
    "coarse": Stage(600, 8, 4e-4),
}
PAIRS = 6000
DRAGS = 6  # most drags a pair
UNET = {"model_channels": 64, "channel_mult": [1, 1], "num_res_blocks": [1, 1], "context_dim": CONTEXT,
        "transformer_depth": [1, 0], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 0, 0],
        "num_head_channels": 32}
ENCODER = {"projection": 64, "embedding": 64, "stem": (16, 16, 32), "stages": (32, 64)}
HEAD_WIDTH = 32
FRAMES = 4
CLIPS = 8000
SCALING = 0.18215  # SVD's latents are multiplied by this
AUGMENTATION = 0.02  # standard deviation of the noise on the source picture, pixels in [-1, 1]


def initialise(module: Any) -> Any:
    """Give every layer torch's own first weights; the host's layers come without."""
    import torch

    for layer in module.modules():
        kinds = {torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Embedding,
                 torch.nn.GroupNorm, torch.nn.LayerNorm}
        for kind in kinds:
            if isinstance(layer, kind) and list(layer.parameters(recurse=False)):
                kind.reset_parameters(layer)
    return module.requires_grad_(True)


def pictures(procedural: Any, count: int, generator: Any, frames: int = 2) -> Any:
    """Frames of fresh scenes, (count, 3, H, W) in [0, 1]."""
    settings = procedural.SceneSettings(**SCENES)
    clips = procedural.render(procedural.draw_scenes(-(-count // frames), frames, settings, generator))
    return clips.flatten(0, 1)[:count]


def crops(procedural: Any, count: int, side: int, generator: Any) -> Any:
    """Random squares of fresh scenes, four of each: (count, 3, side, side) in [-1, 1]. Convolutions learn the same from
    them as from whole pictures, at a fraction of the cost."""
    import torch

    out = []
    for picture in pictures(procedural, -(-count // 4), generator):
        for _ in range(4):
            y, x = torch.randint(0, SIDE - side + 1, (2,), generator=generator).tolist()
            out.append(picture[:, y:y + side, x:x + side])
    return torch.stack(out[:count]) * 2 - 1


def reconstruction(decoded: Any, target: Any) -> dict:
    """Errors of pixels and of edges."""
    error = decoded - target
    square = error.pow(2).mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return {"loss": error.abs().mean() + 2 * square + edges, "squared error": square}


def autoencoder_loss(model: Any, load: Callable[[str], Any], batch: int) -> Callable:
    """Noise on the latents and a small cost of their size keep them smooth and bounded."""
    import torch

    procedural = load("core.data.procedural")

    def loss(step: int, micro: int, generator: torch.Generator) -> dict:
        target = crops(procedural, batch, SIDE // 2, generator)
        z = model.encode(target)
        out = reconstruction(model.decode(z + 0.1 * torch.randn(z.shape, generator=generator)), target)
        size = z.pow(2).mean()
        return {**out, "loss": out["loss"] + 3e-3 * size, "latents": size}

    return loss


def decoder_loss(model: Any, load: Callable[[str], Any], batch: int) -> Callable:
    """The decoder alone, on latents that stay as they are, nearly without noise: sharper edges, nothing else changes."""
    import torch

    procedural = load("core.data.procedural")

    def loss(step: int, micro: int, generator: torch.Generator) -> dict:
        target = crops(procedural, batch, SIDE // 2, generator)
        with torch.no_grad():
            z = model.encode(target)
        return reconstruction(model.decode(z + 0.02 / SCALING * torch.randn(z.shape, generator=generator)), target)

    return loss


def differentiable(model: Any, layers: Any) -> Any:
    """A CLIP network of the host whose layers can be trained: the host's own add in place."""

    def forward(layer: Any, x: Any, mask: Any, attention: Any) -> Any:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
        return x + layer.mlp(layer.layer_norm2(x))

    for layer in layers:
        layer.forward = partial(forward, layer)
    return model


def image_encoder() -> Any:
    """The host's CLIP vision network, small."""
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPVisionModelProjection

    model = initialise(CLIPVisionModelProjection(CLIP, torch.float32, "cpu", comfy.ops.disable_weight_init))
    torch.nn.init.normal_(model.vision_model.embeddings.class_embedding, std=0.02)

    return differentiable(model, model.vision_model.encoder.layers)


def image_encoder_loss(model: Any, load: Callable[[str], Any], batch: int) -> tuple[Any, Callable]:
    """The embedding must tell the picture's 6 x 6 thumbnail through a linear layer, which is returned to be trained too."""
    import torch
    import torch.nn.functional as F
    from comfy.ops import disable_weight_init

    procedural, images = load("core.data.procedural"), load("core.images")
    readout = initialise(disable_weight_init.Linear(CONTEXT, 3 * 36))

    def loss(step: int, micro: int, generator: torch.Generator) -> dict:
        shown = pictures(procedural, batch, generator, frames=1)
        embedding = model(pixel_values=images.clip_pixels(shown.movedim(1, -1), CLIP["image_size"]))[2]
        return {"loss": (readout(embedding) - F.adaptive_avg_pool2d(shown, 6).flatten(1)).pow(2).mean()}

    return readout, loss


def unet(settings: dict | None = None) -> Any:
    """A small UNet of the host, its residual branches closed at first. Its SVD network if no settings are given."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
    from random_model import svd_unet_settings

    settings = settings or {**svd_unet_settings(UNET), **UNET}
    model = initialise(UNetModel(**settings, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    last = [m.out_layers[3] for m in model.modules() if isinstance(m, ResBlock)]
    last += [m.proj_out for m in model.modules() if isinstance(m, SpatialTransformer)] + [model.out[2]]
    for layer in last:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def scaled_autoencoder(load: Callable[[str], Any], tensors: dict) -> dict:
    """Give every latent channel the size that SVD's have, 1 / 0.18215, by scaling the layers around the latents."""
    import torch

    model = load("core.models.small_autoencoder").SmallAutoencoder()
    model.load_state_dict(tensors)
    return scaled_to(model, pictures(load("core.data.procedural"), 256, torch.Generator().manual_seed(1)))


def scaled_to(model: Any, shown: Any, size: float = 1.0) -> dict:
    """An autoencoder's tensors, scaled so that the latents of these pictures (B, 3, H, W), times 0.18215, are of this size
    in every channel (root mean square)."""
    import torch

    with torch.no_grad():
        scale = size / SCALING / model.encode(shown * 2 - 1).pow(2).mean((0, 2, 3)).sqrt()
    out = {name: t.clone() for name, t in model.state_dict().items()}
    out["encoder.head.weight"] *= scale[:, None, None, None]
    out["encoder.head.bias"] *= scale
    out["decoder.stem.weight"] /= scale[None, :, None, None]
    return out


# ---- data ------------------------------------------------------------------------------------------------------------


def examples(load: Callable[[str], Any], folder: Path, count: int, seed: int, signal: str | None, frames: int) -> Any:
    """Clips, or source and target frame with a signal, as the networks are trained on them; kept in the work folder.

    Args:
        signal: "sketch", "drag", "coarse", or None for whole clips.
    """
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / f"examples-{signal or 'clips'}-{count}-{seed}.safetensors"
    Examples = load("core.training.examples").Examples
    if not path.is_file():
        parts = [_examples_part(load, folder, min(200, count - done), seed * 100_000 + done, signal, frames)
                 for done in range(0, count, 200)]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        save_file(whole, str(path))
    return Examples(**load_file(str(path)))


def _examples_part(load: Callable[[str], Any], folder: Path, count: int, seed: int, signal: str | None,
                   frames: int) -> dict:
    import torch
    from safetensors.torch import load_file

    procedural, signals, images = (load(f"core.{m}") for m in ("data.procedural", "data.signals", "images"))
    vae = load("core.models.small_autoencoder").SmallAutoencoder()
    vae.load_state_dict(load_file(str(folder / "autoencoder.safetensors")))
    clip = image_encoder()
    clip.load_state_dict(load_file(str(folder / "image-encoder.safetensors")))
    generator = torch.Generator().manual_seed(seed)
    scenes = procedural.draw_scenes(count, frames, procedural.SceneSettings(**SCENES), generator)
    clips = procedural.render(scenes)  # (B, T, 3, H, W)
    source = clips[:, 0] * 2 - 1
    noisy = source + AUGMENTATION * torch.randn(source.shape, generator=generator)
    shown = clips if signal is None else clips[:, [0, -1]]
    with torch.no_grad():
        out = {
            "latents": vae.encode(shown.flatten(0, 1) * 2 - 1).unflatten(0, shown.shape[:2]) * SCALING,
            "image": vae.encode(noisy),
            "embedding": clip(pixel_values=images.clip_pixels(clips[:, 0].movedim(1, -1), CLIP["image_size"]))[2][:, None],
        }
    if signal is None:
        out["micro_conds"] = _micro_conds(scenes, generator)
    else:
        truth = procedural.correspondence(scenes, 0, frames - 1)
        out |= {"flow": truth.flow.half(), "visible": truth.visible, **signal_of(load, signal, scenes, clips, truth, generator)}
    return {name: t.contiguous() for name, t in out.items()}


def _micro_conds(scenes: Any, generator: Any) -> Any:
    """fps - 1 at random, the motion bucket in proportion to the sprites' mean path, 127 at the average; augmentation."""
    import torch

    path = (scenes.centre[:, :, -1] - scenes.centre[:, :, 0]).norm(dim=-1) * scenes.present
    bucket = 127 * path.sum(1) / scenes.present.sum(1) / (sum(SCENES["shift"]) / 2)
    fps = torch.randint(3, 13, bucket.shape, generator=generator)
    return torch.stack([fps, bucket.round(), torch.full_like(bucket, AUGMENTATION)], 1)


def signal_of(load: Callable[[str], Any], signal: str, scenes: Any, clips: Any, truth: Any, generator: Any) -> dict:
    """The exact editing signal of each pair, as section 3.3 of the paper makes it from flow."""
    import torch

    signals, splat = load("core.data.signals"), load("core.flow.warp")
    if signal == "drag":
        count = truth.flow.shape[0]
        points = signals.drag_points(truth.flow, truth.visible, DRAGS, generator)
        shares = (torch.cat([points.source, points.target], -1) + 0.5) / SIDE
        number = torch.randint(1, DRAGS + 1, (count, 1), generator=generator)  # users set one or a few
        kept = points.valid & (torch.arange(DRAGS) < number)
        return {"drag": shares.masked_fill(~kept[..., None], torch.nan)}
    if signal == "coarse":
        forward = load("core.data.procedural").correspondence(scenes, clips.shape[1] - 1, 0)
        pushed = splat.softmax_splat(clips[:, 0], forward.flow, 10.0 * forward.owner[:, None].float()).image
        return {"control": (pushed * 255).round().to(torch.uint8)}
    return {"control": (signals.sketch_from_flow(truth.flow) * 255).round().to(torch.uint8)}


def unpack(folder: Path) -> None:
    """Put autoencoder and image encoder of the shipped base model into a work folder that has none of its own."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = load_file(str(MODELS / "framepainter_small_base.safetensors"))
    for name, prefix in (("autoencoder", "first_stage_model."),
                         ("image-encoder", "conditioner.embedders.0.open_clip.model.visual.")):
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            save_file({n[len(prefix):]: t.float() for n, t in tensors.items() if n.startswith(prefix)}, str(path))


# ---- networks --------------------------------------------------------------------------------------------------------


def write(load: Callable[[str], Any], path: Path, folder: Path, unet: dict, matching: dict, encoder: dict) -> None:
    """The pack's single file in fp16, with the small autoencoder and image encoder."""
    import torch
    from safetensors.torch import load_file, save_file

    names = load("core.weights.framepainter")
    parts = {names.UNET: unet, names.MATCHING: matching, names.ENCODER: encoder,
             names.VAE: load_file(str(folder / "autoencoder.safetensors")),
             names.CLIP_VISION: load_file(str(folder / "image-encoder.safetensors"))}
    tensors = {prefix + name: t.detach().to(torch.float16).contiguous() for prefix, part in parts.items()
               for name, t in part.items() if not name.endswith("position_ids")}
    metadata = {"framepainter.format": "1", "framepainter.head_width": str(HEAD_WIDTH),
                "framepainter.group_norm_epsilon": "svd", "framepainter.size": f"{SIDE}x{SIDE}",
                "framepainter.signal": path.stem.rsplit("_", 1)[-1].replace("base", "none")}
    save_file(tensors, str(path), metadata=metadata)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def train_base(load: Callable[[str], Any], folder: Path) -> None:
    """An image-to-video model of its own, from nothing: equation 1 on all frames, no signal."""
    objective, start = load("core.training.framepainter.objective"), load("core.training.framepainter.start")
    training = load("host.training.network")
    clips = examples(load, folder, CLIPS, 1, None, FRAMES)
    network = training.TrainingNetwork(unet())
    loss = objective.batch_loss(network, clips, STAGES["base"].batch, objective.Objective(matching=None))
    trainer = run_stage("base", network, loss, load, folder, ema=0.999)
    tensors = {name.removeprefix("unet."): t for name, t in trainer.averages.items()}
    encoder = start.new_encoder(UNET["model_channels"], 0, ENCODER)
    write(load, folder / "base.safetensors", folder, tensors, start.matching_from_unet(tensors), encoder.state_dict())


def start_from(load: Callable[[str], Any], path: Path) -> Any:
    """A training network with the weights of a checkpoint."""
    from safetensors.torch import load_file

    names, training = load("core.weights.framepainter"), load("host.training.network")
    tensors = {n: t.float() for n, t in load_file(str(path)).items()}

    def part(prefix: str) -> dict:
        return {n[len(prefix):]: t for n, t in tensors.items() if n.startswith(prefix)}

    network, matching = unet(), part(names.MATCHING)
    network.load_state_dict(part(names.UNET))
    widths = {n.removesuffix(".to_q.weight"): t.shape[0] for n, t in matching.items() if n.endswith(".to_q.weight")}
    branch = load("core.attention.matching").MatchingBranch(widths, HEAD_WIDTH)
    branch.load_state_dict(matching)
    encoder = load("core.training.framepainter.start").new_encoder(UNET["model_channels"], 0, ENCODER)
    encoder.load_state_dict(part(names.ENCODER))
    return training.TrainingNetwork(network, branch, encoder).requires_grad_(True)


def train_signal(load: Callable[[str], Any], folder: Path, stage: str) -> None:
    """A FramePainter model for one signal: everything trains, on equation 1 for both frames and the matching loss."""
    objective = load("core.training.framepainter.objective")
    signal = "sketch" if stage == "refine" else stage
    pairs = examples(load, folder, PAIRS, 4 if stage == "refine" else 2, signal, 2)
    network = start_from(load, folder / ("base.safetensors" if stage == "sketch" else "sketch.safetensors"))
    loss = objective.batch_loss(network, pairs, STAGES[stage].batch, objective.Objective())
    trainer = run_stage(stage, network, loss, load, folder, ema=0.999)

    def part(name: str) -> dict:
        return {n.removeprefix(name + "."): t for n, t in trainer.averages.items() if n.startswith(name + ".")}

    write(load, folder / f"{signal}.safetensors", folder, part("unet"), part("matching"), part("encoder"))


# ---- running ---------------------------------------------------------------------------------------------------------


def run_stage(name: str, model: Any, loss: Callable, load: Callable[[str], Any], folder: Path, ema: float = 0.0,
              stage: Stage | None = None) -> Any:
    """Train a module to the end of its stage; returns the trainer."""
    loop = load("core.training.loop")
    stage = stage or STAGES[name]
    settings = loop.TrainSettings(steps=stage.steps, learning_rate=stage.learning_rate, warmup=50, weight_decay=0.01,
                                  ema=ema, seed=stage.seed, save_every=250, decay_from=stage.steps // 2)
    trainer = loop.Trainer(dict(model.named_parameters()), settings)
    begun = time.time()

    def report(step: Any) -> None:
        if step.step % 50 == 0:
            values = ", ".join(f"{k} {v:.4f}" for k, v in step.losses.items())
            print(f"{name} {step.step}/{stage.steps}: {values}, {step.seconds:.2f} s a step, "
                  f"{(time.time() - begun) / 60:.1f} min", flush=True)

    loop.train(trainer, loss, folder / name, report)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("small_model"), help="for states and results")
    parser.add_argument("stage", choices=list(STAGES))
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    import torch
    from safetensors.torch import load_file, save_file

    folder, stage = options.folder, STAGES[options.stage]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(stage.seed)
    with torch.enable_grad():
        if options.stage == "autoencoder":
            model = load("core.models.small_autoencoder").SmallAutoencoder()
            trained = run_stage("autoencoder", model, autoencoder_loss(model, load, stage.batch), load, folder, ema=0.995)
            with torch.no_grad():
                save_file(scaled_autoencoder(load, trained.averages), str(folder / "autoencoder.safetensors"))
        elif options.stage == "decoder":
            path = folder / "autoencoder.safetensors"
            model = load("core.models.small_autoencoder").SmallAutoencoder()
            model.load_state_dict(load_file(str(path)))
            trained = run_stage("decoder", model.decoder, decoder_loss(model, load, stage.batch), load, folder, ema=0.998)
            model.decoder.load_state_dict(trained.averages)
            save_file(model.state_dict(), str(path))
        elif options.stage == "image-encoder":
            model = image_encoder()
            readout, loss = image_encoder_loss(model, load, stage.batch)
            run_stage("image-encoder", torch.nn.ModuleList([model, readout]), loss, load, folder)
            save_file({n: t.detach() for n, t in model.state_dict().items()}, str(folder / "image-encoder.safetensors"))
        elif options.stage == "base":
            train_base(load, folder)
        else:
            train_signal(load, folder, options.stage)


if __name__ == "__main__":
    main()
