"""Plan Clips and Propagate Edit on a network of random weights: stages kept, jobs resumed, bad input named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from framepainter_tests import tiny
from framepainter_tests.live_memory import LiveMemory

SETTINGS = {"width": 48, "height": 32, "lora": "one for all clips", "lora_steps": 3, "matching": "local edit", "steps": 3,
            "guidance": 1.5, "carry": "latent", "colour_match": 0.0, "anchor": 0.0, "seed": 0, "rank": 4, "learning_rate": 1e-3,
            "precision": "fp32", "skip_interval": True}


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture(scope="module")
def frames():
    """Eight frames of a bright bar that moves, 33 x 47 pixels."""
    out = torch.full((8, 33, 47, 3), 0.2)
    for i in range(8):
        out[i, 8:24, 2 + 4 * i:12 + 4 * i] = torch.tensor([0.9, 0.5, 0.1])
    return out


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def nodes(pack):
    return pack("nodes.video")


@pytest.fixture
def plan(nodes, frames):
    return nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 1, "equal", 0.0, -1.0).result[0]


@pytest.fixture
def job(nodes, loaded, frames, plan, output):
    def run(**changes):
        with torch.inference_mode():
            given = {"model": loaded.model, "clip_vision": loaded.clip_vision, "vae": loaded.vae, "frames": frames,
                     "edited": 1 - frames[:1], "plan": plan, **SETTINGS}
            return nodes.PropagateEdit.execute(**{**given, **changes}).result

    return run


def files(output) -> dict[str, int]:
    kinds = [p.name.split("-")[0] for p in (output / "framepainter_video").glob("*.safetensors")]
    return {kind: kinds.count(kind) for kind in kinds}


def test_plan_says_what_it_does(nodes, frames):
    plan, first, fps, text, _ = nodes.PlanClips.execute(frames, 8.0, 4.0, 3, 1, "short", 0.25, -1.0).result
    assert plan.frames == (2, 4, 6) and plan.clips == ((0, 3),) and fps == 4.0
    assert torch.equal(first, frames[2:3]) and "3 frames at 4 a second" in text
    with pytest.raises(ValueError, match="Plan Clips: clips of 4 frames cannot overlap by 4"):
        nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 4, "equal", 0.0, -1.0)


def test_a_plan_keeps_time_and_every_frame(nodes):
    """At rates that no float holds exactly: all frames are kept, and what is left out does not change the length."""
    for fps in (24000 / 1001, 23.976, 29.97, 30000 / 1001, 7.5):
        for count in (2, 29, 55, 100, 1001):
            frames = torch.zeros(count, 2, 2, 3)
            plan = nodes.PlanClips.execute(frames, fps, -1.0, 14, 1, "equal", 0.0, -1.0).result[0]
            assert plan.frames == tuple(range(count)) and plan.fps == pytest.approx(fps)
            if count > 2:
                fewer = nodes.PlanClips.execute(frames, fps, 7.0, 14, 1, "equal", 0.0, -1.0).result[0]
                assert len(fewer.frames) / fewer.fps == pytest.approx(count / fps)
                late = nodes.PlanClips.execute(frames, fps, -1.0, 14, 1, "equal", 0.5, -1.0).result[0]
                assert late.frames == tuple(range(late.frames[0], count)) and late.fps == pytest.approx(fps)


def test_a_plan_cuts_the_sound(nodes, frames):
    """A ramp as sound tells the place: sample n is n."""
    audio = {"waveform": torch.arange(8000.0).expand(1, 2, -1), "sample_rate": 8000}
    for start, sampled, first, last in ((0.0, -1.0, 0, 8000), (0.25, -1.0, 2000, 8000), (0.25, 4.0, 2000, 8000)):
        *_, heard = nodes.PlanClips.execute(frames, 8.0, sampled, 4, 1, "equal", start, -1.0, audio).result
        assert heard["sample_rate"] == 8000 and heard["waveform"].shape == (1, 2, last - first)
        assert heard["waveform"][0, 0, 0] == first
    assert nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 1, "equal", 0.0, -1.0).result[-1] is None


def test_a_plan_needs_two_frames_and_warns_of_odd_sizes(nodes, frames):
    with pytest.raises(ValueError, match="Plan Clips: one frame is used.*'frames' has 8 at 8 a second"):
        nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 1, "equal", 0.0, 0.2)
    assert "47 x 33 pixels: Save Video cannot write odd sizes" in nodes.PlanClips.execute(
        frames, 8.0, -1.0, 4, 1, "equal", 0.0, -1.0).result[3]
    assert "odd" not in nodes.PlanClips.execute(frames[:, :32, :46], 8.0, -1.0, 4, 1, "equal", 0.0, -1.0).result[3]


def test_a_video_made_by_nodes_is_read(nodes, frames):
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types

    audio = {"waveform": torch.arange(8000.0).expand(1, 1, -1), "sample_rate": 8000}
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=audio, frame_rate=Fraction(8)))
    taken, fps, heard, text = nodes.ReadVideo.execute(video, 4.0, 0.25, -1.0, True).result
    assert torch.equal(taken, frames[[2, 4, 6], :32, :46]) and fps == 4.0 and "47 x 33 pixels became 46 x 32" in text
    assert heard["waveform"].shape == (1, 1, 6000) and heard["waveform"][0, 0, 0] == 2000
    whole = nodes.ReadVideo.execute(video, -1.0, 0.0, -1.0, False).result
    assert torch.equal(whole[0], frames) and whole[1] == 8.0
    for settings, message in (((9.0, 0.0, -1.0), "at most 8 .* fps is 9"), ((0.0, 0.0, -1.0), "at most 8 .* fps is 0"),
                              ((-1.0, 2.0, -1.0), "no frame between 2 s and 1 s; it is 1.000 s long")):
        with pytest.raises(ValueError, match=f"Read Video: 'the video' has {message}"):
            nodes.ReadVideo.execute(video, *settings, True)


def test_times_of_a_file(pack):
    """Even times however rounded, and truly uneven ones."""
    reading = pack("core.video.reading")
    for fps in (24000 / 1001, 29.97, 12.0):
        times = [round(i / fps, 3) for i in range(500)]
        assert reading.timing(times, fps) == reading.Timing(fps, fps, True)
        assert reading.timing(times).fps == pytest.approx(fps, rel=1e-3) and reading.timing(times).even
        assert reading.frames_at(times, reading.timing(times, fps), -1.0, 0.0, -1.0)[0] == list(range(500))
    times = [0.0, 0.1, 0.2, 0.8, 0.9]  # shown until 0.1, 0.2, 0.8, 0.9, 1.125
    found = reading.timing(times, 5.0)
    assert not found.even and found.fps == pytest.approx(4 / 0.9) and found.fastest == pytest.approx(10)
    numbers, rate = reading.frames_at(times, found, 10.0, 0.0, -1.0)
    assert rate == 10.0 and numbers == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4]


def test_a_video_of_its_own_size_comes_back(job, frames, plan, output, loaded):
    before = {n: p.detach().clone() for n, p in loaded.model.model.diffusion_model.named_parameters()}
    edited, drift, report = job()
    assert edited.shape == frames.shape and torch.isfinite(edited).all() and edited.std() > 0.01
    assert drift.shape == (1, 360, 640, 3) and drift.std() > 0.05
    clips = len(plan.clips)
    assert clips == 3 and files(output) == {"lora": 1, "inversion": clips, "edit": clips}
    assert report.count("inverted, 3 steps") == clips and report.count("| 3 |") == 1
    after = dict(loaded.model.model.diffusion_model.named_parameters())
    assert not loaded.model.patches and all(torch.equal(before[n], after[n]) for n in before)
    # All of it again comes from the disk, bit for bit.
    again, _, report = job()
    assert torch.equal(again, edited) and "trained" not in report and report.count("taken from the disk") >= clips


def test_clips_meet(job, nodes, frames, plan, output):
    """A later clip's edit depends on the one before: another first frame changes every clip."""
    edited = job()[0]
    other = job(edited=frames[:1] * 0.5)[0]
    assert (edited - other).abs().flatten(1).amax(1).min() > 1e-3
    # LoRA and inversion are shared by the two edits.
    assert files(output) == {"lora": 1, "inversion": 3, "edit": 6}


def test_a_cancelled_job_goes_on(job, output, monkeypatch):
    import comfy.model_management as mm

    whole = job()[0]
    (output / "framepainter_video").rename(output / "kept")

    def interrupt(after: int):
        def check():
            if files(output).get("edit", 0) >= after:
                raise mm.InterruptProcessingException
        return check

    for after in (1, 2):
        with monkeypatch.context() as patched, pytest.raises(mm.InterruptProcessingException):
            patched.setattr(mm, "throw_exception_if_processing_interrupted", interrupt(after))
            job()
        assert files(output)["edit"] == after
    assert torch.equal(job()[0], whole)


@pytest.mark.parametrize("evaluation", [1, 4, 9, 20])
def test_cancelled_inside_a_sampler(job, output, monkeypatch, evaluation):
    """In an evaluation of an inversion's or an edit's network: the host raises where it looks next."""
    import comfy.model_base
    import comfy.model_management as mm

    whole = job(lora="none")[0]
    (output / "framepainter_video").rename(output / "kept")
    seen, apply = [], comfy.model_base.BaseModel._apply_model

    def counted(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == evaluation:
            mm.interrupt_current_processing()
        return apply(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(mm.InterruptProcessingException):
        patched.setattr(comfy.model_base.BaseModel, "_apply_model", counted)
        job(lora="none")
    assert len(seen) <= evaluation + 2, "goes on after a cancel"
    assert not mm.processing_interrupted()
    assert torch.equal(job(lora="none")[0], whole)
    left = [p.name for p in (output / "framepainter_video").rglob("*") if not p.name.endswith(".safetensors")]
    assert left == [], "nothing half done is left behind"


def test_a_clock_that_jumps(job, output, monkeypatch):
    import itertools
    import time

    whole = job()[0]
    (output / "framepainter_video").rename(output / "kept")
    jumps = itertools.cycle([0.0, 4e9, -1e6, 1.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    assert torch.equal(job()[0], whole)
    assert job()[2].count("taken from the disk") >= 3


def test_a_damaged_stage_is_made_again(job, output):
    whole = job()[0]
    for path in (output / "framepainter_video").glob("*.safetensors"):
        if path.name.startswith(("edit", "inversion")):
            path.write_bytes(path.read_bytes()[:200])
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    half, other = (output / "framepainter_video" / f".edit-x.safetensors.{n}.partial" for n in (killed.pid, os.getppid()))
    for path in (half, other):
        path.write_bytes(b"half")
    again, _, report = job()
    assert torch.equal(again, whole)
    assert not half.exists() and other.exists(), "a living process' partial file is its own"


def test_four_hundred_zeroed_bytes_in_any_stage(job, output):
    whole = job()[0]
    paths = list((output / "framepainter_video").glob("*.safetensors"))
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[:-600] + bytes(400) + data[-200:])
    again, _, report = job()
    assert torch.equal(again, whole) and all(f"{path.name}' is damaged" in report for path in paths)
    again, _, report = job()
    assert torch.equal(again, whole) and "damaged" not in report and "edited" not in report


def test_empty_files_do_not_block_a_job(job, output):
    whole = job()[0]
    folder = output / "framepainter_video"
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")
    for path in folder.glob("training-*/state-*/*"):
        path.write_bytes(b"")
    for path in folder.glob("training-*/stats.jsonl"):
        path.write_text("{torn")
    again, _, report = job()
    assert torch.equal(again, whole) and "The motion LoRA is trained from the beginning" in report


def patched(model, how: str):
    """A model that computes something else, with the same sampled values of the same weights."""
    clone = model.clone()
    if how == "core's node":
        from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

        return ModelSamplingContinuousEDM().patch(model, "eps", 700.0, 0.002)[0]
    if how == "weight patch":
        name = "diffusion_model.out.2.bias"
        clone.add_patches({name: (torch.full((4,), 0.5),)}, 1.0)
    if how == "other node's wrapper":
        clone.set_model_unet_function_wrapper(lambda apply, args: 0.9 * apply(args["input"], args["timestep"], **args["c"]))
    if how == "other node's object":
        layer = model.get_model_object("diffusion_model.out.2")
        clone.add_object_patch("diffusion_model.out.2.forward", lambda x: 0.5 * type(layer).forward(layer, x))
    return clone


@pytest.mark.parametrize("how", ["core's node", "weight patch", "other node's wrapper", "other node's object"])
def test_a_model_patched_otherwise_is_another_model(job, loaded, output, how):
    """Its job neither takes the first model's stages nor leaves it its own; what cannot be identified is said."""
    settings = {"lora": "none", "skip_interval": False}
    plain = job(**settings)[0]
    kept = files(output)
    other, _, report = job(model=patched(loaded.model, how), **settings)
    assert (other - plain).abs().max() > 1e-4 and "from the disk\n" not in report
    known = how in ("core's node", "weight patch")
    assert files(output) == ({n: 2 * count for n, count in kept.items()} if known else kept)
    assert ("cannot be identified (" in report) != known
    assert torch.equal(job(model=patched(loaded.model, how), **settings)[0], other)
    again, _, report = job(**settings)
    assert torch.equal(again, plain) and "edited" not in report


def test_a_value_that_is_not_sampled_counts(job, loaded, output):
    plain = job(lora="none")[0]
    weight = loaded.model.model.diffusion_model.out[2].weight
    with torch.inference_mode():
        before = weight.data.view(-1)[1].clone()
        assert weight.numel() // 64 > 1, "every value is sampled"
        weight.data.view(-1)[1] += 1.0
        try:
            other = job(lora="none")[0]
        finally:
            weight.data.view(-1)[1] = before
    assert (other - plain).abs().max() > 1e-4 and torch.equal(job(lora="none")[0], plain)


def test_a_lora_is_kept_where_only_sampling_is_unknown(job, loaded, output):
    """Training sees the weights alone."""
    report = job(model=patched(loaded.model, "other node's wrapper"))[2]
    assert files(output) == {"lora": 1} and "motion LoRAs are" in report and report.count("trained") == 1
    assert "clip 1: motion LoRA taken from the disk" in job()[2]


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_nan_of_the_vae_ends_the_job_and_is_not_kept(job, loaded, output, monkeypatch, way):
    """Case nan_kept: no black video, and a sound run finds nothing of it on the disk."""
    settings = {"lora": "none"}
    right = job(**settings)[0]
    (output / "framepainter_video").rename(output / "right")
    whole = getattr(loaded.vae, way)

    def broken(x):
        out = whole(x).clone()
        out[-1, 1, 2, 0] = float("nan")
        return out

    made = {"encode": "encoded latents", "decode": "decoded pictures"}[way]
    said = f"Propagate Edit: .* cannot be used: inf or NaN in its {made}. A VAE may overflow"
    with monkeypatch.context() as sick, pytest.raises(ValueError, match=said):
        sick.setattr(loaded.vae, way, broken)
        job(**settings)
    assert files(output).get("edit", 0) == 0
    assert torch.equal(job(**settings)[0], right)


def test_nan_in_the_pictures_is_named(pack, loaded, frames, plan, tmp_path):
    """Below the node, which takes them for black and says so."""
    bad = frames.clone()
    bad[5, 3, 4, 1] = float("nan")
    propagate = pack("host.video.propagate")
    models, settings = propagate.Models(loaded.model, loaded.clip_vision, loaded.vae), propagate.Settings(32, 48, fps=8.0)
    with pytest.raises(ValueError, match="'frames' cannot be used: inf or NaN in its pixels"):
        propagate.Job(models, bad, frames[:1], plan, settings, tmp_path)
    with pytest.raises(ValueError, match="'edited' cannot be used: inf or NaN in its pixels"):
        propagate.Job(models, frames, bad[5:6], plan, settings, tmp_path)


@pytest.mark.parametrize("changes", [{"lora": "one a clip"}, {"lora": "as published"}, {"lora": "none"}, {"matching": "off"},
                                     {"carry": "pixels"}, {"colour_match": 1.0}, {"anchor": 1.0}, {"skip_interval": False}],
                         ids=lambda c: "_".join(map(str, next(iter(c.items())))))
def test_every_choice_changes_the_result(job, changes, output):
    plain, changed = job()[0], job(**changes)[0]
    assert (plain - changed).abs().max() > 1e-4
    if changes == {"lora": "one a clip"}:
        assert files(output)["lora"] == 3
        assert torch.equal(plain[:3], changed[:3])  # the first clip is the same in both
    if changes == {"lora": "as published"}:
        each = job(lora="one a clip")  # whose LoRAs, inversions and first edit are the same
        assert files(output) == {"lora": 3, "inversion": 3, "edit": 7} and (each[0] - changed).abs().max() > 1e-4
        assert torch.equal(each[0][:3], changed[:3]) and each[2].count("trained") == 0
    if changes == {"skip_interval": False}:
        assert torch.equal(plain[:3], changed[:3])


def test_bad_input_is_named(job, frames, plan, nodes):
    for changes, text in (({"edited": frames[:1, :, :20]}, "'edited' is 20 x 33, the video 47 x 33"),
                          ({"frames": frames[:5]}, "the plan uses frame 7, 'frames' has 5"),
                          ({"width": 44}, "44 x 32 pixels do not fit this network"),
                          ({"carry": "hand"}, "carry is 'hand'; choose one of latent, pixels")):
        with pytest.raises(ValueError, match=f"Propagate Edit: {text}"):
            job(**changes)


def test_a_folder_that_cannot_be_written(job, output, pack, monkeypatch):
    store = pack("core.video.store")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="could not be written: No space left.*stages are kept"):
        patched.setattr(store, "save_file", full)
        job()
    assert torch.isfinite(job()[0]).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times(tmp_path):
    """The process is killed at random moments of the job, again and again; every video is the uninterrupted one's."""
    script = Path(__file__).resolve().parents[1] / "support" / "killed_job.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "20"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["moments"]) == 20 and found["equal"] and all(found["equal"])
    assert len({tuple(m) for m in found["moments"]}) >= 4, "always killed in the same stage"
    assert found["together"] == {"different": 0, "trained": 3, "inverted": 3, "edited": 3}, "two jobs on one folder"


def test_a_saved_video_has_workflow_and_sound_and_overwrites_nothing(nodes, frames, output):
    from fractions import Fraction

    import av
    from comfy_api.latest import InputImpl, Types

    class Hidden:
        prompt, extra_pnginfo = {"1": {"class_type": "x"}}, {"workflow": {"nodes": []}}

    nodes.SaveVideo.hidden = Hidden()
    audio = {"waveform": torch.sin(torch.arange(8000.0)).expand(1, 1, -1), "sample_rate": 8000}
    bad = frames.clone()
    bad[0, 0, 0] = float("nan")
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=bad, audio=audio, frame_rate=Fraction(8)))
    for number in (1, 2):
        shown = nodes.SaveVideo.execute(video, "clips/a.b").ui.as_dict()["images"][0]
        assert shown == {"filename": f"a.b_{number:05}_.mp4", "subfolder": "clips", "type": "output"}
    path = output / "clips" / "a.b_00002_.mp4"
    with av.open(str(path)) as file:
        assert json.loads(file.metadata["prompt"]) == Hidden.prompt and json.loads(file.metadata["workflow"]) == {"nodes": []}
        assert len(file.streams.audio) == 1
    # What comes straight from a file is copied.
    shown = nodes.SaveVideo.execute(InputImpl.VideoFromFile(str(path)), "copy").ui.as_dict()["images"][0]
    with av.open(str(path)) as one, av.open(str(output / shown["filename"])) as other:
        same = [[bytes(p) for p in file.demux(video=0)] for file in (one, other)]
        assert same[0] == same[1] and "prompt" in other.metadata


# ---- where the edit is -----------------------------------------------------------------------------------------------


def test_pixels_that_the_edit_does_not_change_keep_their_bits(job, frames):
    """With a mask outside it; without one where the edit looks like the video. The network's stages are the same."""
    plain = job(lora="none")[0]
    mask = torch.zeros(8, 16, 24)
    mask[:, 4:12, 2:8] = 1
    kept, _, report = job(lora="none", change_mask=mask, keep_untouched=True)
    assert report.count("taken from the disk") == 6
    assert torch.equal(kept[:, :, 35:], frames[:, :, 35:]) and torch.equal(kept[:, 10:22, 6:14], plain[:, 10:22, 6:14])
    still = job(lora="none", change_mask=mask[:1], keep_untouched=True)[0]
    assert torch.equal(still, kept)
    # The video itself as its edit, but for a block: only there a random network's result cannot be told from an edit.
    found = job(lora="none", keep_untouched=True)[0]
    same = (found == frames).all(-1)
    assert (found - frames).abs().amax(-1)[~same].max() > 0.12 and torch.equal(found[same], frames[same])
    assert ((plain - frames).abs().amax(-1)[same] < 0.3).all()


def test_a_job_takes_little_more_than_its_result(job, loaded, nodes):
    """A larger video from the disk: no second copy of its frames, at its own or the working size."""
    frames = torch.rand(12, 330, 470, 3)
    plan = nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 1, "equal", 0.0, -1.0).result[0]
    given = {"frames": frames, "edited": frames[:1], "plan": plan, "lora": "none", "steps": 1, "skip_interval": False}
    job(**given)
    with LiveMemory() as memory:
        result = job(**given)[0]
    assert memory.peak < frames.nbytes + 1.3 * result.nbytes


def test_a_mask_of_what_the_lora_should_not_learn(job, output):
    """It is another LoRA, kept under another key; the inversion is the same."""
    plain = job(lora_steps=2)[0]
    mask = torch.zeros(1, 33, 47)
    mask[:, :8, :8] = 1
    masked, _, report = job(lora_steps=2, change_mask=mask, lora_outside_mask=True)
    assert files(output)["lora"] == 2 and report.count("inversion taken from the disk") == 3
    assert (masked - plain).abs().max() > 1e-5
    again, _, report = job(lora_steps=2, change_mask=mask, lora_outside_mask=True)
    assert torch.equal(again, masked) and "trained" not in report


@pytest.mark.parametrize(("changes", "message"), [
    ({"change_mask": torch.ones(3, 8, 8), "keep_untouched": True}, "'change_mask' has 3 masks, 'frames' has 8 frames"),
    ({"lora_outside_mask": True}, "lora_outside_mask is on, but nothing tells what lies outside. Connect 'change_mask'"),
    ({"change_mask": torch.ones(1, 8, 8), "lora_outside_mask": True}, "covers all frames wholly")])
def test_masks_that_do_not_fit_are_named(job, changes, message):
    with pytest.raises(ValueError, match=f"Propagate Edit: .*{message}"):
        job(**changes)
