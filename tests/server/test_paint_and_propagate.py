"""Draw on a video's first frame, and the video follows: the shipped example, measured against the true edited clip."""

from __future__ import annotations

import json

import av
import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.browser import canvas_page
from framepainter_tests.editors import Editors
from framepainter_tests.examples import pixels

CHANGED = 25  # of 255


@pytest.fixture(scope="module")
def clips(pack):
    """The video as Read Video gives it, and the truth without the disc that is erased: (7, 96, 96, 3) of 255."""
    clip = (pack("core.video.reading").read(examples.WORKFLOWS / "inputs" / "paint_clip.mp4").frames * 255).round()
    return clip, torch.stack(pixels(examples.WORKFLOWS / "inputs" / "paint_clip_truth.png").float().split(96, 1))


def check_frames(edited, painted, clip, truth):
    """All frames follow the edit: far nearer to the truth than doing nothing, and than the painted frame standing still."""
    assert edited.shape == truth.shape
    still = painted.expand_as(truth)
    # Where the disc was in any frame after the first, and where the one that stays has moved since.
    area = ((truth - clip).abs().amax(-1) > CHANGED) | ((truth - still).abs().amax(-1) > CHANGED)
    area[0] = False

    def error(found, *frames):
        part = slice(*frames or (None,))
        return float((found - truth)[part].pow(2).mean(-1)[area[part]].mean())

    assert error(edited) < 0.12 * error(clip) and error(edited) < 0.08 * error(still)
    assert error(edited, 4, 7) < 0.2 * error(clip, 4, 7), "the second clip"
    assert error(edited, 4, 7) < 0.1 * error(still, 4, 7)
    assert (edited - truth)[~area].abs().mean() < 10


def test_what_is_erased_in_the_first_frame_stays_away(lab, clips):
    clip, truth = clips
    results = lab.run(examples.prompt("paint_and_propagate"))

    (painted,) = (x.float() for x in results["Painted first frame"])
    gone = (truth[0] - clip[0]).abs().amax(-1) > CHANGED
    assert 0.05 < gone.float().mean() < 0.15
    assert (painted - truth[0])[gone].pow(2).mean() < 0.05 * (clip[0] - truth[0])[gone].pow(2).mean()
    kept = (painted - clip[0]).abs().amax(-1) <= 2  # of 255: hosts decode a little differently
    assert kept.float().mean() > 0.8 and not (kept & gone).float().mean() > 0.02

    check_frames(torch.stack(results["Edited frames"]).float(), painted, clip, truth)
    assert results["Drift"][0].float().std() > 10

    video = max((lab.server.base / "output" / "paint_and_propagate").glob("edited_*.mp4"))  # other tests run the example too
    with av.open(str(video)) as file:
        assert file.streams.video[0].average_rate == 7 and sum(1 for _ in file.decode(video=0)) == 7


def test_the_same_with_the_mouse(browser, lab, clips):
    """On the canvas: the editor shows the frame before any run; then a lasso, Erase, Fill, and Run."""
    clip, truth = clips
    (lasso,) = json.loads(examples.inputs(examples.prompt("paint_and_propagate"), "FramePainterCoarseSignal")["pieces"])["pieces"]
    corners = list(zip(lasso["outline"][::2], lasso["outline"][1::2], strict=True))
    with canvas_page(browser, lab.server.url) as page:
        page.load_template("/api/workflow_templates/ComfyUI-FramePainter/paint_and_propagate.json")
        rig = Editors(page)
        rig.set_text("coarse", "")
        rig.wait_status("coarse", "96 × 96")  # the video's frame, before any run
        rig.screenshot("paint_and_propagate_nothing_drawn")
        rig.open("coarse")
        rig.drag(*corners, corners[0], steps=1)
        rig.press("x", "g")
        state = rig.state("coarse")
        assert state["background"] == "fill" and [p["delete"] for p in state["pieces"]] == [True]
        rig.screenshot("paint_and_propagate")
        frames = page.run("Edited frames", 180, lambda: rig.click("run"))
        rig.dialog.wait_for(state="detached")
        edited = torch.stack([pixels(lab.server.fetch(image)) for image in frames]).float()
        page.fit()
        rig.screenshot("paint_and_propagate_run")
    check_frames(edited, edited[0], clip, truth)
