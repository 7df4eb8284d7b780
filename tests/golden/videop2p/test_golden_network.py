"""The inflated network against recorded values of the published code: its parts, and the whole through the host's sampling."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import text_model
from framepainter_tests.golden import Case, cases
from framepainter_tests.videop2p import KINDS, check, network, of_kind, rows, unet, video


def cases_of(kind: str):
    return pytest.mark.parametrize("case", of_kind(kind), ids=repr)


def test_every_kind_is_known():
    assert {c.kind for c in cases("videop2p")} <= set(KINDS)


def lone(pack, path: str, module: torch.nn.Module, layers: dict | None = None, heads: int = 8) -> torch.nn.Module:
    """A single layer of the host inside an otherwise empty network, at a path, with our forwards on it."""
    inflated, models = pack("host.attention.inflated_layers"), pack("core.models.inflated")
    root = torch.nn.Module()
    *folders, leaf = path.split(".")
    parent = root
    for folder in folders:
        parent.add_module(folder, torch.nn.Module())
        parent = getattr(parent, folder)
    parent.add_module(leaf, module)
    temporal = None
    if layers is not None:
        temporal = models.TemporalLayers(models.block_sites({n: tuple(p.shape) for n, p in root.state_dict().items()}), heads)
        temporal.load_state_dict({f"{path}.{n}": t for n, t in layers.items()})
    found = inflated.forwards(root, temporal, inflated.Settings(), lambda p: root.get_submodule(p).forward)
    for place, forward in found.items():
        root.get_submodule(place).forward = forward
    return module


def running(pack, frames: int):
    layers = pack("host.attention.inflated_layers")
    return layers.running(layers.Pass(frames))


def block(pack, case: Case):
    """A transformer block of the host with a case's weights."""
    import comfy.ops
    from comfy.ldm.modules.attention import BasicTransformerBlock

    config = case.info["network"]["config"]
    module = BasicTransformerBlock(config["channels"], config["heads"], config["dim_head"],
                                   context_dim=config["cross_attention_dim"], operations=comfy.ops.disable_weight_init)
    plain, added = text_model.split({f".{n}": t for n, t in network(case).items()})
    module.load_state_dict({n[1:]: t for n, t in plain.items()})
    return lone(pack, "input_blocks.1.1.transformer_blocks.0", module, {n[1:]: t for n, t in added.items()}, config["heads"])


@pytest.mark.parametrize("chunk", [1 << 20, 24])
@cases_of("frame_attention")
def test_frame_attention(pack, case: Case, chunk: int):
    import comfy.ops
    from comfy.ldm.modules.attention import CrossAttention

    inflated = pack("host.attention.inflated_layers")
    config, frames = case.info["network"]["config"], case.info["parameters"]["frames"]
    module = CrossAttention(config["channels"], heads=config["heads"], dim_head=config["dim_head"],
                            operations=comfy.ops.disable_weight_init)
    module.load_state_dict(network(case))
    forward = inflated._FrameAttention(module.forward, module, "", inflated.Settings(), chunk)
    with inflated.running(inflated.Pass(frames)):
        check(case, "output", forward(case.tensors["hidden_states"]))


@pytest.mark.parametrize("chunk", [1 << 20, 24])
@cases_of("temporal_attention")
def test_temporal_attention(pack, case: Case, chunk: int):
    from comfy.ldm.modules.attention import optimized_attention

    config, frames = case.info["network"]["config"], case.info["parameters"]["frames"]
    layer = pack("core.models.inflated").TemporalLayer(config["channels"], config["heads"])
    layer.load_state_dict(network(case))
    check(case, "output", layer(case.tensors["hidden_states"], frames, optimized_attention, chunk))


@cases_of("transformer_block")
def test_transformer_block(pack, case: Case):
    module, frames = block(pack, case), case.info["parameters"]["frames"]
    text = case.tensors["encoder_hidden_states"].repeat_interleave(frames, 0)
    with running(pack, frames):
        check(case, "output", module(case.tensors["hidden_states"], text, {}))


@cases_of("resnet_block")
def test_resnet_block(pack, case: Case):
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    config, frames = case.info["network"]["config"], case.info["parameters"]["frames"]
    module = ResBlock(config["in_channels"], config["time_embedding"], 0.0, config["out_channels"],
                      operations=comfy.ops.disable_weight_init)
    names = pack("core.weights.diffusers_svd")._RESNET
    module.load_state_dict({f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t for n, t in network(case).items()})
    lone(pack, "input_blocks.1.0", module)
    embedding = case.tensors["time_embedding"]
    with running(pack, frames):
        out = module(rows(case.tensors["hidden_states"]), embedding.repeat_interleave(frames, 0))
    check(case, "output", video(out, len(embedding)))


@pytest.mark.parametrize("chunk, streamed", [(1 << 20, False), (256, False), (256, True), (1 << 20, True)])
@cases_of("unet3d_forward")
def test_unet3d_forward(pack, case: Case, chunk: int, streamed: bool):
    t, p = case.tensors, case.info["parameters"]
    model = text_model.inflated(pack, unet(pack, case), chunk=chunk, streamed=streamed)
    probes = watch(pack, model, case)
    for i, timestep in enumerate(p["timesteps"]):
        out = text_model.evaluate(pack, model, rows(t["latents"]), timestep, t["encoder_hidden_states"])
        check(case, f"output_t{i}", video(out))
        if i == 0:
            assert len(probes) == sum(name.startswith("probe/") for name in case.info["outputs"])
            for name, found in probes.items():
                check(case, name, video(found))
    videos = len(t["latents_batch"])
    text = t["encoder_hidden_states_batch"].repeat_interleave(p["frames"], 0)
    check(case, "output_batch", video(text_model.evaluate(pack, model, rows(t["latents_batch"]), p["batch_timestep"], text, videos),
                                       videos))


def watch(pack, model, case: Case) -> dict[str, torch.Tensor]:
    """Fills in the output of every probed module at its first run."""
    names = pack("core.weights.inflated")
    table = {old: new for old, new, _ in names.module_table(names.layout_from_diffusers(network(case)))}
    found: dict[str, torch.Tensor] = {}
    for name in case.info["outputs"]:
        if name.startswith("probe/"):
            path = table.get(name.removeprefix("probe/"), "middle_block.2")

            def keep(module: torch.nn.Module, inputs: tuple, out: torch.Tensor, name: str = name) -> None:
                found.setdefault(name, out.clone())

            model.model.diffusion_model.get_submodule(path).register_forward_hook(keep)
    return found
