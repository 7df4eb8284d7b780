"""Match Attention three ways: source replayed, recorded on disk, and as published (stored, with maps of all tokens).

    python bench/attention_injection.py --host COMFYUI [--full] [--steps N] [--name "words for this machine"] [--write]

Time of one guided step, peak memory beyond what was in use, and bytes written, all in one process on one set of random
weights. Then one attention of 72 x 128 tokens and five heads by itself. --full takes the network's real size at 1024 x 576 and
14 frames, which is for a GPU. --write keeps the results in bench/attention_injection.json and .md.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making"), str(ROOT / "bench")]
import pack as tools_pack  # noqa: E402
import random_model  # noqa: E402
from measuring import PeakMemory, return_memory_at_once  # noqa: E402

RESULTS = ROOT / "bench" / "attention_injection.json"
SIZES = {"small": (32, 48, 4), "full": (72, 128, 14)}  # latent height, width, frames
WHOLE = 1 << 62  # bytes of scores at once: all of them
ALONE = {"tokens": 72 * 128, "heads": 5, "width": 64}


def give_back() -> None:
    """Return freed memory to the system, so that the next peak starts from what is in use."""
    if platform.system() == "Linux":
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def network(load, size: str):
    """A random SVD network, its random source conditioning and clip."""
    import torch

    building, names = load("host.weights.building"), load("core.weights.framepainter")
    widths = random_model.FULL if size == "full" else random_model.SMALL
    shapes = {n.removeprefix(names.UNET): s for n, s in random_model.shapes(widths, load).items() if n.startswith(names.UNET)}
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    model = building.build_unet({n: random_model.parameter(n, s, "bench").to(dtype) for n, s in shapes.items()}, dtype)
    height, width, frames = SIZES[size]
    torch.manual_seed(0)
    conditioning = load("host.conditioning")
    positive, negative = conditioning.svd_conditioning(
        torch.randn(1, 1, widths["context_dim"]), torch.randn(1, 4, height, width), conditioning.MicroConds(6, 127, 0.02))
    return model, positive, negative, torch.randn(frames, 4, height, width)


def run(load, model, found, positive, negative, guided: float = 2.0) -> float:
    """Sample; seconds."""
    import comfy.sample
    import comfy.samplers
    import torch

    start = load("host.inversion.edm").start_latent(found)["samples"]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    comfy.sample.sample_custom(model, torch.zeros_like(start), guided, comfy.samplers.sampler_object("euler"),
                               torch.tensor(found.sigmas), positive, negative, start, disable_pbar=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(load, size: str, steps: int, folder: Path) -> list[dict]:
    import torch

    injection, inversion = load("host.attention.injection"), load("host.inversion.edm")
    trajectory = load("core.inversion.trajectory")
    model, positive, negative, clip = network(load, size)
    sigmas = torch.tensor(load("core.edm").karras_sigmas(steps))
    found = inversion.invert(model, positive, {"samples": clip}, sigmas)
    kept = trajectory.save(folder / "trajectory.safetensors", found).stat().st_size
    edited = [[positive[0][0] + 0.5, positive[0][1]]]
    runs = load("host.attention.injection_run")
    chunked = runs.injected_attention
    settings = runs.Settings(branches="one after another", betas=(1.0, 1.0))
    rows = []
    for name in ("no matching", "replay", "recorded on disk", "as published: stored, whole maps"):
        record, seconds_recording = None, 0.0
        if name in ("recorded on disk", "as published: stored, whole maps"):
            began = time.perf_counter()
            record = load("host.attention.record").record_attention(model, found, folder / name.split(":")[0], torch.float32,
                                                                    1 << 60)
            seconds_recording = time.perf_counter() - began
        runs.injected_attention = partial(chunked, chunk_bytes=WHOLE) if "whole" in name else chunked
        try:
            edit = model if name == "no matching" else injection.inject_attention(model, found, settings, record)
            return_memory_at_once(True)
            run(load, edit, found, edited, negative)  # warm
            gc.collect()
            give_back()
            with PeakMemory() as peak:
                run(load, edit, found, edited, negative)
            return_memory_at_once(False)
            seconds = min(run(load, edit, found, edited, negative) for _ in range(2))
        finally:
            runs.injected_attention = chunked
        written = record.bytes if record is not None else (0 if name == "no matching" else kept)
        rows.append({"way": name, "seconds_a_step": (seconds + seconds_recording) / steps, "of_which_recording":
                     seconds_recording / steps, "peak_bytes": peak.bytes, "bytes_written": written})
        print(rows[-1], flush=True)
        if record is not None:
            record.close()
    return rows


def alone(load, whole: bool) -> list[dict]:
    """One frame's attention at the largest published size."""
    import torch

    injection = load("core.attention.injection")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, q0, k0 = (torch.randn(1, ALONE["tokens"], ALONE["heads"] * ALONE["width"], device=device) for _ in range(5))
    rows = []
    return_memory_at_once(True)
    for name, chunk in (("rows a few at a time", injection.CHUNK_BYTES), *((("whole maps", WHOLE),) if whole else ())):
        with PeakMemory() as peak:
            began = time.perf_counter()
            injection.injected_attention(q, k, v, injection.SourceQK(q0, k0), ALONE["heads"], [0.35], chunk_bytes=chunk)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        rows.append({"way": name, "seconds": seconds, "peak_bytes": peak.bytes})
        print(rows[-1], flush=True)
    return_memory_at_once(False)
    return rows


def table(results: dict) -> str:
    height, width, frames = SIZES[results["size"]]
    lines = ["# Match Attention, three ways", "", f"{results['machine']}; torch {results['torch']}; {results['size']} network, "
             f"{width * 8} x {height * 8} pixels, {frames} frames, {results['steps']} steps, spatial and temporal attention of all "
             "steps matched. A step is guided; recording is spread over one edit's steps.", "",
             "| way | s a step | of which recording | peak MiB | MB written |", "|---|---|---|---|---|"]
    lines += [f"| {r['way']} | {r['seconds_a_step']:.2f} | {r['of_which_recording']:.2f} | {r['peak_bytes'] / 2**20:.0f} | "
              f"{r['bytes_written'] / 1e6:.1f} |" for r in results["run"]]
    lines += ["", "One frame's spatial attention at 72 x 128 tokens and five heads, fp32:", "",
              "| way | s | peak MiB |", "|---|---|---|"]
    lines += [f"| {r['way']} | {r['seconds']:.1f} | {r['peak_bytes'] / 2**20:.0f} |" for r in results["alone"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--full", action="store_true", help="the network's real size")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--name", default=f"{platform.machine()}, no GPU", help="words for this machine")
    parser.add_argument("--write", action="store_true", help=f"rewrite {RESULTS.name} and the table beside it")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host)
    import torch

    size = "full" if args.full else "small"
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        results = {"machine": args.name, "torch": torch.__version__, "size": size, "steps": args.steps,
                   "run": measure(load, size, args.steps, Path(folder)), "alone": alone(load, whole=True)}
    print(table(results))
    if args.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
