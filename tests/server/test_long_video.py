"""Propagate Edit on a real server: the edit reaches the last clip, measured against the true recoloured video."""

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


def test_the_edit_reaches_the_last_clip(lab, prompt, frames):
    clip, truth = frames
    results = lab.run(prompt)
    edited = torch.stack(results["Edited frames"]).float()
    assert edited.shape == truth.shape
    changed = (truth - clip).abs().amax(-1) > 25

    def error(found, span):
        return float((found - truth).pow(2).mean(-1)[span][changed[span]].mean()) / 255**2

    print("clips", [round(error(edited, slice(i, i + 3)) / error(clip, slice(i, i + 3)), 3) for i in (1, 4, 7, 10, 13)])
    assert error(edited, slice(1, 16)) < 0.3 * error(clip, slice(1, 16))
    assert error(edited, slice(13, 16)) < 0.5 * error(clip, slice(13, 16))
    assert results["Drift"][0].float().std() > 10
