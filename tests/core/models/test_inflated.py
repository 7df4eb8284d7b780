"""Parts of the inflated network against PyTorch's own layers, and the names at full size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

SD15 = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True, "context_dim": 768,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1, "legacy": False}


@pytest.fixture
def inflated(pack):
    return pack("core.models.inflated")


@pytest.fixture(scope="module")
def shapes():
    """Names and shapes of the full-size SD 1.5 UNet, as ComfyUI builds it."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        return {n: tuple(p.shape) for n, p in UNetModel(**SD15).state_dict().items()}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 2 * 30 * 2, 1 << 20])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_pooled_norm_is_torch_s_norm_of_the_whole_video(inflated, frames, chunk):
    x = random(2 * frames, 64, 5, 6) * 3 + random(2 * frames, 1, 1, 1, seed=1) * 5 + 10
    weight, bias = random(64, seed=2), random(64, seed=3)
    expected = F.group_norm(x.unflatten(0, (2, frames)).transpose(1, 2).double(), 32, weight.double(), bias.double(), 1e-5)
    found = inflated.pooled_group_norm(x, frames, 32, weight, bias, 1e-5, chunk)
    assert (found - expected.transpose(1, 2).flatten(0, 1)).abs().max() < 2e-5
    half = inflated.pooled_group_norm(x.half(), frames, 32, weight, bias, 1e-5, chunk)
    assert half.dtype == torch.float16 and (half - found).abs().max() < 0.05


def test_pooled_norm_has_torch_s_gradients(inflated):
    with torch.inference_mode(False), torch.enable_grad():
        x = random(6, 32, 4, 4).requires_grad_(True)
        weight, bias, target = random(32, seed=1), random(32, seed=2), random(6, 32, 4, 4, seed=3)
        (inflated.pooled_group_norm(x, 3, 8, weight, bias, 1e-5, chunk=32) * target).sum().backward()
        found, x.grad = x.grad, None
        whole = F.group_norm(x.unflatten(0, (2, 3)).transpose(1, 2), 8, weight, bias, 1e-5)
        (whole.transpose(1, 2).flatten(0, 1) * target).sum().backward()
    assert (found - x.grad).abs().max() < 1e-5


@pytest.mark.parametrize("frames, window", [(1, 0), (5, 0), (5, 5), (5, 9), (3, -1)])
def test_no_mask_where_every_frame_sees_all(inflated, frames, window):
    assert inflated.window_mask(frames, window) is None


@pytest.mark.parametrize("frames, window", [(5, 1), (6, 2), (9, 4), (24, 8)])
def test_a_window_is_the_nearest_frames(inflated, frames, window):
    mask = inflated.window_mask(frames, window)
    assert (mask.sum(1) == window).all() and mask.diagonal().all()
    for i, row in enumerate(mask):
        seen = row.nonzero().flatten()
        assert seen[-1] - seen[0] == window - 1
        hidden = (~row).nonzero().flatten()
        inside = 0 < seen[0] and seen[-1] < frames - 1
        if inside:  # no hidden frame is nearer than the farthest that is seen
            assert (hidden - i).abs().min() >= (seen - i).abs().max()


def test_fresh_layers_do_nothing_until_they_are_trained(inflated):
    layers = inflated.TemporalLayers({"a.b": 16}, 4)
    layers.load_state_dict(inflated.fresh_temporal({"a.b": 16}, 0))
    x = random(6, 5, 16)
    assert torch.equal(layers.at("a.b")(x, 3, lambda q, k, v, heads: v), x)
    released = inflated.fresh_temporal({"a.b": 16}, 0, random_bias=True)
    layers.load_state_dict(released)
    added = layers.at("a.b")(x, 3, lambda q, k, v, heads: v) - x
    assert torch.allclose(added, released["a.b.attn_temp.to_out.0.bias"].expand_as(added), atol=1e-6)
    assert added.abs().max() <= 0.25


def test_full_size_names(pack, inflated, shapes):
    import comfy.utils

    names = pack("core.weights.inflated")
    assert len(shapes) == 686
    back = names.to_diffusers(shapes)
    assert len(set(back.values())) == 686
    host = comfy.utils.unet_to_diffusers({**SD15, "num_res_blocks": [2, 2, 2, 2]})
    assert all(host[old] == new for new, old in back.items())
    assert names.to_comfy(back.values()) == {old: new for new, old in back.items()}


def test_full_size_counts(pack, inflated, shapes):
    names, objective = pack("core.weights.inflated"), pack("core.training.one_shot.objective")
    sites = inflated.block_sites(shapes)
    assert len(sites) == 16 and len(inflated.pooled_norms(shapes)) == 45
    with torch.device("meta"):
        layers = {n: tuple(p.shape) for n, p in inflated.TemporalLayers(sites, 8).state_dict().items()}
    assert len(layers) == 16 * 7
    every = {**shapes, **layers}
    count = {n: torch.Size(shape).numel() for n, shape in every.items()}
    trained = [n for n in every if inflated.is_trained(n)]
    assert len(trained) == 112 and sum(count[n] for n in trained) == 74_354_880
    released = [n for n in every if objective.trains(n, "as_released")]
    assert len(released) == 70 and sum(count[n] for n in released) == 48_545_600
    assert round(sum(count.values()) / 1e6) == 909 and round(sum(count[n] for n in shapes) / 1e6) == 860
    # added names keep their place inside the block
    old = names.to_diffusers(layers, names.layout_from_comfy(shapes))
    assert old["input_blocks.1.1.transformer_blocks.0.attn_temp.to_q.weight"] == (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn_temp.to_q.weight")
    assert names.to_comfy(old.values(), names.layout_from_comfy(shapes)) == {b: a for a, b in old.items()}


def test_names_of_no_such_network(pack, shapes):
    names = pack("core.weights.inflated")
    with pytest.raises(ValueError, match="1 names have no place"):
        names.to_comfy(["down_blocks.0.resnets.0.conv9.weight"], names.layout_from_comfy(shapes))
    with pytest.raises(ValueError, match="not a diffusers UNet"):
        names.to_comfy(["transformer.wte.weight"])
