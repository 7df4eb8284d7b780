"""Time and memory of Video-P2P's steps beside plain Stable Diffusion 1.x with the same rows, in miniature, in one run.

    <ComfyUI's python> bench/video_p2p_step.py --host COMFYUI [--write]

The small text-to-image model with temporal layers, eight frames of 192 x 192 pixels, through the pack's own nodes and the host's
sampler, on one thread. Seconds are the processor's, so that others on the machine do not count; memory is bytes of tensors alive at
once, weights aside. Then the same of a step of the inversion for 8, 24 and 64 frames of 128 x 128 pixels. --write puts the tables
into docs/video_p2p.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
from measuring import parts_counted  # noqa: E402

PAGE = ROOT / "docs" / "video_p2p.md"
BEGIN = {name: f"<!-- table: bench/video_p2p_step.py, {name} -->" for name in ("steps", "frames")}
FRAMES, SIDE, STEPS, GUIDANCE, ROUNDS = 8, 24, 2, 6.0, 2
LENGTHS, SHORT_SIDE = (8, 24, 64), 16
SOURCE, EDITED, WORDS = "a red disc on a green ground", "a blue square on a green ground", "@disc, @square"
ROWS = {"stored trajectory": 3, "fast": 3, "null-text": 4}


class Cost(NamedTuple):
    """Processor seconds a step, and bytes of tensors alive at once beyond what was there before."""

    seconds: float
    peak: int


class Bench:
    """The small model, plain and inflated, and what is run on it."""

    def __init__(self, load: Callable) -> None:
        import torch

        self.nodes = {node.define_schema().node_id: node for node in load("nodes").NODES}
        inflate, models = load("host.attention.inflated"), load("core.models.inflated")
        loaded = load("host.weights.text_to_image").load(ROOT / "models" / "small_text_to_image.safetensors")
        self.plain, self.clip = loaded.model, loaded.clip
        self.empty = load("host.attention.prompt_text").encode(self.clip, "")
        sites = inflate.check_model(self.plain)
        self.layers = models.fresh_temporal(sites, 0)

        def inflated(**settings: Any) -> Any:
            norms = {f"{site}.norm_temp.{leaf}": make(width) for site, width in sites.items()
                     for leaf, make in (("weight", torch.ones), ("bias", torch.zeros))}
            temporal = inflate.build_temporal(self.plain, {**norms, **self.layers})
            return inflate.inflate(self.plain, temporal, inflate.Settings(**settings))

        self.inflated = inflated
        self.model = inflated()
        self.source, self.edited, self.plan, _ = self.call("PromptEdit", clip=self.clip, source_text=SOURCE, edited_text=EDITED,
                                                           words=WORDS)
        generator = torch.Generator().manual_seed(0)
        self.video = {"samples": torch.randn(FRAMES, 4, SIDE, SIDE, generator=generator)}
        self.start, self.trajectory, self.schedule = self.invert(self.model)

    def call(self, name: str, **inputs: Any) -> Any:
        """The outputs of a node."""
        return self.nodes[f"FramePainter{name}"].execute(**inputs).args

    def invert(self, model: Any) -> Any:
        return self.call("InvertDDIM", model=model, positive=self.source, latent=self.video, steps=STEPS)

    def optimise(self) -> Any:
        return self.call("NullText", model=self.model, trajectory=self.trajectory, negative=self.empty, guidance=GUIDANCE,
                         iterations=10)[0]

    def edit(self, branch: str, null_text: Any = None) -> None:
        (model,) = self.call("PromptAttention", model=self.model, plan=self.plan, trajectory=self.trajectory, blend=True,
                             null_text=null_text, source_branch=branch, cross_steps=1.0, temporal_steps=1.0,
                             blend_threshold=0.3, map_scale=2)
        self.sample(model, GUIDANCE, self.start["samples"])

    def plain_rows(self, videos: int) -> None:
        """Conditional rows alone, as many as a pass of an edit has."""
        self.sample(self.plain, 1.0, self.start["samples"].repeat(videos, 1, 1, 1))

    def sample(self, model: Any, cfg: float, latents: Any) -> None:
        import comfy.sample
        import comfy.samplers
        import torch

        comfy.sample.sample_custom(model, torch.zeros_like(latents), cfg, comfy.samplers.ksampler("euler"), self.schedule,
                                   self.edited, self.empty, latents, disable_pbar=True, seed=0)


def live_memory() -> Any:
    """Counts bytes of tensors made while it is entered."""
    from framepainter_tests.live_memory import LiveMemory

    return LiveMemory()


def steps(bench: Bench) -> dict[str, Cost]:
    """What each step costs, in turn round after round."""
    null_text = bench.optimise()
    works = {"plain 1": lambda: bench.plain_rows(1), "inversion": lambda: bench.invert(bench.model),
             "plain 3": lambda: bench.plain_rows(3), "stored trajectory": lambda: bench.edit("stored trajectory"),
             "fast": lambda: bench.edit("fast"), "plain 4": lambda: bench.plain_rows(4),
             "null-text": lambda: bench.edit("null-text", null_text), "optimisation": bench.optimise}
    found: dict[str, Cost] = {}
    for name, work in works.items():
        with live_memory() as live:
            work()
        found[name] = Cost(float("inf"), live.peak)
    for _ in range(ROUNDS):
        for name, work in works.items():
            begun = time.process_time()
            work()
            found[name] = found[name]._replace(seconds=min(found[name].seconds, (time.process_time() - begun) / STEPS))
    return found


def steps_lines(found: dict[str, Cost]) -> list[str]:
    """Two Markdown tables: a step beside the plain network, a step of the whole edit."""
    out = ["| a step of | rows | seconds | plain, same rows | times as long | peak, MB | plain, same rows |",
           "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, videos in (("inversion", 1), *ROWS.items()):
        one, plain = found[name], found[f"plain {videos}"]
        what = name if name == "inversion" else f"the edit, {name}"
        out.append(f"| {what} | {videos * FRAMES} | {one.seconds:.2f} | {plain.seconds:.2f} | {one.seconds / plain.seconds:.2f} | "
                   f"{one.peak / 1e6:.0f} | {plain.peak / 1e6:.0f} |")
    out += ["", "| source branch | inversion, s a step | null-text | edit | sum | times the stored trajectory's | peak, MB |",
            "| --- | --- | --- | --- | --- | --- | --- |"]
    sums = {}
    for branch in ROWS:
        parts = [found["inversion"].seconds, found["optimisation"].seconds if branch == "null-text" else 0.0, found[branch].seconds]
        sums[branch] = sum(parts)
        peak = max(found[n].peak for n in ("inversion", branch, *(("optimisation",) if branch == "null-text" else ())))
        out.append(f"| {branch} | {' | '.join(f'{p:.2f}' for p in parts)} | {sums[branch]:.2f} | "
                   f"{sums[branch] / sums['stored trajectory']:.1f} | {peak / 1e6:.0f} |")
    return out


def frames(load: Callable, bench: Bench) -> list[str]:
    """A Markdown table: bytes alive at once in one evaluation, by the number of frames."""
    import torch
    from framepainter_tests import text_model

    modules = [load(name) for name in ("core.models.inflated", "host.attention.inflated_layers", "host.attention.streamed")]
    text = bench.source[0][0]
    out = ["| frames | MB | streamed: on the device, MB | streamed: there and in main memory, MB |", "| --- | --- | --- | --- |"]
    # Deeper levels work on more frames at a time; with one frame of the first level all of them do so from 8 frames on.
    models = [bench.inflated(streamed=streamed, chunk=SHORT_SIDE**2) for streamed in (False, True)]
    for count in LENGTHS:
        latents, seen = torch.randn(count, 4, SHORT_SIDE, SHORT_SIDE), []
        for model in models:
            text_model.evaluate(load, model, latents, 501, text)  # whatever is made once
            live = live_memory()
            with parts_counted(modules, live), live:
                text_model.evaluate(load, model, latents, 501, text)
            seen.append(live)
        out.append(f"| {count} | {seen[0].peak / 1e6:.1f} | {seen[1].peak_inside / 1e6:.1f} | {seen[1].peak / 1e6:.1f} |")
        print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--only", choices=BEGIN, help="one of the tables")
    parser.add_argument("--write", action="store_true", help=f"rewrite the tables in {PAGE.name}")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host, cpu=True)
    tools_pack.package("framepainter_tests", ROOT / "tests" / "support")
    import torch

    torch.set_num_threads(1)
    bench = Bench(load)
    works = {"frames": lambda: frames(load, bench), "steps": lambda: steps_lines(steps(bench))}
    tables = {name: "\n".join(work()) for name, work in works.items() if args.only in (None, name)}
    print("\n\n".join(tables.values()))
    if args.write:
        for name, text in tables.items():
            pages.write_table(PAGE, BEGIN[name], text)


if __name__ == "__main__":
    main()
