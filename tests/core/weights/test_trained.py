"""What a file says of its training, and what is said when an edit does not fit it."""

from __future__ import annotations

import pytest


@pytest.fixture
def trained(pack):
    return pack("core.weights.trained")


def test_there_and_back(trained):
    note = trained.Trained("mine", "drag", (64, 96))
    assert trained.trained_as(note.metadata(), "mine") == note
    assert note.metadata()["framepainter.size"] == "96x64"
    assert trained.trained_as({}, "old") == trained.Trained("old")


@pytest.mark.parametrize("fields", [{"framepainter.signal": "telepathy"}, {"framepainter.size": "0x96"},
                                    {"framepainter.size": "big"}])
def test_what_cannot_be_read_is_unknown(trained, fields):
    note = trained.trained_as(fields, "odd")
    assert note.signal is None and note.size is None and note.mismatch("drag") is None and note.far_from(8, 8) is None


def test_a_wrong_model_is_named_with_the_right_one(trained):
    for signal, kind, fits in (("sketch", "sketch", True), ("mixed", "drag", True), ("sketch", "coarse", False),
                               ("none", "sketch", False), ("coarse", "drag", False)):
        text = trained.Trained("m", signal).mismatch(kind)
        assert (text is None) == fits
        assert fits or f"framepainter_small_{kind}" in text and "'m'" in text


def test_sizes_far_from_training(trained):
    note = trained.Trained("m", "drag", (96, 96))
    assert note.far_from(72, 128) is None and note.far_from(128, 128) is None
    assert "96 x 96 pixels, this edit has 1024 x 576" in note.far_from(576, 1024)


def test_the_pack_s_models_say_what_they_are(trained, pack):
    read = pack("core.weights.safetensors_header").read_header
    models = pack("host.weights.folders").SHIPPED
    for signal in ("sketch", "drag", "coarse"):
        path = models / f"framepainter_small_{signal}.safetensors"
        assert trained.trained_as(read(path).metadata, path.stem) == (path.stem, signal, (96, 96))
    assert trained.trained_as(read(models / "framepainter_small_base.safetensors").metadata, "base").signal == "none"
