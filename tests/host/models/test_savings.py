"""Exact savings give the network's own result up to rounding, and keep away where somebody else counts on what they skip."""

from __future__ import annotations

import comfy.sd
import pytest
import torch
from framepainter_tests.golden import relative
from framepainter_tests.networks import rounding, sample


@pytest.fixture(scope="module")
def savings(pack):
    return pack("host.models.savings")


@pytest.fixture(scope="module")
def limit(savings, edit, patched) -> float:
    """Of the relative change of one step."""
    with savings.switched(False):
        return 4 * rounding(patched("release"), edit, steps=1)


@pytest.fixture(scope="module")
def patched(pack, edit, strokes):
    """(semantics) -> matching attention and control on the small model."""
    def make(semantics: str, strength: float = 1.0):
        weights = edit.loaded.weights
        model = pack("host.attention.matching").attach_matching(edit.loaded.model, weights.matching, semantics, strength)
        shown = "paper" if semantics == "paper" else "release"
        return pack("host.signals.control").apply_control(model, weights.encoder, strokes, 0.8, 0.0, 1.0, shown)

    return make


def counted(monkeypatch, savings) -> dict[str, int]:
    """How often each saving is made."""
    counts = {"one key": 0, "two frames": 0}
    convolve = savings.two_frame_convolution

    def one_key(self, x, context, options, holds=savings.OneKeyAttention._holds):
        found = holds(self, x, context, options)
        counts["one key"] += found
        return found

    def two_frames(x, weight, bias):
        counts["two frames"] += 1
        return convolve(x, weight, bias)

    monkeypatch.setattr(savings.OneKeyAttention, "_holds", one_key)
    monkeypatch.setattr(savings, "two_frame_convolution", two_frames)
    return counts


@pytest.mark.parametrize("semantics", ["release", "paper", "cross-frame"])
def test_an_edit_with_and_without(savings, edit, patched, limit, monkeypatch, semantics: str):
    model, counts = patched(semantics), counted(monkeypatch, savings)
    with savings.switched(False):
        plain = sample(model, edit, steps=1)
    assert not any(counts.values())
    assert relative(sample(model, edit, steps=1), plain) < limit
    layers = sum(".attn2.to_q.weight" in n for n in model.model.state_dict())
    assert counts["one key"] == layers and counts["two frames"] > 0


def test_a_lora_s_effect_is_in_what_one_key_gives(savings, edit, patched, limit):
    """At two strengths one after the other: nothing is kept from the first."""
    names = [n.removesuffix(".weight") for n in edit.loaded.model.model.state_dict()
             if n.endswith((".attn2.to_v.weight", ".attn2.to_out.0.weight"))]
    generator, lora = torch.Generator().manual_seed(0), {}
    for name in names:
        outer, inner = edit.loaded.model.model.state_dict()[f"{name}.weight"].shape
        lora |= {f"{name}.lora_up.weight": torch.randn(outer, 2, generator=generator) / 4,
                 f"{name}.lora_down.weight": torch.randn(2, inner, generator=generator) / 4}
    results = [sample(patched("release"), edit, steps=1)]
    for strength in (1.0, 0.5):
        model = comfy.sd.load_lora_for_models(patched("release"), None, lora, strength, 0.0)[0]
        results.append(sample(model, edit, steps=1))
        with savings.switched(False):
            assert relative(results[-1], sample(model, edit, steps=1)) < limit
        assert relative(results[-1], results[-2]) > 100 * limit


def test_nodes_that_look_at_cross_attention_see_all_of_it(savings, edit, patched, monkeypatch):
    """A patch on attn2's inputs, one that writes into its output, and another attention function."""
    counts, shapes = counted(monkeypatch, savings), []

    def look(q, k, v, options):
        shapes.append(q.shape)
        return q, k, v

    def write(out, options):
        return out.mul_(1.5)

    def override(attention, *args, **kwargs):
        return attention(*args, **kwargs)

    for kind, patch in (("attn2_patch", look), ("attn2_output_patch", write), (None, override)):
        model = patched("release")
        if kind is None:
            model.model_options["transformer_options"]["optimized_attention_override"] = patch
        else:
            model.set_model_patch(patch, kind)
        sample(model, edit, steps=1)
    assert counts["one key"] == 0 and shapes


def test_other_forwards_are_chained_or_left_alone(savings, patched, edit):
    """A node that replaced a layer's forward before keeps it; the saving goes on the other layers."""
    model = edit.loaded.model.clone()
    name = next(f"{n}.forward" for n, _ in model.model.named_modules() if n.endswith("attn2"))

    def theirs(x, **kwargs):
        return torch.zeros_like(x)

    model.add_object_patch(name, theirs)
    savings.save(model)
    savings.save(model)
    objects = model.object_patches
    assert objects[name] is theirs
    kinds = [p for p in objects.values() if isinstance(p, savings.OneKeyAttention)]
    assert kinds and not any(isinstance(p.method, savings.Saving) for p in kinds)


def test_cross_frame_attention_skips_what_it_throws_away(pack, edit, patched, monkeypatch):
    """Only where nobody else sees it: at strength 1, as the last on the inputs and the first on the outputs."""
    rows, blocks = [], pack("host.attention.blocks")
    normed = blocks.NormedInput.__call__

    def call(self, *args):
        out = normed(self, *args)
        rows.append(len(out[0]) / len(args[0]))
        return out

    monkeypatch.setattr(blocks.NormedInput, "__call__", call)

    def share(model) -> set[float]:
        rows.clear()
        sample(model, edit, steps=1)
        return set(rows)

    assert share(patched("cross-frame")) == {0.5, 1.0}  # spatial blocks, and temporal ones, which are not its
    assert share(patched("cross-frame", 0.5)) == {1.0}
    after = patched("cross-frame")
    after.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    assert share(after) == {1.0}


def test_the_control_encoder_begins_once_a_run(pack, edit, patched, monkeypatch):
    model, begun = patched("paper"), []
    encoder = pack("core.models.control_encoder").ControlEncoder
    begin = encoder.begin
    monkeypatch.setattr(encoder, "begin", lambda self, images: begun.append(len(images)) or begin(self, images))
    first = sample(model, edit, steps=2)
    assert begun == [1]  # in the paper's semantics the drawing alone
    patch = model.model_options["transformer_options"]["patches"]["input_block_patch_after_skip"][0]
    assert patch._begun is None  # a run's end is its memory's end
    assert torch.equal(sample(model, edit, steps=2), first) and begun == [1, 1]


def test_savings_are_no_part_of_a_model_s_identity(pack, savings, patched):
    """What is kept on a disk under a model's digest stays valid."""
    identity, model = pack("host.models.identity"), patched("release")
    bare = model.clone()
    savings.drop(bare)
    bare.remove_callbacks_with_key("on_clone", pack("host.keys").SAVINGS)
    assert len(bare.object_patches) < len(model.object_patches)
    assert identity.patches_of(bare) == identity.patches_of(model)
