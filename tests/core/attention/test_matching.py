"""Matching attention and its read-out against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


def attention(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.fixture
def branch(pack):
    torch.manual_seed(0)
    return pack("core.attention.matching").MatchingAttention(32, 2)


def test_each_video_asks_its_own_source(branch):
    """Rows of one video do not depend on another's, nor on other frames than their own and frame 0."""
    x = torch.randn(6, 10, 32)  # two videos of three frames
    out = branch(x, 3, attention)
    alone = torch.cat([branch(x[:3], 3, attention), branch(x[3:], 3, attention)])
    assert torch.allclose(out, alone, atol=1e-6)
    changed = x.clone()
    changed[1] = 0  # frame 1 of video 0
    keep = [0, 2, 3, 4, 5]
    assert torch.allclose(branch(changed, 3, attention)[keep], out[keep], atol=1e-6)
    changed = x.clone()
    changed[3] = 0  # the source of video 1
    assert torch.allclose(branch(changed, 3, attention)[:3], out[:3], atol=1e-6)
    assert not torch.allclose(branch(changed, 3, attention)[4], out[4], atol=1e-3)


def test_target_rows_agree_between_release_and_paper(branch):
    x = torch.randn(4, 10, 32)
    release, paper = branch(x, 2, attention), branch(x, 2, attention, targets_only=True)
    assert torch.allclose(paper[1::2], release[1::2], atol=1e-6)
    assert paper[0::2].abs().max() == 0


def test_definition(branch):
    x = torch.randn(2, 10, 32)
    q, k, v = branch.to_q(x[1]), branch.to_k(x[0]), branch.to_v(x[0])
    heads = [torch.softmax(q[:, s] @ k[:, s].T / 4, -1) @ v[:, s] for s in (slice(0, 16), slice(16, 32))]
    assert torch.allclose(branch(x, 2, attention)[1], branch.to_out[0](torch.cat(heads, -1)), atol=1e-6)


@pytest.fixture(scope="module")
def read(pack):
    return pack("core.attention.correspondence")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_matches_against_the_full_matrix(read, chunk):
    torch.manual_seed(1)
    sites = [read.SiteAttention(torch.randn(24, 32), torch.randn(24, 32), 2, (4, 6)) for _ in range(3)]
    weights = torch.stack([torch.softmax(s.q[:, h] @ s.k[:, h].T / 4, -1) for s in sites
                           for h in (slice(0, 16), slice(16, 32))]).mean(0)
    got = read.attention_matches(sites, 9, chunk)
    assert torch.allclose(got.heat, weights[9], atol=1e-6) and got.heat.sum() == pytest.approx(1, abs=1e-5)
    assert torch.equal(got.best, weights.argmax(-1))
    assert torch.allclose(got.confidence, weights.amax(-1), atol=1e-6)


def test_a_planted_shift_is_found(read):
    """Tokens moved two to the right and one down: the flow back to the source is (-2, -1) wherever it is inside."""
    torch.manual_seed(2)
    height, width = 6, 8
    source = F.normalize(torch.randn(height, width, 64), dim=-1) * 40
    target = source.roll((1, 2), (0, 1))
    site = read.SiteAttention(target.flatten(0, 1), source.flatten(0, 1), 1, (height, width))
    flow = read.matches_to_flow(read.attention_matches([site], 0).best, height, width)
    assert (flow[0, 1:, 2:] == -2).all() and (flow[1, 1:, 2:] == -1).all()


def test_token_at(read):
    assert read.token_at(0.0, 0.0, 4, 6) == 0
    assert read.token_at(1.0, 1.0, 4, 6) == 23
    assert read.token_at(0.5, 0.26, 4, 6) == 6 + 3


def test_flow_colours(read):
    """No motion is white, opposite directions are complementary hues, the farthest is fully saturated."""
    flow = torch.tensor([[[0.0, 4.0, -4.0, 2.0]], [[0.0, 0.0, 0.0, 0.0]]])
    still, right, left, half = read.flow_to_image(flow)[0]
    assert torch.equal(still, torch.ones(3))
    assert torch.allclose(right, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(left, torch.tensor([0.0, 1.0, 1.0]), atol=1e-6)
    assert torch.allclose(half, torch.tensor([1.0, 0.5, 0.5]), atol=1e-6)
    assert torch.equal(read.flow_to_image(torch.zeros(2, 3, 3)), torch.ones(3, 3, 3))
