"""What can go wrong for a user, on a real server: a readable message each time, and the server as good as before."""

from __future__ import annotations

import re
import shutil
import time

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.examples import INSIDE, only_edited, pixels, prompt, small
from safetensors.torch import save_file
from torch import Tensor

FAILED_IN_TIME_S = 180.0  # other programs may keep the machine busy


@pytest.fixture(autouse=True)
def still_right(lab, good):
    """After every test the server is up, and the good prompt gives the right picture."""
    yield
    request, reference = good
    assert lab.server.alive()
    assert torch.equal(lab.edited(request), reference)


def failure(lab, request: examples.Prompt, node: str) -> str:
    """Run a prompt that must fail in a node of the given type; the message."""
    with pytest.raises(lab.tools.RunFailed) as caught:
        lab.server.run(request, FAILED_IN_TIME_S)
    assert caught.value.node_type == node
    message = caught.value.message
    assert len(message) > 40 and "Traceback" not in message, message
    return message


def example(**changes) -> examples.Prompt:
    return only_edited(small(prompt(), **changes))


def plain(height: int, width: int, value: int = 255) -> Tensor:
    return torch.full((height, width, 3), value, dtype=torch.uint8)


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["SD15", "SDXL"])
@pytest.mark.parametrize("node", ["FramePainterApplyEditSignal", "FramePainterGuidance"])
def test_a_model_of_another_family(lab, family: str, node: str):
    request = example()
    request["90"] = {"class_type": "FramePainterTestImageModel", "inputs": {"family": family}, "_meta": {"title": "Other"}}
    examples.inputs(request, node)["model"] = ["90", 0]
    message = failure(lab, request, node)
    assert "Stable Video Diffusion networks only" in message and "Load FramePainter" in message


def test_encoder_and_unet_of_different_widths(lab, pack):
    encoder = pack("core.models.control_encoder")
    widths = encoder.EncoderWidths(3, 128, 256, (64, 64, 128), (128, 256), 320)
    save_file(encoder.ControlEncoder(widths).state_dict(), str(lab.model_path("wide_encoder.safetensors")))
    message = failure(lab, example(FramePainterLoad={"encoder_file": "wide_encoder.safetensors"}), "FramePainterLoad")
    assert "wide_encoder.safetensors" in message and "320" in message and "64" in message and "Yabo/FramePainter" in message


# ---- pictures and sketches -------------------------------------------------------------------------------------------


def test_an_empty_sketch_runs_and_warns(lab, tmp_path):
    blank = lab.upload(tmp_path, "blank.png", plain(400, 600))
    before = lab.server.log_text().count("the drawing is empty")
    lab.edited(example(Sketch={"image": blank}, KSampler={"seed": 5}))
    assert lab.server.log_text().count("the drawing is empty") == before + 1


def test_a_sketch_of_another_aspect_ratio_names_both_sizes(lab, tmp_path):
    upright = lab.upload(tmp_path, "upright.png", pixels(examples.INPUTS[examples.SKETCH]).transpose(0, 1))
    strict = {"size_mismatch": "error"}
    message = failure(lab, example(Sketch={"image": upright}, FramePainterSketchSignal=strict), "FramePainterSketchSignal")
    assert "400 x 600" in message and "600 x 400" in message and "stretch" in message
    stretched = lab.edited(example(Sketch={"image": upright}, FramePainterSketchSignal={"size_mismatch": "stretch"}))
    assert stretched.shape == (400, 600, 3)


@pytest.mark.parametrize("side", [1, 4096])
def test_the_smallest_and_a_very_large_picture(lab, tmp_path, side: int):
    ramp = torch.linspace(0, 255, side).to(torch.uint8)[None, :, None].expand(side, side, 3)
    picture = lab.upload(tmp_path, f"picture_{side}.png", ramp)
    strokes = plain(256, 256)
    strokes[100:110, 50:200] = 0
    sketch = lab.upload(tmp_path, f"sketch_{side}.png", strokes)
    assert lab.edited(example(Picture={"image": picture}, Sketch={"image": sketch})).shape == (side, side, 3)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_an_exact_width_that_is_no_multiple_of_8(lab):
    message = failure(lab, example(FramePainterConditioning={"size_mode": "exact", "width": 100}),
                      "FramePainterConditioning")
    assert "width is 100" in message and "multiple of 8" in message


def test_exact_sides_that_are_multiples_of_8_but_not_of_64(lab):
    size = {"size_mode": "exact", "width": 120, "height": 72}
    assert lab.edited(example(FramePainterConditioning=size)).shape == (400, 600, 3)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [("width", 100_000), ("augmentation", float("nan"))])
def test_a_number_out_of_its_bounds(lab, name, value):
    """Most are refused when the prompt comes; NaN passes the host's comparison, so there the node says it."""
    with pytest.raises((lab.tools.PromptRefused, lab.tools.RunFailed)) as caught:
        lab.server.run(example(FramePainterConditioning={name: value}), FAILED_IN_TIME_S)
    assert "FramePainterConditioning" in str(caught.value) and name in str(caught.value)
    assert not isinstance(caught.value, lab.tools.RunFailed) or "give a number from 0.0 to 10.0" in caught.value.message


# ---- weight files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["model_file", "encoder_file", "clip_and_vae"])
def test_a_file_name_that_is_not_in_the_list(lab, field: str):
    """Newer hosts refuse the prompt; 0.3.75 does not look at such lists, so there the node itself must say it."""
    request = example(FramePainterLoad={field: "not_there.safetensors"})
    with pytest.raises((lab.tools.PromptRefused, lab.tools.RunFailed)) as caught:
        lab.server.run(request, FAILED_IN_TIME_S)
    assert "FramePainterLoad" in str(caught.value) and "not_there.safetensors" in str(caught.value)
    if isinstance(caught.value, lab.tools.RunFailed):
        assert "models" in caught.value.message  # the folders searched


@pytest.fixture
def spare(lab):
    """Name -> path of an extra file in models/framepainter that goes away after the test."""
    made = []

    def path(name: str):
        made.append(lab.model_path(name))
        return made[-1]

    yield path
    for file in made:
        file.unlink(missing_ok=True)


def test_a_download_that_broke_off(lab, spare):
    whole = lab.model_path(examples.MODEL).read_bytes()
    spare("truncated.safetensors").write_bytes(whole[:len(whole) // 2])
    message = failure(lab, example(FramePainterLoad={"model_file": "truncated.safetensors"}), "FramePainterLoad")
    assert "truncated.safetensors" in message
    digits = message.replace(",", "").replace("_", "")
    assert str(len(whole)) in digits and str(len(whole) // 2) in digits


def test_a_text_file_by_the_name_of_weights(lab, spare):
    spare("text.safetensors").write_text("<!doctype html><html>Access to this file is restricted.</html>\n" * 40)
    for field in ("model_file", "encoder_file", "clip_and_vae"):
        loader = {"model_file": examples.MODEL, "encoder_file": INSIDE, "clip_and_vae": INSIDE}
        message = failure(lab, example(FramePainterLoad={**loader, field: "text.safetensors"}), "FramePainterLoad")
        assert "text.safetensors" in message


def test_an_empty_file_by_the_name_of_weights(lab, spare):
    spare("empty.safetensors").touch()
    message = failure(lab, example(FramePainterLoad={"model_file": "empty.safetensors"}), "FramePainterLoad")
    assert "empty.safetensors" in message


def test_a_file_deleted_between_queueing_and_running(lab, spare):
    path = spare("gone.safetensors")
    shutil.copy(lab.model_path(examples.MODEL), path)
    long = lab.server.queue(example(KSampler={"steps": 2000, "seed": 7}))
    wait_for_steps(lab, 2000)
    late = lab.server.queue(example(FramePainterLoad={"model_file": "gone.safetensors"}))
    path.unlink()
    lab.server.interrupt()
    with pytest.raises(lab.tools.RunInterrupted):
        lab.server.wait(long, FAILED_IN_TIME_S)
    with pytest.raises(lab.tools.RunFailed) as caught:
        lab.server.wait(late, FAILED_IN_TIME_S)
    assert caught.value.node_type == "FramePainterLoad"
    assert "gone.safetensors" in caught.value.message and str(path.parent) in caught.value.message


# ---- stopping --------------------------------------------------------------------------------------------------------


def wait_for_steps(lab, steps: int) -> None:
    """Wait until a sampler of that many steps is past its second one."""
    seen = len(lab.server.log_text())
    deadline = time.monotonic() + FAILED_IN_TIME_S
    while not re.search(rf" ([2-9]|\d\d+)/{steps} \[", lab.server.log_text()[seen:]):
        assert time.monotonic() < deadline, "the sampler did not start"
        time.sleep(0.1)


def test_a_cancelled_run(lab):
    running = lab.server.queue(example(KSampler={"steps": 2000, "seed": 9}))  # too many to come to the end meanwhile
    wait_for_steps(lab, 2000)
    lab.server.interrupt()
    with pytest.raises(lab.tools.RunInterrupted) as caught:
        lab.server.wait(running, FAILED_IN_TIME_S)
    assert caught.value.node_type == "KSampler"
