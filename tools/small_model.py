"""Train the small models that the pack ships, from nothing, on procedural clips (see models/README.md).

    <host's python> tools/small_model.py --host COMFYUI_DIR STAGE [--folder WORK]

Stages, in their order: autoencoder, image-encoder, base, sketch, drag, coarse. Each goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import pack as tools_pack  # noqa: E402

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
    "image-encoder": Stage(800, 64, 1e-3),
}


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


def autoencoder_loss(model: Any, load: Callable[[str], Any], batch: int) -> Callable:
    """Errors of pixels and of edges on random crops; noise on the latents and a small cost keep them smooth and bounded."""
    import torch

    procedural = load("core.data.procedural")

    def loss(step: int, micro: int, generator: torch.Generator) -> dict:
        half = SIDE // 2
        crops = []
        for picture in pictures(procedural, batch // 4, generator):
            for _ in range(4):  # convolutions learn the same from crops, at a fraction of the cost
                y, x = torch.randint(0, half + 1, (2,), generator=generator).tolist()
                crops.append(picture[:, y:y + half, x:x + half])
        target = torch.stack(crops) * 2 - 1
        z = model.encode(target)
        error = model.decode(z + 0.1 * torch.randn(z.shape, generator=generator)) - target
        square = error.pow(2).mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return {"loss": error.abs().mean() + 2 * square + edges + 3e-3 * z.pow(2).mean(), "squared error": square,
                "latents": z.detach().pow(2).mean()}

    return loss


def run_stage(name: str, model: Any, loss: Callable, load: Callable[[str], Any], folder: Path, ema: float = 0.0) -> Any:
    """Train a module to the end of its stage; returns the trainer."""
    loop = load("core.training.loop")
    stage = STAGES[name]
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
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("small_model"), help="for states and results")
    parser.add_argument("stage", choices=list(STAGES))
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    import torch

    torch.manual_seed(0)
    with torch.enable_grad():
        if options.stage == "autoencoder":
            model = load("core.models.small_autoencoder").SmallAutoencoder()
            run_stage(options.stage, model, autoencoder_loss(model, load, STAGES[options.stage].batch), load,
                      options.folder, ema=0.995)


if __name__ == "__main__":
    main()
