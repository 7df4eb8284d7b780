"""Low-rank additions: nothing at first, exact when merged, the layer itself untouched."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear, Module, ModuleList


class Attention(Module):
    def __init__(self, width: int, context: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = Linear(width, width, bias=False), Linear(context, width), Linear(context, width)
        self.to_out = ModuleList([Linear(width, width)])

    def forward(self, x):
        return self.to_out[0](self.to_q(x) * 2 + self.to_v(x[..., :6]) - self.to_k(x[..., :6]))


class Block(Module):
    def __init__(self):
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(8, 6), Attention(8, 6), Linear(8, 8)

    def forward(self, x):
        return self.ff(self.attn1(x) + self.attn2(x))


@pytest.fixture
def lora(pack):
    return pack("core.training.lora")


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block()


def test_which_layers(lora, block):
    names = {f"attn{n}.to_{leaf}" for n in (1, 2) for leaf in ("q", "k", "v", "out.0")}
    holder = Module()
    holder.inner = block
    assert set(lora.attention_layers(holder)) == {f"inner.{n}" for n in names}
    with pytest.raises(ValueError, match="no attention projections"):
        lora.add_lora(Linear(4, 4), 2, 0)


def wrapped(lora, block, rank=3, **kw):
    holder = Module()
    holder.inner = block
    holder.forward = block.forward
    return holder, lora.add_lora(holder, rank, 1, **kw)


def test_nothing_at_first(lora, block):
    x = torch.randn(5, 8)
    before, names = block(x), {n for n, _ in block.named_parameters()}
    holder, new = wrapped(lora, block)
    assert torch.equal(block(x), before)
    assert {n.removeprefix("inner.") for n, _ in holder.named_parameters()} - names == {
        n.removeprefix("inner.") for n in new}
    assert new["inner.attn1.to_k.lora_down.weight"].shape == (3, 6)
    assert new["inner.attn1.to_k.lora_up.weight"].shape == (8, 3)


def test_merged_is_the_same_function(lora, block):
    x = torch.randn(5, 8)
    holder, new = wrapped(lora, block)
    with torch.no_grad():
        for parameter in new.values():
            parameter.normal_()
    plain = Block()
    tensors = lora.merged({n.removeprefix("inner."): t for n, t in holder.state_dict().items()})
    plain.load_state_dict(tensors)
    assert torch.allclose(plain(x), block(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(tensors["ff.weight"], block.ff.weight)


def test_alpha_scales(lora):
    torch.manual_seed(0)
    outs = []
    for alpha in (None, 6.0):
        torch.manual_seed(0)
        block = Block()
        holder, new = wrapped(lora, block, rank=3, alpha=alpha)
        with torch.no_grad():
            for name, parameter in new.items():
                if not name.startswith("inner.attn1.to_out.0"):
                    continue
                parameter.copy_(torch.ones_like(parameter))
        x = torch.ones(1, 8)
        layer = block.attn1.to_out[0]
        outs.append(layer(x) - layer.plain(x) if hasattr(layer, "plain") else layer(x) - torch.nn.functional.linear(
            x, layer.weight, layer.bias))
    assert torch.allclose(outs[1], 2 * outs[0]) and torch.allclose(outs[0], torch.full((1, 8), 24.0))  # 8 inputs, rank 3


def test_rank_is_limited_and_seeded(lora, block):
    _, new = wrapped(lora, block, rank=100)
    assert {t.shape[0] for n, t in new.items() if "down" in n} == {6, 8}
    torch.manual_seed(0)
    again = wrapped(lora, Block(), rank=100)[1]
    assert all(torch.equal(t, again[n]) for n, t in new.items())


def test_gradients_reach_the_additions_only_when_asked(lora, block):
    with torch.enable_grad():
        holder, new = wrapped(lora, block)
        for name, parameter in holder.named_parameters():
            parameter.requires_grad_(lora.is_lora(name))
        block(torch.randn(5, 8)).square().sum().backward()
    assert all((p.grad is not None) == lora.is_lora(n) for n, p in holder.named_parameters())
    assert all(p.grad.abs().max() > 0 for n, p in new.items() if "lora_up" in n)


def test_file_names(lora, block):
    holder, _ = wrapped(lora, block)
    file = lora.lora_file({n.removeprefix("inner."): t for n, t in holder.state_dict().items()})
    assert set(file) == {f"diffusion_model.attn{n}.to_{leaf}.{end}" for n in (1, 2) for leaf in ("q", "k", "v", "out.0")
                         for end in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert float(file["diffusion_model.attn1.to_q.alpha"]) == 3
