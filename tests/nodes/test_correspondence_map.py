"""The Correspondence Map node on a model whose answer is known."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def edit(pack, checkpoint):
    """The small checkpoint and a finished 64 x 96 edit of it."""
    loading = pack("host.weights.loading")
    with torch.inference_mode():
        loaded = loading.load(checkpoint, None, None, torch.float32)
        picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
        made = pack("host.conditioning").edit_conditioning(loaded.clip_vision, loaded.vae, picture, 64, 96, 6, 128, 0.02, 0)
    return loaded, made.positive, picture


@pytest.fixture
def node(pack):
    return next(n for n in pack("nodes").NODES if n.define_schema().node_id == "FramePainterCorrespondenceMap")


def call(node, edit, latent, model=None, **inputs):
    loaded, positive, picture = edit
    settings = {"x": 0.5, "y": 0.5, "level": "fine (1/8)", "sigma": 0.05, **inputs}
    with torch.inference_mode():
        return node.execute(model=model or loaded.model, positive=positive, latent={"samples": latent}, picture=picture,
                            **settings).args


@pytest.fixture
def identity(pack, edit):
    """Matching weights whose queries and keys are the normalised input itself, sharpened: like finds like."""
    loaded = edit[0]
    matching = loaded.weights.matching.clone()
    changes = {}
    for name, weight in matching.model.state_dict().items():
        if name.endswith((".to_q.weight", ".to_k.weight")):
            changes[name] = ("set", (torch.eye(len(weight)) * 4,))
    matching.add_patches(changes)
    return pack("host.attention.matching").attach_matching(loaded.model, matching, "release", 1.0)


def test_equal_frames_match_in_place(node, edit, identity):
    """If the edit is the source again and like finds like, every point comes from where it is: white flow."""
    frame = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(4)) * 5
    heat, flow, attention, moved = call(node, edit, frame.expand(2, -1, -1, -1), identity, x=0.3, y=0.6, sigma=0.01)
    assert heat.shape == (1, 64, 96, 3) and flow.shape == (1, 64, 96, 3) and attention.shape == (1, 8, 12)
    assert (flow > 0.99).all(-1).float().mean() > 0.9
    assert int(attention.flatten().argmax()) == int(0.6 * 8) * 12 + int(0.3 * 12)


def test_nan_is_no_heat_map(node, edit):
    latent, (loaded, positive, picture) = torch.randn(2, 4, 8, 12), edit
    with pytest.raises(ValueError, match="Correspondence Map: 'latent' cannot be used: inf or NaN in its samples"):
        call(node, edit, latent * float("nan"))
    with pytest.raises(ValueError, match="Correspondence Map: 'positive' cannot be used: inf or NaN in its embedding"):
        call(node, (loaded, [[positive[0][0] * float("nan"), positive[0][1]]], picture), latent)


def test_levels_are_the_networks_maps(node, edit):
    latent = torch.randn(2, 4, 8, 12)
    sizes = [call(node, edit, latent, level=level)[2].shape[1:] for level in ("fine (1/8)", "medium (1/16)", "coarse (1/32)")]
    assert sizes == [(8, 12), (4, 6), (2, 3)]


def test_the_crosses_are_drawn(node, edit):
    heat, *_ = call(node, edit, torch.randn(2, 4, 8, 12), x=0.25, y=0.5)
    assert torch.allclose(heat[0, 32, 24], torch.tensor([1.0, 0.25, 0.2]), atol=1e-6)
    green = (heat[0] - torch.tensor([0.2, 1.0, 0.3])).abs().amax(-1) < 1e-6
    assert green.any()


def test_cross_frame_can_be_looked_at(node, edit, pack):
    model = pack("host.attention.matching").attach_matching(edit[0].model, None, "cross-frame", 1.0)
    _, _, attention, _ = call(node, edit, torch.randn(2, 4, 8, 12), model)
    assert attention.max() == 1 and attention.min() >= 0


def test_the_look_leaves_the_model_alone(node, edit, pack):
    keys = pack("host.keys")
    call(node, edit, torch.randn(2, 4, 8, 12))
    assert keys.RECORD not in edit[0].model.model_options["transformer_options"]


def test_what_it_needs(node, edit, pack):
    with pytest.raises(ValueError, match="the latent has 1 frame; it needs both"):
        call(node, edit, torch.randn(1, 4, 8, 12))
    bare = pack("host.attention.matching").attach_matching(edit[0].model, None, "off", 1.0)
    with pytest.raises(ValueError, match="no matching attention.*Matching Attention node"):
        call(node, edit, torch.randn(2, 4, 8, 12), bare)
