"""From a video to an edited video on a real server, measured against the true recoloured clip."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.examples import pixels, small
from safetensors import safe_open
from safetensors.torch import save_file

CLIP = "framepainter_clip.mp4"


@pytest.fixture(scope="module")
def prompt(server) -> examples.Prompt:
    for name in ("clip.mp4", "clip_edited.png"):
        shutil.copy(examples.WORKFLOWS / "inputs" / name, server.base / "input" / f"framepainter_{name}")
    return json.loads((examples.WORKFLOWS / "api" / "i2vedit_small.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def frames():
    """The clip, and the truth: (4, 96, 96, 3) of 255."""
    import av

    with av.open(str(examples.WORKFLOWS / "inputs" / "clip.mp4")) as file:
        clip = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float()
    truth = pixels(examples.WORKFLOWS / "inputs" / "clip_truth.png").float()
    return clip, torch.stack(truth.split(96, 1))


@pytest.fixture(scope="module")
def svd(lab):
    """The name of a file of Stable Video Diffusion's layout: the small base model without what is FramePainter's."""
    path = lab.model_path("svd_layout.safetensors")
    with safe_open(str(examples.ROOT / "models" / "framepainter_small_base.safetensors"), "pt") as file:
        plain = {n: file.get_tensor(n) for n in file.keys() if not n.startswith("framepainter.")}
        save_file(plain, str(path), metadata={"framepainter.head_width": file.metadata()["framepainter.head_width"]})
    yield path.name
    path.unlink()


@pytest.mark.parametrize("name", ["i2vedit_small", "i2vedit_long"])
def test_a_stable_video_diffusion_checkpoint_runs_in_the_other_templates(lab, svd, name):
    request = small(examples.prompt(name))
    for node in request.values():
        if node["inputs"].get("model_file", "").endswith("_base.safetensors"):
            node["inputs"]["model_file"] = svd
    assert svd in str(request)
    (frames,) = [found for title, found in lab.run(request).items() if title == "Edited frames"]
    assert len(frames) > 3 and all(frame.float().std() > 5 for frame in frames)


@pytest.mark.parametrize("name", ["i2vedit_motion_lora", "paint_and_propagate"])
def test_a_stable_video_diffusion_checkpoint_runs_where_the_page_says_so(lab, prompt, svd, name):
    """The loader takes it as it is. The pictures are those of the base model, whose untrained matching changes nothing, but for the
    rounding of sums that are left out where an edit's patches are on the model."""
    request = small(examples.prompt(name))
    base = {"model_file": "framepainter_small_base.safetensors"}
    (loader,) = [n["inputs"] for n in request.values() if base.items() <= n["inputs"].items()]
    wanted = lab.run(request)
    loader["model_file"] = svd
    found = lab.run(request)
    assert found.keys() == wanted.keys()
    for title in found.keys() - {"Drift", "Loss curve"}:
        for one, other in zip(found[title], wanted[title], strict=True):
            assert (one.int() - other.int()).abs().float().mean() < 0.05, title  # of 255


def test_the_edited_colour_is_carried_through_the_clip(lab, prompt, frames):
    clip, truth = frames
    results = lab.run(prompt)
    edited = torch.stack(results["Edited frames"]).float()
    assert edited.shape == clip.shape == (4, 96, 96, 3)
    changed = (truth - clip).abs().amax(-1) > 25
    changed[0] = False  # the first frame was given
    same = ~changed & ((truth - clip).abs().amax(-1) < 3)

    def error(found, area):
        return float((found - truth).pow(2).mean(-1)[area].mean()) / 255**2

    still = truth[:1].expand_as(truth)  # the edited picture, not moving
    assert error(edited, changed) < 0.12 * error(clip, changed)
    assert error(edited, changed) < 0.5 * error(still, changed)
    assert error(edited, same) < 0.008
    difference = torch.stack(results["What changed"]).float()
    assert difference.shape == clip.shape and difference.std() > 10
    video = max((lab.server.base / "output" / "i2vedit_small").glob("edited_*.mp4"))  # the last: other tests run the example too
    import av

    with av.open(str(video)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 4 and file.streams.video[0].average_rate == 7
    assert not list((lab.server.base / "output").glob("trajectories*"))


def test_without_matching_it_is_worse(lab, prompt, frames):
    _, truth = frames
    drop = ("Difference Mask", "What changed", "Edited video", "Create Video", "Normality")
    short = {k: n for k, n in copy.deepcopy(prompt).items() if n["_meta"]["title"] not in drop}
    errors = []
    for matched in (True, False):
        examples.inputs(short, "FramePainterMatchAttention").update(spatial=matched, temporal=matched)
        examples.inputs(short, "SamplerCustom")["noise_seed"] = 1 + matched  # not used; only so that it runs again
        edited = torch.stack(lab.run(short)["Edited frames"]).float()
        errors.append(float((edited - truth).pow(2).mean()))
    assert errors[0] < 0.9 * errors[1], errors


def test_a_sampler_with_other_steps_is_told_so(lab, prompt):
    wrong = copy.deepcopy(prompt)
    wrong["steps"] = {"class_type": "KarrasScheduler", "_meta": {"title": "Other steps"},
                      "inputs": {"steps": 9, "sigma_max": 700.0, "sigma_min": 0.002, "rho": 7.0}}
    examples.inputs(wrong, "SamplerCustom")["sigmas"] = ["steps", 0]
    with pytest.raises(lab.tools.RunFailed, match="made with 25 steps from sigma 700 to 0, the sampler runs 9 steps"):
        lab.run(wrong)
