"""Checkpointing of motion LoRA training: the same gradients, less memory kept."""

from __future__ import annotations

import math

import pytest
import torch
from comfy.ops import disable_weight_init as ops
from framepainter_tests import tiny


@pytest.fixture(scope="module")
def model(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32).model


def gradients(pack, model, checkpointing: bool, drop: float = 0.0, short: bool = True):
    """Loss and gradients of one step of a LoRA that is not zero, where memory is short or not."""
    trainer, motion = pack("host.training.motion_lora"), pack("core.training.motion_lora.objective")
    presets = pack("core.training.motion_lora.presets")
    with pack("host.training.run").differentiable(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack("host.training.network").TrainingNetwork, "_inside", lambda self, x: math.inf if short else 0.0)
        network = trainer.make_network(model, presets.choose("small network", rank=4, dropout=drop, checkpointing=checkpointing))
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(0)
        width = model.model.model_config.unet_config["context_dim"]
        with torch.no_grad():
            for p in trained.values():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        clip = motion.MotionClip(*(torch.randn(s, generator=generator) for s in ((3, 4, 8, 16), (4, 8, 16), (1, width))))
        loss = motion.batch_loss(network, clip)(1, 0, generator)["loss"]
        loss.backward()
        without = {n for n, p in trained.items() if p.grad is None}
        assert without == {n for n in trained if ".attn2.to_q." in n or ".attn2.to_k." in n}  # of one key
        return float(loss.detach()), {n: p.grad for n, p in trained.items() if n not in without}


@pytest.mark.parametrize("elements", [1 << 22, 700])
def test_checkpointing_gives_the_same_gradients(pack, model, monkeypatch, elements: int):
    """Also where the feed-forward layers run in many parts."""
    memory = pack("core.training.in_parts")
    counted = []
    whole = memory.InParts.__call__

    def call(self, x):
        self.elements = elements
        counted.append(min(len(x), -(-x.numel() // elements)))
        return whole(self, x)

    monkeypatch.setattr(memory.InParts, "__call__", call)
    loss, wanted = gradients(pack, model, False)
    assert not counted
    again, found = gradients(pack, model, True)
    assert counted and (max(counted) > 3) == (elements == 700)
    assert again == pytest.approx(loss, rel=1e-5)
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert scale > 0
    for name, g in wanted.items():
        assert torch.allclose(found[name], g, rtol=1e-3, atol=1e-5 * scale), name


def test_dropout_is_repeated_when_a_part_is_computed_again(pack, model, monkeypatch):
    """One part draws as the layer does without parts; else the gradients would be another loss's. With memory enough no part is
    computed again: the same bits."""
    loss, wanted = gradients(pack, model, False, 0.3)
    again, found = gradients(pack, model, True, 0.3)
    counted = []
    monkeypatch.setattr(pack("core.training.in_parts"), "checkpoint", lambda *a, **k: counted.append(a))
    enough, same = gradients(pack, model, True, 0.3, False)
    assert not counted and enough == again and all(torch.equal(g, same[n]) for n, g in found.items())
    assert again == pytest.approx(loss, rel=1e-5)
    a, b = (torch.cat([g.flatten() for g in gs.values()]) for gs in (wanted, found))
    assert float((a - b).norm()) < 1e-4 * float(a.norm())


def test_parts_keep_nothing_of_their_inside(pack):
    """Of a layer 64 times as wide inside as outside."""
    memory = pack("core.training.in_parts")
    layer = torch.nn.Sequential(ops.Linear(8, 512), torch.nn.GELU(), ops.Linear(512, 8))
    parameters = {p.data_ptr() for p in layer.parameters()}

    def kept(forward) -> int:
        sizes = []

        def note(t):
            sizes.append(0 if t.data_ptr() in parameters else t.numel())
            return t

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            forward(torch.ones(64, 8, requires_grad=True))
        return sum(sizes)

    assert kept(layer.forward) >= 64 * 512
    assert kept(memory.InParts(layer.forward, 64)) <= 64 * 8
