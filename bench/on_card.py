"""The real network on a card: step, sketch edit, inversion, edited step, LoRA step and VAE, in bf16 and fp16.

Used by `bench/run.py --gpu`. By itself it checks what only a card can show, and ends with an error if one of them fails:

    <ComfyUI's python> bench/on_card.py --host COMFYUI

Weights are random, so pictures are noise; time and memory are the real ones. Peak memory is torch's own count, weights included.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making"), str(ROOT / "bench")]
import guided_step  # noqa: E402
import measuring  # noqa: E402
import motion_lora  # noqa: E402
import pack as tools_pack  # noqa: E402
import random_model  # noqa: E402

FRAMES, INVERSION_STEPS, EDIT_STEPS = 14, 5, 25
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
       "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}


class Row(NamedTuple):
    """What, seconds, and peak bytes in use."""

    name: str
    seconds: float
    peak: int


def timed(name: str, run: Callable[[], Any], count: int = 1) -> Row:
    """Median of `count` calls after one that warms up; the peak is of all of them."""
    import torch

    run()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    taken = [measuring.seconds(run) for _ in range(count)]
    return Row(name, statistics.median(taken), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def steps(load: Callable[[str], Any], size: str, dtype: Any, count: int) -> list[Row]:
    """The guided step of two frames by variant, and a whole sketch edit's sampling."""
    import comfy.sample
    import torch

    with torch.inference_mode():
        parts = guided_step.networks(load, size, dtype)
        models = guided_step.variants(load, *parts, guided_step.strokes(size))
        edit = guided_step.conditioning(load, size)
        rows = [Row(name, found.seconds, found.peak) for name, found in guided_step.measure(models, edit, count).items()]
        positive, negative, latent = edit
        model = models["+ matching and control (release)"]
        noise = comfy.sample.prepare_noise(latent, 0)

        def sample() -> None:
            comfy.sample.sample(model, noise, EDIT_STEPS, 3.0, "euler", "karras", positive, negative, latent, disable_pbar=True)

        return [*rows, timed(f"sketch edit, sampling, {EDIT_STEPS} steps", sample)]


def clip(load: Callable[[str], Any], size: str, dtype: Any) -> list[Row]:
    """Of a clip: inversion, and an edit's sampling with attention injection, per step."""
    import comfy.sample
    import comfy.samplers
    import torch

    inversion, injection = load("host.inversion.edm"), load("host.attention.injection")
    widths = random_model.FULL if size == "full" else random_model.SMALL
    with torch.inference_mode():
        model = guided_step.networks(load, size, dtype)[0]
        positive, negative, latent = guided_step.conditioning(load, size)
        frames = torch.randn(FRAMES, *latent.shape[1:])
        sigmas = torch.tensor(load("core.edm").karras_sigmas(INVERSION_STEPS))
        found = inversion.invert(model, positive, {"samples": frames}, sigmas)
        inverted = timed("inversion, a step", lambda: inversion.invert(model, positive, {"samples": frames}, sigmas))
        edited = [[torch.randn(1, 1, widths["context_dim"]), positive[0][1]]]
        injected, start = injection.inject_attention(model, found), inversion.start_latent(found)["samples"]

        def sample(of: Any) -> Callable[[], Any]:
            return lambda: comfy.sample.sample_custom(
                of, torch.zeros_like(start), 2.0, comfy.samplers.sampler_object("euler"), torch.tensor(found.sigmas), edited,
                negative, start, disable_pbar=True)

        rows = [inverted, timed("guided step of a clip, plain", sample(model)), timed("edited step", sample(injected))]
    return [row._replace(seconds=row.seconds / INVERSION_STEPS) for row in rows]


def lora_step(load: Callable[[str], Any], shape: str, precision: str, device: Any, count: int) -> Row:
    """A motion LoRA's training step with checkpointing."""
    import torch

    dtype = load("host.training.network").DTYPES[precision]
    with torch.inference_mode(False), torch.enable_grad():
        made = motion_lora.network(load, shape, "parts", lambda name, size: random_model.parameter(name, size, "bench").to(
            dtype if len(size) > 1 else torch.float32)).to(device)
        made.precision = precision
        loss = load("core.training.motion_lora.objective").batch_loss(made, motion_lora.clip_of(load, shape, device), device=device)
        loop = load("core.training.loop")
        scale = load("host.training.motion_lora").LOSS_SCALE if precision == "fp16" else 0.0
        trainer = loop.Trainer({n: p for n, p in made.named_parameters() if p.requires_grad},
                               loop.TrainSettings(steps=99, clip=0.0, loss_scale=scale, tolerate=99))
        return timed(f"motion LoRA, training step, {shape}", lambda: trainer.advance(loss), count)


def vae(size: str, dtype: Any, device: Any, count: int) -> list[Row]:
    """ComfyUI's autoencoder at the published width on two frames."""
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL

    height, width = guided_step.PIXELS[size]
    config = VAE if size == "full" else {**VAE, "ch": 32, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    with torch.inference_mode():
        model = AutoencoderKL(embed_dim=4, ddconfig=config).to(device, dtype).eval()
        for name, parameter in model.named_parameters():
            parameter.copy_(random_model.parameter(name, tuple(parameter.shape), "bench"))
        picture = torch.rand(2, 3, height, width, device=device, dtype=dtype)
        latent = torch.randn(2, 4, height // 8, width // 8, device=device, dtype=dtype)
        return [timed("VAE, encoding two frames", lambda: model.encode(picture), count),
                timed("VAE, decoding two frames", lambda: model.decode(latent), count)]


def table(load: Callable[[str], Any], count: int, words: str | None, size: str = "full") -> str:
    """The page of bench/results_gpu.md.

    Args:
        size: "small" tries all of it on any machine.
    """
    import comfy.model_management as mm
    import torch

    device, shape = mm.get_torch_device(), "576 x 320" if size == "full" else "small"
    about = f"{measuring.machine(words)}; torch {torch.__version__}"
    lines = ["# On a card", "", f"Written by `python dev.py bench --gpu --write`. {about}.", "",
             "| | type | ms | peak GB |", "|---|---|---|---|"]
    for precision in ("bf16", "fp16"):
        dtype = load("host.training.network").DTYPES[precision]
        rows = [*steps(load, size, dtype, count), *clip(load, size, dtype)]
        mm.unload_all_models()
        rows += [lora_step(load, shape, precision, device, count), *vae(size, dtype, device, count)]
        lines += [f"| {row.name} | {precision} | {row.seconds * 1000:.0f} | {row.peak / 1e9:.2f} |" for row in rows]
    return "\n".join([*lines, ""])


# ---- what only a card can show ---------------------------------------------------------------------------------------


def check_kernel(load: Callable[[str], Any], device: Any) -> None:
    """The Triton kernel for attention injection against torch, at sizes that fill no block."""
    import torch

    injection, kernel = load("core.attention.injection"), load("core.attention.row_kernel")
    generator = torch.Generator(device).manual_seed(0)
    for dtype, limit in ((torch.float32, 2e-3), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        q, k, v, q0, k0 = (torch.randn(3, 150, 128, generator=generator, device=device).to(dtype) for _ in range(5))

        def plain(q: Any, k: Any, v: Any, heads: int) -> Any:
            split = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

        source, thresholds = injection.SourceQK(q0, k0), [0.35] * 3
        fused = injection.injected_attention_fused(q, k, v, source, 2, thresholds, plain, kernel.total_variation, injection.Masks())
        rows = injection.injected_attention(q, k, v, source, 2, thresholds, injection.Masks())
        near(f"kernel, {dtype}", fused.difference, rows.difference, limit)


def check_savings(load: Callable[[str], Any], device: Any) -> None:
    """A guided step with and without exact savings, in every type; and with weights kept off the card."""
    import comfy.model_management as mm
    import torch

    for dtype, limit in ((torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)):
        with torch.inference_mode():
            parts = guided_step.networks(load, "small", dtype)
            model = guided_step.variants(load, *parts, guided_step.strokes("small"))["+ matching and control (release)"]
        with load("host.models.savings").switched(False):
            wanted = _denoised(load, model)
        near(f"savings, {dtype}", _denoised(load, model), wanted, limit)
        mm.unload_all_models()
        before, mm.vram_state = mm.vram_state, mm.VRAMState.NO_VRAM
        try:
            near(f"weights off the card, {dtype}", _denoised(load, model), wanted, limit)
        finally:
            mm.vram_state = before
            mm.unload_all_models()


def check_compiled(load: Callable[[str], Any], device: Any) -> None:
    """torch.compile of the patched network, through ComfyUI's own node."""
    import torch
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    with torch.inference_mode():
        parts = guided_step.networks(load, "small", torch.float16)
        model = guided_step.variants(load, *parts, guided_step.strokes("small"))["+ matching and control (release)"]
    compile_model = getattr(TorchCompileModel, "execute", None) or TorchCompileModel().patch
    made = compile_model(model, "inductor")
    compiled = made[0] if isinstance(made, tuple) else made.result[0]
    near("compiled", _denoised(load, compiled), _denoised(load, model), 2e-2)


def check_autocast(load: Callable[[str], Any], device: Any) -> None:
    """A motion LoRA's loss in half precision under autocast is fp32's, nearly."""
    import torch

    losses = {}
    motion = load("core.training.motion_lora.objective")
    for precision in ("fp32", "bf16", "fp16"):
        with torch.inference_mode(False), torch.enable_grad():
            made = motion_lora.network(load, "small", "parts", lambda n, s: random_model.parameter(n, s, "bench")).to(device)
            made.precision = precision
            torch.manual_seed(0)
            given = motion_lora.clip_of(load, "small", "cpu").to(device)
            loss = motion.batch_loss(made, given, device=device)(1, 0, torch.Generator().manual_seed(0))["loss"]
            loss.backward()
            losses[precision] = loss.detach()
    for precision in ("bf16", "fp16"):
        near(f"autocast, {precision}", losses[precision], losses["fp32"], 5e-2)


def _denoised(load: Callable[[str], Any], model: Any) -> Any:
    import comfy.sample
    import torch

    positive, negative, latent = guided_step.conditioning(load, "small")
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, 0)
        return comfy.sample.sample(model, noise, 2, 3.0, "euler", "karras", positive, negative, latent, disable_pbar=True)


def near(name: str, found: Any, wanted: Any, limit: float) -> None:
    """Raises AssertionError if two tensors differ relatively by more than a limit."""
    change = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    print(f"{name}: {change:.1e}, limit {limit:.0e}", flush=True)
    if not change < limit:
        raise AssertionError(f"{name}: differs by {change:.1e}, more than {limit:.0e}")


CHECKS = (check_kernel, check_savings, check_autocast, check_compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--try", dest="tried", action="store_true", help="the table's code at a small size, on any machine")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve(), cpu=options.tried)
    import comfy.model_management as mm
    import torch

    if options.tried:
        print(table(load, 1, None, "small"))
        return
    if not torch.cuda.is_available():
        parser.error("torch sees no card here")
    for check in CHECKS:
        check(load, mm.get_torch_device())


if __name__ == "__main__":
    main()
