"""Time and peak memory of one guided denoising step: plain two-frame SVD, then what FramePainter adds. Used by bench/run.py.

Everything runs in one process through ComfyUI's own sampling path, the variants in turn round after round, so that a machine whose
speed drifts slows all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import random_model
from measuring import PeakMemory, return_memory_at_once, seconds

PLAIN = "plain SVD"
PIXELS = {"small": (192, 256), "full": (576, 1024)}


class Measured(NamedTuple):
    """Median seconds a step and peak bytes above what was in use before it."""

    seconds: float
    peak: int


def networks(load: Callable[[str], Any], size: str, dtype: Any, make: Callable[..., Any] = random_model.parameter) -> tuple:
    """UNet, matching attention and control encoder, as the host manages them.

    Args:
        make: name, shape, salt -> a weight.
    """
    building, names = load("host.weights.building"), load("core.weights.framepainter")
    shapes = random_model.shapes(random_model.FULL if size == "full" else random_model.SMALL, load)

    def part(prefix: str) -> dict[str, Any]:
        return {n.removeprefix(prefix): make(n, s, "bench").to(dtype) for n, s in shapes.items() if n.startswith(prefix)}

    return (building.build_unet(part(names.UNET), dtype), building.build_matching(part(names.MATCHING), dtype),
            building.build_encoder(part(names.ENCODER), dtype))


def variants(load: Callable[[str], Any], plain: Any, branch: Any, encoder: Any, control: Any) -> dict[str, Any]:
    """What is measured, all on one set of weights: name -> ModelPatcher. control: (1, H, W, 3)."""
    attach, apply = load("host.attention.matching").attach_matching, load("host.signals.control").apply_control

    def controlled(model: Any, semantics: str) -> Any:
        return apply(model, encoder, control, 0.8, 0.0, 1.0, semantics)

    paper, release = (attach(plain, branch, semantics, 1.0) for semantics in ("paper", "release"))
    return {
        PLAIN: plain,
        "+ cross-frame attention": attach(plain, None, "cross-frame", 1.0),
        "+ matching attention (paper)": paper,
        "+ matching attention (release)": release,
        "+ control alone (release)": controlled(plain, "release"),
        "+ matching and control (paper)": controlled(paper, "paper"),
        "+ matching and control (release)": controlled(release, "release"),
    }


def strokes(size: str) -> Any:
    """A control frame (1, H, W, 3)."""
    import torch

    height, width = PIXELS[size]
    control = torch.zeros(1, height, width, 3)
    control[:, height // 4:height // 2, width // 3] = 1.0
    return control


def conditioning(load: Callable[[str], Any], size: str) -> tuple[list, list, Any]:
    """Random conditioning of an edit, and its empty latent."""
    import torch

    widths = random_model.FULL if size == "full" else random_model.SMALL
    height, width = (side // 8 for side in PIXELS[size])
    torch.manual_seed(0)
    conditioning = load("host.conditioning")
    positive, negative = conditioning.svd_conditioning(
        torch.randn(1, 1, widths["context_dim"]), torch.randn(1, 4, height, width), conditioning.MicroConds(6, 128, 0.02))
    return positive, negative, torch.zeros(2, 4, height, width)


def measure(models: dict[str, Any], edit: tuple[list, list, Any], steps: int) -> dict[str, Measured]:
    """Run each model's step once to warm up, once for memory, then `steps` times in turn for time."""
    import comfy.sample
    import comfy.samplers
    import torch

    positive, negative, latent = edit
    sigmas = torch.tensor([10.0, 0.0])

    def step(model: Any, look: Callable[[Callable[[], Any]], None]) -> None:
        def sampler(model_k, x, sigmas, extra_args=None, callback=None, disable=None):
            look(lambda: model_k(x, sigmas[:1].expand(len(x)), **extra_args))
            return x

        comfy.sample.sample_custom(model, torch.randn_like(latent), 3.0, comfy.samplers.KSAMPLER(sampler), sigmas, positive,
                                   negative, latent, disable_pbar=True)

    taken: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, int] = {}

    def note_peak(name: str) -> Callable[[Callable[[], Any]], None]:
        def look(run: Callable[[], Any]) -> None:
            run()
            with PeakMemory() as memory:
                run()
            peaks[name] = memory.bytes
        return look

    def note_time(name: str) -> Callable[[Callable[[], Any]], None]:
        def look(run: Callable[[], Any]) -> None:
            run()  # the host may have moved weights since this variant's last turn
            taken[name].append(seconds(run))
        return look

    with torch.inference_mode():
        return_memory_at_once(True)
        for name, model in models.items():
            step(model, note_peak(name))
        return_memory_at_once(False)
        for _ in range(steps):
            for name, model in models.items():
                step(model, note_time(name))
    return {name: Measured(statistics.median(taken[name]), peaks[name]) for name in models}
