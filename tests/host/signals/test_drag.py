"""Drags as a guest on the host's model."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.golden import relative
from framepainter_tests.networks import rounding, sample

POINTS = torch.tensor([[[0.2, 0.2, 0.8, 0.7], [0.5, 0.9, 0.1, 0.1]]])


@pytest.fixture(scope="module")
def drag(pack):
    return pack("host.signals.drag")


@pytest.fixture
def patches(pack):
    return pack("host.attention.matching")


def test_a_drag_changes_the_edit_and_nothing_that_came_in(drag, patches, edit):
    model = edit.loaded.model
    before = sample(model, edit)
    dragged = sample(drag.apply_drag(model, POINTS, 1.0, 0.0, 1.0), edit)
    assert relative(dragged, before) > 1e-3
    assert torch.equal(sample(model, edit), before)
    assert torch.equal(sample(drag.apply_drag(model, POINTS, 0.0, 0.0, 1.0), edit), before)


def test_only_conditional_rows_and_later_frames(pack, patches):
    drag = pack("core.attention.drag")
    patch = pack("host.signals.drag").DragPatch(POINTS, 0.7, (1000.0, 0.0))
    torch.manual_seed(0)
    tokens = torch.randn(4, 6, 8)  # conditional pair, unconditional pair; 2 x 3 tokens
    options = {"sigmas": torch.tensor([5.0]), "cond_or_uncond": [0, 1], "original_shape": [4, 8, 4, 6]}
    out = patch(tokens, options)
    expected = drag.copy_tokens(tokens[None, :2], drag.token_drags(POINTS, 2, 3), 0.7)[0]
    assert torch.equal(out[:2], expected) and torch.equal(out[2:], tokens[2:])
    assert torch.equal(out[0], tokens[0]) and not torch.equal(out[1], tokens[1])
    assert patch(tokens, {**options, "sigmas": torch.tensor([2000.0])}) is tokens


def test_together_or_one_after_another(drag, patches, edit, monkeypatch):
    """The host splits the passes when memory is short; the result is the same."""
    model = drag.apply_drag(edit.loaded.model, POINTS, 1.0, 0.0, 1.0)
    together = sample(model, edit)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    assert relative(sample(model, edit), together) < 4 * rounding(model, edit) < 1e-3


@pytest.mark.parametrize("latent, tokens, expected", [
    ((72, 128), 72 * 128, (72, 128)), ((72, 128), 36 * 64, (36, 64)), ((9, 15), 5 * 8, (5, 8)), ((9, 15), 3 * 4, (3, 4))])
def test_token_sizes(pack, patches, latent, tokens, expected):
    assert pack("host.models.network").token_size(tokens, [2, 4, *latent]) == expected
