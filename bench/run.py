"""Time and peak memory of one guided denoising step: plain two-frame SVD, then what FramePainter adds.

    python dev.py bench [--full] [--steps N] [--name "words for this machine"]

Everything runs in one process through ComfyUI's own sampling path, the variants in turn round after round, so that a
machine whose speed drifts slows all of them. The small network always runs; the real size (random weights, 1024 x 576
pixels) where there is a GPU, or with --full. The table goes to bench/results.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making")]
import pack as tools_pack  # noqa: E402
import random_model  # noqa: E402

RESULTS = ROOT / "bench" / "results.md"
PIXELS = {"small": (128, 192), "full": (576, 1024)}


class Measured(NamedTuple):
    """Median seconds a step and peak bytes above what was in use before it."""

    seconds: float
    peak: int


class PeakMemory:
    """Peak memory while it is entered: the allocator's own count on CUDA, sampled resident memory on a CPU."""

    def __enter__(self) -> PeakMemory:
        import psutil
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        process = psutil.Process()
        self.before = self.top = process.memory_info().rss
        self.done = threading.Event()

        def watch() -> None:
            while not self.done.wait(0.001):
                self.top = max(self.top, process.memory_info().rss)

        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.done.set()
            self.thread.join()
            self.bytes = self.top - self.before


def return_memory_at_once(wanted: bool) -> None:
    """Make glibc give every larger block back when it is freed, so that resident memory shows what is in use.

    Wanted while memory is measured; not while time is, as it costs a page fault for every block.
    """
    if platform.system() == "Linux":
        import ctypes

        m_trim_threshold, m_mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        for option in (m_mmap_threshold, m_trim_threshold):
            libc.mallopt(option, 1 << 16 if wanted else 1 << 28)


def models(load: Callable[[str], Any], size: str) -> dict[str, Any]:
    """The variants to measure, all on one set of random weights: name -> ModelPatcher."""
    import torch

    building, patches, names = load("host.weights.building"), load("host.attention.matching"), load("core.weights.framepainter")
    widths = random_model.FULL if size == "full" else random_model.SMALL
    half = torch.cuda.is_available()
    dtype = torch.float16 if half else torch.float32

    def part(prefix: str) -> dict[str, torch.Tensor]:
        shapes = {n.removeprefix(prefix): s for n, s in random_model.shapes(widths, load).items() if n.startswith(prefix)}
        return {n: random_model.parameter(n, s, "bench").to(dtype) for n, s in shapes.items()}

    plain = building.build_unet(part(names.UNET), dtype)
    branch, encoder = building.build_matching(part(names.MATCHING), dtype), building.build_encoder(part(names.ENCODER), dtype)
    height, width = PIXELS[size]
    control = torch.zeros(1, height, width, 3)
    control[:, height // 4:height // 2, width // 3] = 1.0

    def controlled(model: Any) -> Any:
        return load("host.signals.control").apply_control(model, encoder, control, 0.8, 0.0, 1.0, "release")

    release = patches.attach_matching(plain, branch, "release", 1.0)
    return {
        "plain SVD": plain,
        "+ cross-frame attention": patches.attach_matching(plain, None, "cross-frame", 1.0),
        "+ matching attention (paper)": patches.attach_matching(plain, branch, "paper", 1.0),
        "+ matching attention (release)": release,
        "+ control": controlled(plain),
        "+ matching (release) and control": controlled(release),
    }


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


def measure(variants: dict[str, Any], edit: tuple[list, list, Any], steps: int) -> dict[str, Measured]:
    """Run each variant's step once to warm up, once for memory, then `steps` times in turn for time."""
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

    seconds: dict[str, list[float]] = {name: [] for name in variants}
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
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
        return look

    with torch.inference_mode():
        return_memory_at_once(True)
        for name, model in variants.items():
            step(model, note_peak(name))
        return_memory_at_once(False)
        for _ in range(steps):
            for name, model in variants.items():
                step(model, note_time(name))
    return {name: Measured(statistics.median(seconds[name]), peaks[name]) for name in variants}


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(words: str | None) -> str:
    """The machine in words."""
    import torch

    what = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    return words or f"{what}, {platform.system()}"


def table(size: str, results: dict[str, Measured], words: str, steps: int) -> str:
    import torch

    height, width = PIXELS[size]
    dtype = "fp16" if torch.cuda.is_available() else "fp32"
    widths = "320/640/1280/1280" if size == "full" else "64/128/128/128"
    base = results["plain SVD"]
    rows = [f"| {name} | {m.seconds * 1000:.0f} | {m.seconds / base.seconds:.2f} | {m.peak / 2**20:.0f} | "
            f"{(m.peak - base.peak) / 2**20:+.0f} |" for name, m in results.items()]
    return "\n".join([
        f"## {widths} channels, {width} x {height} pixels, two frames, {dtype}", "",
        f"{words}; torch {torch.__version__.split('+')[0]}; median of {steps} steps, conditional and unconditional half "
        "together.", "",
        "| one guided step | ms | ratio to plain | peak MiB beyond weights | against plain |", "|---|---|---|---|---|",
        *rows, "",
    ])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--full", action="store_true", help="the real size without a GPU, too: 25 GB of memory, minutes")
    parser.add_argument("--steps", type=int, default=9, help="timed steps a variant (default 9)")
    parser.add_argument("--name", help="the machine in words, for the table")
    options = parser.parse_args()
    if options.host is None:
        parser.error("run it as `python dev.py bench`, or name ComfyUI's folder with --host")
    load = tools_pack.open_pack(Path(options.host))
    import torch

    sizes = ["small"] + (["full"] if options.full or torch.cuda.is_available() else [])
    words = machine(options.name)
    parts = ["# One denoising step", "", "Written by `python dev.py bench`; run it on your machine to compare.", ""]
    for size in sizes:
        steps = options.steps if size == "small" or torch.cuda.is_available() else min(options.steps, 3)
        results = measure(models(load, size), conditioning(load, size), steps)
        parts.append(table(size, results, words, steps))
        print(parts[-1])
    RESULTS.write_text("\n".join(parts), encoding="utf-8")
    print(f"Written to {RESULTS}")


if __name__ == "__main__":
    main()
