"""A guided step of the network at its real size, on a CPU: plain SVD and the whole edit, each with and without the savings, and
diffusers' network with the same weights.

    <ComfyUI's python> bench/real_step.py --host COMFYUI [--pixels 256x192] [--steps 3] [--small] [--write]

Random weights in float32, 9 GB of them; one thread, seconds of the processor, in turn round after round. --small takes the small
network, to try the script. Needs diffusers 0.35.2 for its row (pip install diffusers), which is left out otherwise; its result is
compared with ComfyUI's first. --write puts the table into bench/real_step.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making"), str(ROOT / "bench")]
import guided_step  # noqa: E402
import measuring  # noqa: E402
import pack as tools_pack  # noqa: E402
import random_model  # noqa: E402

RESULTS = ROOT / "bench" / "real_step.md"
WHOLE = "+ matching and control (release)"
SIGMA, FRAMES, ROWS = 10.0, 2, 4  # of the guided batch: two frames, with and without the prompt's picture
ALIKE = 1e-3  # of the outputs' scale: ComfyUI and diffusers in float32


class Inputs:
    """What the network is given, the same for all."""

    def __init__(self, context_dim: int, height: int, width: int):
        import torch

        torch.manual_seed(0)
        self.latents, self.time = torch.randn(ROWS, 8, height, width), torch.full((ROWS,), 0.25).mul(torch.tensor(SIGMA).log())
        self.context = torch.randn(ROWS // FRAMES, 1, context_dim)
        self.ids = torch.tensor([[6.0, 127.0, 0.02]]).expand(ROWS // FRAMES, 3)


def host_step(model: Any, inputs: Inputs, y: Any) -> Callable[[], Any]:
    """ComfyUI's network with a variant's patches; call it after `patch_model`."""
    import torch

    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0], "sigmas": torch.full((ROWS,), SIGMA),
               "sample_sigmas": torch.tensor([SIGMA, 0.0]), "original_shape": [ROWS, *inputs.latents.shape[1:]]}
    context = inputs.context.repeat_interleave(FRAMES, 0)

    def run() -> Any:
        return model.model.diffusion_model(inputs.latents, timesteps=inputs.time, context=context, y=y,
                                           transformer_options=dict(options), num_video_frames=FRAMES,
                                           image_only_indicator=torch.zeros(ROWS // FRAMES, FRAMES))
    return run


def diffusers_network(load: Callable[[str], Any], unet: Any, size: dict[str, Any]) -> Any:
    """diffusers' network on the tensors of ComfyUI's; None where diffusers is missing."""
    import torch

    try:
        from diffusers import UNetSpatioTemporalConditionModel
    except ImportError as why:
        print(f"diffusers is left out: {why}", flush=True)
        return None
    names = load("core.weights.diffusers_svd")
    widths = [size["model_channels"] * m for m in size["channel_mult"]]
    with torch.device("meta"):
        network = UNetSpatioTemporalConditionModel(block_out_channels=widths, cross_attention_dim=size["context_dim"],
                                                   num_attention_heads=[w // 64 for w in widths])
    weights = unet.state_dict()
    renamed = names.to_diffusers(weights)
    network.load_state_dict({renamed[name]: value for name, value in weights.items()}, assign=True)
    for name in names.diffusers_epsilon_norms(names.layout_from_comfy(weights)):
        unet.get_submodule(name).eps = 1e-6
    return network.eval().requires_grad_(False)


def measured(load: Callable[[str], Any], size: dict[str, Any], pixels: tuple[int, int], steps: int) -> dict[str, float]:
    """Median seconds of a guided step: what -> seconds."""
    import torch

    guided_step.PIXELS["asked"] = pixels
    full = "full" if size is random_model.FULL else "small"
    parts = guided_step.networks(load, full, torch.float32)
    models = guided_step.variants(load, *parts, guided_step.strokes("asked"))
    savings_of = load("host.models.savings")
    switched = savings_of.switched
    inputs = Inputs(size["context_dim"], *(side // 8 for side in pixels))
    plain, whole = models[guided_step.PLAIN], models[WHOLE]
    saving = plain.clone()
    savings_of.save(saving)
    theirs = diffusers_network(load, plain.model.diffusion_model, size)
    y = torch.randn(ROWS, 768)
    if theirs is not None:
        y = theirs.add_time_proj(inputs.ids.flatten()).reshape(ROWS // FRAMES, -1).repeat_interleave(FRAMES, 0)

    def run_host(model: Any, savings: bool) -> tuple[Any, float]:
        with switched(savings):
            model.patch_model(load_weights=False)
            try:
                step = host_step(model, inputs, y)
                step()  # a run's first step also makes what the later ones use
                out = []
                return out, measuring.seconds(lambda: out.append(step()))
            finally:
                model.cleanup()
                model.unpatch_model(unpatch_weights=False)

    def run_theirs() -> tuple[Any, float]:
        frames = inputs.latents.reshape(ROWS // FRAMES, FRAMES, *inputs.latents.shape[1:])
        out = []
        return out, measuring.seconds(lambda: out.append(
            theirs(frames, inputs.time[0], inputs.context, inputs.ids, return_dict=False)[0].flatten(0, 1)))

    ways = {"plain SVD, savings off": lambda: run_host(plain, False), "plain SVD, savings on": lambda: run_host(saving, True),
            f"{WHOLE}, savings off": lambda: run_host(whole, False), f"{WHOLE}, savings on": lambda: run_host(whole, True)}
    if theirs is not None:
        ways["diffusers 0.35.2, plain SVD"] = run_theirs
    taken: dict[str, list[float]] = {name: [] for name in ways}
    reference = None
    for _ in range(steps):
        for name, run in ways.items():
            (out,), time = run()
            taken[name].append(time)
            print(f"{name}: {time:.2f} s", flush=True)
            if reference is None:
                reference = out
            elif WHOLE not in name:
                apart = float((out - reference).abs().max() / reference.abs().max())
                assert apart < ALIKE, f"{name} is {apart:.1e} from ComfyUI's result"
    return {name: statistics.median(times) for name, times in taken.items()}


def lines(found: dict[str, float], about: str) -> list[str]:
    base = found["plain SVD, savings off"]
    out = ["# A guided step of the real network on a CPU", "", about, "",
           "| | seconds | ratio to plain SVD without savings |", "|---|---|---|"]
    return [*out, *(f"| {name} | {value:.2f} | {value / base:.3f} |" for name, value in found.items()), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--pixels", default="256x192", help="width x height")
    parser.add_argument("--steps", type=int, default=3, help="rounds")
    parser.add_argument("--small", action="store_true", help="the small network")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    width, height = map(int, args.pixels.split("x"))
    sys.path.insert(0, str(args.host.resolve()))
    from comfy.cli_args import args as host_args

    host_args.use_pytorch_cross_attention = True
    load = tools_pack.open_pack(args.host.resolve(), cpu=True)
    import torch

    torch.set_num_threads(1)
    size = random_model.SMALL if args.small else random_model.FULL
    with torch.inference_mode():
        found = measured(load, size, (height, width), args.steps)
    network, torch_version = "the small" if args.small else "the real", torch.__version__.split("+")[0]
    about = (f"Written by `bench/real_step.py --write`: {network} network with random weights in float32, two frames of {width} x "
             f"{height} with guidance, one thread, seconds of the processor, median of {args.steps}; {measuring.machine(None)}, "
             f"torch {torch_version}. diffusers runs on the same weights and gives the same result within rounding.")
    text = "\n".join(lines(found, about))
    print(text)
    if args.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
