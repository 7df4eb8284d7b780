"""Frames for the editors are those that Read Video reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

CLIP = Path(__file__).parents[3] / "workflows" / "inputs" / "carry_clip.mp4"


def test_stills_are_the_frames_that_are_read(pack):
    stills, reading, source = pack("core.video.stills"), pack("core.video.reading"), pack("core.video.source")
    file = source.VideoFile(CLIP, CLIP.name)
    try:
        for choice in (stills.Choice(), stills.Choice(fps=8.0, start=0.1, end=0.6, even_size=True, longer_side=111)):
            frames = reading.read(CLIP, *choice).frames
            found = stills.span(file, choice, lambda: None)
            assert (len(found.numbers), found.height, found.width) == tuple(frames.shape[:3])
            for index, seconds, same in ((0, 0.0, 0), (2, 0.0, 2), (0, 2 / found.fps, 2)):
                picture = stills.still(file, choice, found.at(index, seconds), lambda: None)
                assert torch.equal(picture.float() / 255, frames[same])
        with pytest.raises(ValueError, match="of which number 500 is none"):
            found.at(500)
    finally:
        file.close()
