"""Propagate Edit on a real server: the edit reaches the third clip, measured against the true recoloured video."""

from __future__ import annotations

import shutil

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.examples import pixels


@pytest.fixture(scope="module")
def prompt(server) -> examples.Prompt:
    for name in ("long_clip.mp4", "long_clip_edited.png"):
        shutil.copy(examples.WORKFLOWS / "inputs" / name, server.base / "input" / f"framepainter_{name}")
    return examples.prompt("i2vedit_long")


@pytest.fixture(scope="module")
def frames():
    """The video, and the truth: (16, 96, 96, 3) of 255."""
    import av

    with av.open(str(examples.WORKFLOWS / "inputs" / "long_clip.mp4")) as file:
        clip = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float()
    return clip, torch.stack(pixels(examples.WORKFLOWS / "inputs" / "long_clip_truth.png").float().split(96, 1))


def test_the_edit_reaches_the_third_clip(lab, prompt, frames):
    clip, truth = (x[:10] for x in frames)  # the example stops after 1.5 s
    examples.inputs(prompt, "FramePainterPropagateEdit")["lora"] = "none"  # half of the time, and tested by itself
    results = lab.run(prompt)
    edited = torch.stack(results["Edited frames"]).float()
    assert edited.shape == truth.shape

    def error(found, span):
        return float((found - truth).pow(2)[span].mean())

    of_nothing = [error(edited, slice(i, i + 3)) / error(clip, slice(i, i + 3)) for i in (1, 4, 7)]
    assert of_nothing[0] < 0.15 and of_nothing[2] < 0.6, of_nothing
    assert results["Drift"][0].float().std() > 10
