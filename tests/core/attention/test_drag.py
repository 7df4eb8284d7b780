"""Drags: points to tokens, tokens to their targets."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(scope="module")
def drag(pack):
    return pack("core.attention.drag")


@pytest.fixture(scope="module")
def parse(pack):
    return lambda *given: pack("core.signals.points").read_drags(*given).points


def test_points_fall_into_the_tokens_they_lie_in(drag):
    points = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.26, 0.49, 0.74, 0.51], [0.5, -0.1, 0.5, 0.5], [math.nan] * 4]])
    found = drag.token_drags(points, 2, 4)
    assert found.source[0, :2].tolist() == [0, 1]
    assert found.target[0, :2].tolist() == [7, 6]
    assert found.share.tolist() == [[1, 1, 0, 0]]  # one that leaves the picture, and one that is not there, do nothing


def test_copies_source_tokens_into_later_frames_only(drag):
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 4, 5)
    points = torch.tensor([[[0.1, 0.1, 0.9, 0.9]], [[math.nan] * 4]])
    kept = tokens.clone()
    out = drag.copy_tokens(tokens, drag.token_drags(points, 2, 2), 0.5)
    expected = tokens.clone()
    expected[0, 1:, 3] += 0.5 * tokens[0, 0, 0]
    assert torch.allclose(out, expected)
    assert torch.equal(out[1], tokens[1]) and torch.equal(tokens, kept)


def test_order_and_repetition_do_not_matter(drag):
    torch.manual_seed(1)
    tokens = torch.randn(1, 2, 16, 3)
    points = torch.rand(1, 6, 4)
    points[:, 3, 2:] = points[:, 0, 2:]  # two drags to one place share it
    run = lambda p: drag.copy_tokens(tokens, drag.token_drags(p, 4, 4))  # noqa: E731
    assert torch.allclose(run(points), run(points[:, torch.randperm(6)]), atol=1e-6)
    assert torch.allclose(run(points[:, :1]), run(points[:, [0, 0, 0]]), atol=1e-6)
    both = (run(points[:, [0, 3]]) - tokens)[0, 1].sum(0)
    single = [(run(points[:, [i]]) - tokens)[0, 1].sum(0) for i in (0, 3)]
    assert torch.allclose(both, (single[0] + single[1]) / 2, atol=1e-5)


def test_reads_pixels_as_shares(parse):
    assert torch.allclose(parse("[[10, 20, 200, 100]]", 100, 200), torch.tensor([[[0.05, 0.2, 1.0, 1.0]]]))


@pytest.mark.parametrize("text, said", [
    ("[[1, 2, 3", "JSON"), ("", "no drags"), ("{}", "no drags"), ("[[1, 2, 3]]", r"drag 1 .*\[1, 2, 3\]"),
    ("[[1, 2, 3, 4], [1, 2, 3, null]]", "drag 2"), ("[[1, 2, 3, true]]", "drag 1"), ("[[1, 2, 3, NaN]]", "drag 1"),
    ("[[1, 2, 300, 4]]", "leaves the picture, which is 200 x 100"), ("[[1, -2, 3, 4]]", "leaves"),
])
def test_says_what_is_wrong(parse, text, said):
    with pytest.raises(ValueError, match=said):
        parse(text, 100, 200)
