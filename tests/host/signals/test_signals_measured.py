"""What docs/touching.md says of the three signals, on two of its scenes: things go where they are told, the rest stays."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from framepainter_tests.examples import ROOT


@pytest.fixture(scope="module")
def bench(tool):
    tool("making.small_model")  # puts tools/ where the script looks for it
    spec = importlib.util.spec_from_file_location("framepainter_bench_signals", ROOT / "bench" / "signals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def editor(pack, bench):
    return bench.Editor(pack)


@pytest.fixture(scope="module")
def edits(pack, bench):
    return bench.made_up_edits.edits(pack, bench.small_model.SCENES, 2, bench.SEED)


def test_texts_of_the_editors_say_what_really_happens(pack, bench, editor, edits):
    """The rough edit made from the text is nearly the true picture, and the stroke runs along the true outline."""
    for edit in edits:
        rough = editor.run("CoarseSignal", picture=edit.source, pieces=edit.filled)[1][0]
        found = bench.measure(pack, edit, rough)
        assert found["position"] < 1.0 and found["ssim"] > 0.9
        control = editor.run("SketchSignal", picture=edit.source, strokes=edit.strokes)[1][0]
        there = bench.position(pack, edit.target, edit.background)
        rows, columns = (control[0, ..., 0] > 0.5).nonzero(as_tuple=True)
        assert math.dist(there, (float(columns.float().mean()), float(rows.float().mean()))) < 1.0


@pytest.mark.parametrize("label, limit", [("sketch", 0.15), ("drag", 0.35), ("coarse edit", 0.15)])
def test_the_object_goes_where_it_is_told(pack, bench, editor, edits, label, limit):
    method = next(m for m in bench.METHODS if m.label == label)
    with torch.inference_mode():
        for edit in edits:
            edited, reconstruction, used = editor.edit(method, edit, 0)
            kept, weight = editor.keep(edit, edited, reconstruction, used)
            found, before = bench.measure(pack, edit, edited, kept, weight), bench.measure(pack, edit, edit.source)
            assert found["position"] < limit * before["position"], found
            assert found["ssim"] > before["ssim"] + 0.1
            assert found["changed"] == 0 and found["outside"] > 0.3 and found["kept"] < found["still"]
