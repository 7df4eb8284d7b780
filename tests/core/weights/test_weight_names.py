"""diffusers and ComfyUI names of the SVD UNet, at the real size without its weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def released() -> dict[str, tuple[int, ...]]:
    """The released UNet: diffusers' own SVD network at 320/640/1280/1280 plus the sparse_attention entries."""
    return {n: tuple(s) for n, s in json.loads((GOLDEN / "full_size_unet.json").read_text()).items()}


@pytest.fixture(scope="module")
def comfy_unet(tool) -> dict[str, tuple[int, ...]]:
    """ComfyUI's own SVD network of that size, on the meta device."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    random_model = tool("making.random_model")
    with torch.device("meta"):
        unet = UNetModel(**random_model.svd_unet_settings(random_model.FULL), device="meta", dtype=torch.float32,
                         operations=comfy.ops.disable_weight_init)
    return {n: tuple(p.shape) for n, p in unet.state_dict().items()}


def test_full_size_is_the_published_size(released):
    plain = [s for n, s in released.items() if "sparse_attention" not in n]
    assert sum(map(math.prod, plain)) == 1_524_623_082
    assert sum(map(math.prod, released.values())) - sum(map(math.prod, plain)) == 49_574_080


def test_full_size_maps_one_to_one(pack, released, comfy_unet):
    names = pack("core.weights.framepainter").split_diffusers_unet(released)
    assert {new: released[old] for new, old in names.unet.items()} == comfy_unet
    sites = pack("core.weights.framepainter").spatial_sites(comfy_unet)
    assert len(sites) == 16
    branch = pack("core.attention.matching").MatchingBranch(sites, 64, device="meta")
    assert {new: released[old] for new, old in names.matching.items()} == {
        n: tuple(p.shape) for n, p in branch.state_dict().items()}


def test_full_size_maps_back(pack, released, comfy_unet):
    weights = pack("core.weights.framepainter")
    names = weights.split_diffusers_unet(released)
    back = weights.join_diffusers_unet(comfy_unet, names.matching)
    assert sorted(back.values()) == sorted(released)
    assert all(names.unet[n] == old for n, old in back.items() if not n.startswith(weights.MATCHING))
    assert all(names.matching[n.removeprefix(weights.MATCHING)] == old for n, old in back.items()
               if n.startswith(weights.MATCHING))


def test_layout_is_the_same_from_both_sides(pack, released, comfy_unet):
    svd = pack("core.weights.diffusers_svd")
    layout = svd.layout_from_comfy(comfy_unet)
    assert layout == svd.layout_from_diffusers(released)
    assert layout == svd.Layout(2, (True, True, True, False), (False, True, True, True))
    assert layout.injection_block == 3


@pytest.mark.parametrize("res_blocks, mult", [(1, [1, 2]), (3, [1, 1, 2]), (2, [1, 2, 2, 4])])
def test_any_depth_maps_both_ways(pack, tool, res_blocks, mult):
    """Networks of other depths, as a small trained one may be."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    attention = [1] * res_blocks * (len(mult) - 1) + [0] * res_blocks
    settings = tool("making.random_model").svd_unet_settings({"model_channels": 64, "channel_mult": mult, "context_dim": 32,
                                                       "num_res_blocks": [res_blocks] * len(mult)})
    settings |= {"transformer_depth": attention, "transformer_depth_output": [
        d for level in range(len(mult)) for d in [int(level < len(mult) - 1)] * (res_blocks + 1)]}
    with torch.device("meta"):
        unet = UNetModel(**settings, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    names = list(unet.state_dict())
    svd = pack("core.weights.diffusers_svd")
    there = svd.to_diffusers(names)
    assert len(set(there.values())) == len(names)
    again = svd.to_comfy(there.values())
    assert [again[there[n]] for n in names] == names


def test_epsilon_norms(pack, comfy_unet):
    svd = pack("core.weights.diffusers_svd")
    norms = svd.diffusers_epsilon_norms(svd.layout_from_comfy(comfy_unet))
    assert len(norms) == len(set(norms)) == 72
    assert all(f"{n}.weight" in comfy_unet for n in norms)
    assert {n.split(".")[1] for n in norms if n.startswith("input")} == {"1", "2", "4", "5", "7", "8"}


def test_unknown_names_are_named(pack, released):
    svd = pack("core.weights.diffusers_svd")
    plain = [n for n in released if "sparse_attention" not in n]
    with pytest.raises(ValueError, match="1 names have no place.*down_blocks.0.resnets.0.spatial_res_block.conv9.weight"):
        svd.to_comfy([*plain, "down_blocks.0.resnets.0.spatial_res_block.conv9.weight"])
    with pytest.raises(ValueError, match="not a diffusers UNet"):
        svd.to_comfy(["layers.0.weight"])
