"""Editing a video by words on a real server, with the small text-to-image model, measured against the true edited clip."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.examples import pixels

SIDE = 192
# Example -> clip, row of its picture of truths, (colour, shape).
EXAMPLES = {
    "video_p2p_edit": ("shape_clip", 3, ("blue", "square")),
    "video_p2p_words": ("shape_clip", 0, ("blue", "disc")),
    "video_p2p_tune": ("shape_clip", 3, ("blue", "square")),
    "video_p2p_long": ("long_shape_clip", 0, ("blue", "square")),
}


def clip_and_truth(name: str, row: int):
    """A clip and its true edit: (F, 192, 192, 3) of 255."""
    import av

    with av.open(str(examples.WORKFLOWS / "inputs" / f"{name}.mp4")) as file:
        clip = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float()
    truth = pixels(examples.WORKFLOWS / "inputs" / f"{name}_truth.png")[SIDE * row: SIDE * (row + 1)].float()
    return clip, torch.stack(truth.split(SIDE, 1))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_words_change_what_they_name_and_nothing_else(lab, pack, name: str):
    source, row, words = EXAMPLES[name]
    clip, truth = clip_and_truth(source, row)
    results = lab.run(examples.prompt(name), timeout=600)
    edited = torch.stack(results["Edited frames"]).float()
    assert edited.shape == clip.shape
    read = pack("core.evaluation.captions").read_picture
    seen = [read(frame.movedim(-1, 0) / 255) for frame in edited]
    assert sum(s is not None and (s.colour, s.shape) == words for s in seen) >= 0.75 * len(seen), seen
    changed = (truth - clip).abs().amax(-1) > 25
    same = (truth - clip).abs().amax(-1) < 5
    assert (edited - truth)[changed].abs().mean() < 0.5 * (clip - truth)[changed].abs().mean()
    assert (edited - clip)[same].abs().mean() < 6
    (maps,) = results["Where the words look"]
    assert maps.float().std() > 20
