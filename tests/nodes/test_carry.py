"""Carry Edit: results in the frames' own bits, masks in and out, other flow, and what it refuses."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def node(pack):
    return next(n for n in pack("nodes").NODES if n.define_schema().node_id == "FramePainterCarryEdit")


def scene(count: int = 3):
    """A red square that moves over a noisy ground, and the same in blue."""
    plain = 0.4 + 0.1 * torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1)
    truth = plain.clone()
    for i in range(count):
        plain[i, 10:30, 8 + 4 * i:28 + 4 * i] = torch.tensor([0.8, 0.15, 0.1])
        truth[i, 10:30, 8 + 4 * i:28 + 4 * i] = torch.tensor([0.1, 0.2, 0.9])
    return plain, truth


def test_frames_and_masks_come_out_and_the_rest_keeps_its_bits(node):
    plain, truth = scene()
    keep = torch.zeros(1, 24, 32)
    keep[:, :10] = 1
    frames, change, confidence = node.execute(plain, truth[2:], "2", "own", keep=keep).args
    assert frames.shape == plain.shape and change.shape == confidence.shape == plain.shape[:3]
    assert torch.equal(frames[change == 0], plain[change == 0])
    assert torch.equal(frames[:, :19], plain[:, :19])  # half way to the mask's edge it is no longer 1
    below = slice(21, None)
    assert (frames - truth)[:, below].square().sum() < 0.05 * (plain - truth)[:, below].square().sum()
    assert set(change.unique().tolist()) == {0, 1} and 0 <= confidence.min() and confidence.max() <= 1


def test_an_optical_flow_model_is_used(node):
    plain, truth = scene(2)
    calls = []

    class Network(torch.nn.Module):
        def forward(self, target, source):
            calls.append(target.shape)
            return [torch.zeros(1, 2, *target.shape[-2:])]

    from comfy.model_patcher import ModelPatcher

    model = ModelPatcher(Network(), torch.device("cpu"), torch.device("cpu"))
    frames = node.execute(plain, truth[:1], "0", "own", optical_flow=model).args[0]
    assert calls and frames.shape == plain.shape


@pytest.mark.parametrize(("given", "says"), [
    ({"keyframes": "first"}, "keyframes is 'first'"), ({"keyframes": "0, 1"}, "1 pictures, keyframes 2 numbers"),
    ({"keyframes": "9"}, "keyframe 9 is not in the video"), ({"flow": "magic"}, "flow is 'magic'"),
    ({"edited": torch.rand(1, 20, 20, 3)}, "20 x 20"), ({"keep": torch.zeros(2, 8, 8)}, "'keep' has 2 masks"),
    ({"mask": torch.zeros(2, 8, 8)}, "'mask' has 2 masks"), ({"optical_flow": 3}, "Load Optical Flow Model"),
])
def test_what_does_not_fit_is_refused_by_name(node, given, says):
    plain, truth = scene()
    with pytest.raises(ValueError, match=f"^Carry Edit: .*{says}"):
        node.execute(**{"frames": plain, "edited": truth[:1], "keyframes": "0", "flow": "own", **given})
