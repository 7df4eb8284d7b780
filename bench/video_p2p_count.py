"""What an edit by words costs at the size of Stable Diffusion 1.5, counted without weights (Video-P2P).

    <ComfyUI's python> bench/video_p2p_count.py --host COMFYUI [--write]
    <ComfyUI's python> bench/video_p2p_count.py --host COMFYUI --step inversion|edit [--frames 8] [--write]

The network of SD 1.5 on the meta device, where tensors have shapes and no numbers: operations of every pass at 512 x 512 pixels
and 8 frames, and bytes alive at once for 8, 24 and 64 frames. --write puts both into docs/video_p2p.md. --step runs one real step
of that size on the CPU with random weights in fp32, and writes the files of a tuned video: minutes, and several GB of memory;
with --write it rewrites its own table alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
from measuring import parts_counted  # noqa: E402

PAGE = ROOT / "docs" / "video_p2p.md"
BEGIN = {name: f"<!-- table: bench/video_p2p_count.py, {name} -->" for name in ("operations", "memory", "inversion", "edit")}
SD15 = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1, "legacy": False}
FRAMES, SIDE, TOKENS, STEPS, ITERATIONS, TUNING = 8, 64, 77, 50, 10, 500
LENGTHS = (8, 24, 64)
EDIT_ROWS, EDIT_ROWS_NULL_TEXT = 3, 4  # videos in a pass: the edit twice, the source once, or twice if it is guided, too


def unet(load: Callable, dtype: Any) -> tuple[Any, Any]:
    """SD 1.5's UNet and its temporal layers, shapes alone."""
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    inflated = load("core.models.inflated")
    with torch.device("meta"):
        network = UNetModel(**SD15, dtype=dtype, device="meta", operations=load("host.weights.building")._PlainLayers)
        sites = inflated.block_sites({n: tuple(p.shape) for n, p in network.state_dict().items()})
        layers = inflated.TemporalLayers(sites, SD15["num_heads"])
    return network.to(dtype).requires_grad_(False), layers.to(dtype).requires_grad_(False)


def video(frames: int, rows: int, dtype: Any) -> dict[str, Any]:
    """What the network takes: latents, timesteps and text of some videos."""
    import torch

    count = rows * frames
    return {"x": torch.empty(count, 4, SIDE, SIDE, device="meta", dtype=dtype), "timesteps": torch.empty(count, device="meta"),
            "context": torch.empty(count, TOKENS, SD15["context_dim"], device="meta", dtype=dtype)}


def edit_options(load: Callable, network: Any, frames: int, rows: int) -> dict[str, Any]:
    """Options of a pass in which a source stands beside an edit, all of whose attention is edited and whose words are mapped."""
    import torch

    prompt, core, hooks = (load(name) for name in ("host.attention.prompt", "core.attention.prompt", "host.attention.hooks"))
    shapes = {n: tuple(p.shape) for n, p in network.state_dict().items()}
    found = load("core.attention.sites").attention_sites(load("core.weights.inflated").layout_from_comfy(shapes))
    sites = {f"{path}.transformer_blocks.0" for path in core.mapped_sites({site.path: site.scale for site in found})}
    ones = torch.ones(1, TOKENS)
    edit = core.cross_edit(torch.eye(TOKENS)[None], ones / 2, ones, ones).to(torch.device("meta"))
    maps = core.WordMaps([torch.empty(TOKENS, 8, device="meta")] * 2, frames, len(sites))
    at_work = prompt.PromptPass(1, None, [None] * (rows - 2), edit, True, maps, sites)
    options = hooks.hooked({"transformer_options": {}}, at_work)["transformer_options"]
    return {**options, **prompt._videos([1, 0, prompt.SOURCE, prompt.SOURCE_EMPTY][:rows], [])}


def attention_of_shapes(_: Callable, q: Any, k: Any, v: Any, heads: int, *args: Any, **kwargs: Any) -> Any:
    """Attention as a kernel would do it, with no memory but the result's."""
    return q.new_empty(q.shape)


def put_on(load: Callable, network: Any, layers: Any, streamed: bool) -> None:
    """Let the layers of a UNet be those of the inflated network."""
    settings = load("host.attention.inflated_layers").Settings(streamed=streamed)

    def forward_of(path: str) -> Callable:
        return network.get_submodule(path).forward

    found = load("host.attention.inflated_layers").forwards(network, layers, settings, forward_of)
    if streamed:
        found |= load("host.attention.streamed").streamed_forwards(network, found, forward_of)
    for path, forward in found.items():
        network.get_submodule(path).forward = forward


# ---- operations ------------------------------------------------------------------------------------------------------


def operations(load: Callable) -> dict[str, float]:
    """TFLOP of single passes at 512 x 512 and 8 frames: products and sums of matrix products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    layers_module, objective = load("host.attention.inflated_layers"), load("core.training.one_shot.objective")
    override = {"optimized_attention_override": load("host.training.network")._with_gradients}
    out: dict[str, float] = {}

    @contextmanager
    def counted(name: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter:
            yield
        out[name] = counter.get_total_flops() / 1e12

    network, layers = unet(load, torch.float32)
    with torch.no_grad(), counted("plain"):
        network(**video(FRAMES, 1, torch.float32), transformer_options=dict(override))
    training = load("host.training.inflated")
    training.autocast = lambda *_, **__: nullcontext()  # there is none on the meta device
    training.WITH_GRADIENTS = set()  # torch's own attention, whose operations are counted
    made = training.InflatedNetwork(network, layers)
    x, text = video(FRAMES, 1, torch.float32)["x"], torch.empty(1, TOKENS, SD15["context_dim"], device="meta")
    with torch.no_grad(), counted("forward"):
        made(x, 1, text)
    for name, rows in (("edit", EDIT_ROWS), ("edit, null-text", EDIT_ROWS_NULL_TEXT)):
        options = {**edit_options(load, network, FRAMES, rows), **override}
        with torch.no_grad(), counted(name), layers_module.running(layers_module.Pass(FRAMES)):
            network(**video(FRAMES, rows, torch.float32), transformer_options=options)
    with torch.enable_grad(), counted("null-text iteration"):
        made(x, 1, text.clone().requires_grad_(True)).sum().backward()
    for name, parameter in made.named_weights().items():
        parameter.requires_grad_(objective.trains(name, "all_trainable"))
    with torch.enable_grad(), counted("tuning step"):
        made(x, 1, text).sum().backward()
    return out


def whole_edits(each: dict[str, float]) -> dict[str, dict[str, float]]:
    """TFLOP of the parts of whole edits."""
    inversion = STEPS * each["forward"]
    null_text = STEPS * (ITERATIONS * each["null-text iteration"] + 2 * each["forward"])
    return {
        "stored trajectory, fast": {"inversion": inversion, "null-text": 0.0, "edit": STEPS * each["edit"]},
        "null-text": {"inversion": inversion, "null-text": null_text, "edit": STEPS * each["edit, null-text"]},
    }


def operations_lines(each: dict[str, float]) -> list[str]:
    """Two Markdown tables: passes, whole edits."""
    names = {"plain": "plain SD 1.5, 8 frames as a batch", "forward": "inflated, one video of 8 frames (a step of the inversion)",
             "edit": "a step of the edit: 3 videos, words mapped", "edit, null-text": "a step of the edit with null-text: 4 videos",
             "null-text iteration": "an iteration of null-text: forward and backward",
             "tuning step": "a step of Tune on Video: forward and backward, no checkpointing"}
    out = ["| pass | TFLOP |", "| --- | --- |", *(f"| {text} | {each[name]:.1f} |" for name, text in names.items()), ""]
    out += ["| source branch | inversion | null-text | edit | sum, TFLOP | null-text's share | with tuning | its share then |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for way, parts in whole_edits(each).items():
        whole = sum(parts.values())
        tuned = whole + TUNING * each["tuning step"]
        out.append(f"| {way} | {parts['inversion']:.0f} | {parts['null-text']:.0f} | {parts['edit']:.0f} | {whole:.0f} | "
                   f"{100 * parts['null-text'] / whole:.0f} % | {tuned:.0f} | {100 * parts['null-text'] / tuned:.0f} % |")
    return out


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(load: Callable) -> list[dict[str, Any]]:
    """Bytes alive at once in a step of the edit, in half precision, weights aside."""
    import torch

    tools_pack.package("framepainter_tests", ROOT / "tests" / "support")
    from framepainter_tests.live_memory import LiveMemory

    modules = [load(name) for name in ("core.models.inflated", "host.attention.inflated_layers", "host.attention.streamed",
                                       "core.attention.prompt")]
    layers_module = modules[1]
    modules[2].STORE = meta = torch.device("meta")
    rows = []
    for streamed in (False, True):
        network, layers = unet(load, torch.float16)
        put_on(load, network, layers, streamed)
        for frames in LENGTHS:
            live = LiveMemory()
            options = {**edit_options(load, network, frames, EDIT_ROWS), "optimized_attention_override": attention_of_shapes}
            given = video(frames, EDIT_ROWS, torch.float16)
            now = layers_module.Pass(frames, meta if streamed else None)
            with torch.no_grad(), parts_counted(modules, live), live, layers_module.running(now):
                network(**given, transformer_options=options)
            rows.append({"streamed": streamed, "frames": frames, "all": live.peak, "inside": live.peak_inside})
            print(rows[-1], flush=True)
    return rows


def memory_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table."""
    out = ["| frames | MB | streamed: on the card, MB | streamed: there and in main memory, MB |",
           "| --- | --- | --- | --- |"]
    for frames in LENGTHS:
        whole, streamed = (next(r for r in rows if r["frames"] == frames and r["streamed"] == s) for s in (False, True))
        out.append(f"| {frames} | {whole['all'] / 1e6:.0f} | {streamed['inside'] / 1e6:.0f} | {streamed['all'] / 1e6:.0f} |")
    return out


# ---- one real step ---------------------------------------------------------------------------------------------------


def real_step(load: Callable, which: str, frames: int) -> list[str]:
    """One step with random weights through the host's sampler, and the files of a tuned video: rows of what it took."""
    import psutil
    import torch
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

    def resident() -> str:
        return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB resident"

    nodes = {node.define_schema().node_id: node for node in load("nodes").NODES}
    network, layers = unet(load, torch.float32)
    generator = torch.Generator().manual_seed(0)

    def made(name: str, shape: Any) -> Any:
        if len(shape) == 1:
            return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
        return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(
            0.5 * torch.Size(shape[1:]).numel() ** -0.5).half()

    tensors = {name: made(name, p.shape) for name, p in network.state_dict().items()}
    temporal = {name: made(name, p.shape) for name, p in layers.state_dict().items()}
    names = load("core.weights.inflated").to_diffusers(tensors)
    print(f"{len(set(names.values()))} of {len(tensors)} names map to diffusers' and back")
    model = load("host.weights.building").build_text_unet(tensors, None)
    del tensors
    print(f"loaded as {model.model.get_dtype()}, {resident()}", flush=True)
    inflate = load("host.attention.inflated")
    is_trained = load("core.models.inflated").is_trained
    weights = {n: t for n, t in [*model.model.diffusion_model.state_dict().items(), *temporal.items()] if is_trained(n)}
    tuned = load("core.weights.tuned_video").TunedVideo(weights, "", 0, False)
    rows = ["| what | it took |", "| --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp16", "fp32"):
            path, _ = load("host.weights.tuned_video").save(Path(folder) / f"{precision}.safetensors", tuned, precision)
            rows.append(f"| the file of a tuned video, {precision} | {path.stat().st_size / 1e6:.1f} MB |")
            print(rows[-1], flush=True)
    model = inflate.inflate(model, inflate.build_temporal(model, temporal))
    text = [[torch.randn(1, TOKENS, SD15["context_dim"], generator=generator), {}]]
    latent = {"samples": torch.randn(frames, 4, SIDE, SIDE, generator=generator)}
    begun = time.perf_counter()
    if which == "inversion":
        nodes["FramePainterInvertDDIM"].execute(model=model, positive=text, latent=latent, steps=1)
    else:
        plan, start, trajectory, schedule = edit_of_noise(load, model, text, latent)
        (model,) = nodes["FramePainterPromptAttention"].execute(
            model=model, plan=plan, trajectory=trajectory, source_branch="stored trajectory", cross_steps=1.0, temporal_steps=1.0,
            blend=True, blend_threshold=0.3).args
        euler = KSamplerSelect.execute(sampler_name="euler").args[0]
        begun = time.perf_counter()
        SamplerCustom.execute(model=model, add_noise=False, noise_seed=0, cfg=7.5, positive=text, negative=text, sampler=euler,
                              sigmas=schedule, latent_image=start)
    import resource

    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rows.insert(2, f"| one step of the {which}, {8 * SIDE} x {8 * SIDE}, {frames} frames | {time.perf_counter() - begun:.0f} s on "
                   f"{torch.get_num_threads()} threads, at most {top:.1f} GB |")
    return rows


def edit_of_noise(load: Callable, model: Any, text: list, latent: dict) -> tuple[Any, Any, Any, Any]:
    """A plan, start, trajectory of one step and schedule, without running an inversion."""
    import torch

    ddim, trajectories = load("host.inversion.ddim"), load("core.inversion.trajectory")
    sigmas = load("core.ddim").Schedule(1).sigmas
    prompts = [load("core.attention.align").Prompt(words, (49406, 320, end, 49407), ("<s>", "a", last, "<e>"))
               for words, end, last in (("a cat", 2368, "cat"), ("a dog", 1929, "dog"))]
    edit = load("core.attention.words").edit_of(*prompts, "@cat, @dog")
    found = trajectories.Trajectory(torch.stack([latent["samples"] * s for s in reversed(sigmas)]), sigmas,
                                    trajectories.SourceConditioning(text[0][0], torch.zeros(0), {}),
                                    load("host.attention.inflated").network_digest(model))
    plan = load("host.attention.prompt_text").PromptPlan(edit, text[0][0], text[0][0])
    return plan, ddim.start_latent(found), found, torch.tensor(sigmas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--step", choices=("inversion", "edit"), help="run one real step on the CPU instead")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"of that step (default {FRAMES})")
    parser.add_argument("--write", action="store_true", help=f"rewrite the tables in {PAGE.name}")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host, cpu=True)
    if args.step:
        import torch

        with torch.inference_mode():
            tables = {args.step: "\n".join(real_step(load, args.step, args.frames))}
    else:
        tables = {"operations": "\n".join(operations_lines(operations(load))), "memory": "\n".join(memory_lines(memory(load)))}
    print("\n\n".join(tables.values()))
    if args.write:
        for name, text in tables.items():
            pages.write_table(PAGE, BEGIN[name], text)


if __name__ == "__main__":
    main()
