"""Videos as they are found, through the whole chain on a real server: the right result, or a message that says what to do."""

from __future__ import annotations

import copy
import itertools
import shutil

import av
import numpy as np
import pytest
from framepainter_tests import examples, wild_videos

READ = {"class_type": "FramePainterReadVideo", "inputs": {"video": ["1", 0], "fps": -1.0, "start": 0.0, "end": -1.0,
                                                          "even_size": True}}
PROMPT = {
    "1": {"class_type": "LoadVideo", "inputs": {}},
    "2": READ,
    "3": {"class_type": "FramePainterPlanClips", "inputs": {
        "frames": ["2", 0], "fps": ["2", 1], "audio": ["2", 2], "sampled_fps": -1.0, "length": 5, "overlap": 1,
        "remainder": "equal", "start": 0.0, "end": -1.0}},
    "4": {"class_type": "FramePainterLoad", "inputs": {**examples.RANDOM, "weight_dtype": "fp32"}},
    "5": {"class_type": "ImageInvert", "inputs": {"image": ["3", 1]}},
    "6": {"class_type": "FramePainterPropagateEdit", "inputs": {
        "model": ["4", 0], "clip_vision": ["4", 2], "vae": ["4", 3], "frames": ["2", 0], "edited": ["5", 0], "plan": ["3", 0],
        "width": 64, "height": 64, "lora": "none", "lora_steps": 1, "matching": "off", "steps": 1, "guidance": 1.0,
        "carry": "latent", "colour_match": 0.0, "anchor": 0.0, "seed": 0, "skip_interval": False}},
    "7": {"class_type": "CreateVideo", "inputs": {"images": ["6", 0], "fps": ["3", 2], "audio": ["3", 4]}},
    "8": {"class_type": "FramePainterSaveVideo", "inputs": {"video": ["7", 0], "filename_prefix": ""}},
    "9": {"class_type": "PreviewAny", "inputs": {"source": ["2", 3]}},
    "10": {"class_type": "PreviewAny", "inputs": {"source": ["3", 3]}},
    "11": {"class_type": "SaveImage", "inputs": {"images": ["3", 1], "filename_prefix": "wild/first"}},
}
RUNS = itertools.count(1)
LONGEST = 3 * 1024 / wild_videos.SOUND  # seconds that sound may be off by: whole AAC frames


class Edited:
    """What came out: `frames` (T, H, W, 3) of 255 and `seconds` of the pictures, `sound` (S,) or None, the nodes' reports,
    the first frame as the user got it to edit."""

    def __init__(self, path, reports, first):
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            self.frames = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(stream)])
            self.seconds = file.duration / av.time_base if stream.duration is None else float(stream.duration * stream.time_base)
            self.sound = None
        with av.open(str(path)) as file:
            if file.streams.audio:
                self.sound = np.concatenate([f.to_ndarray()[0] for f in file.decode(file.streams.audio[0])])
        self.reports, self.first = reports, first

    @property
    def heard(self) -> float:
        return len(self.sound) / wild_videos.SOUND


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return wild_videos.make(tmp_path_factory.mktemp("wild"))


@pytest.fixture(scope="module")
def run(lab, files):
    def run(kind: str, read: dict | None = None, plan: dict | None = None, host: bool = False, **nodes) -> Edited:
        """host: frames by the host's Get Video Components. nodes: to put into the prompt, by key."""
        prompt = copy.deepcopy({**PROMPT, **nodes})
        number = next(RUNS)  # the host tells no results of nodes that it did not run again
        prompt["1"]["inputs"]["file"] = f"wild_{number}{files[kind].suffix}"
        shutil.copy(files[kind], lab.server.base / "input" / f"wild_{number}{files[kind].suffix}")
        if host:
            prompt["2"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}
            prompt["3"]["inputs"].update(fps=["2", 2], audio=["2", 1])
            del prompt["9"]
        else:
            prompt["2"]["inputs"].update(read or {})
        prompt["3"]["inputs"].update(plan or {})
        prefix = prompt["8"]["inputs"]["filename_prefix"] = f"wild/{kind}_{number}"
        entry = lab.server.run(prompt, 120)
        (path,) = (lab.server.base / "output").glob(f"{prefix}_*")
        text = "\n".join(entry["outputs"][key]["text"][0] for key in ("9", "10") if key in prompt)
        first = examples.pixels(lab.server.fetch(lab.tools.images(entry, "11")[0])).numpy()
        return Edited(path, text, first)

    return run


@pytest.mark.parametrize("kind, size", [("plain", (64, 96)), ("portrait", (96, 64)), ("deep", (64, 96)), ("turned", (96, 64)),
                                        ("wide", (64, 96)), ("odd", (60, 96))])
def test_size_length_and_place_are_kept(run, kind, size):
    edited = run(kind)
    assert edited.frames.shape == (8, *size, 3) and edited.seconds == pytest.approx(1.0, abs=1e-3)
    assert wild_videos.upright(edited.first) and wild_videos.number(edited.first) == 0
    assert edited.frames.std() > 1 and edited.sound is None and "no sound" in edited.reports
    assert ("97 x 61 pixels became 96 x 60" in edited.reports) == (kind == "odd")


def test_two_frames_are_a_video_and_one_is_not(run, lab):
    edited = run("two")
    assert edited.frames.shape == (2, 64, 96, 3) and edited.seconds == pytest.approx(0.25, abs=1e-3)
    with pytest.raises(lab.tools.RunFailed, match="Plan Clips: one frame is used; there is no other to carry an edit to"):
        run("one")


def test_sound_is_kept_and_cut_with_the_frames(run):
    whole = run("sound")
    assert whole.seconds == pytest.approx(1.0, abs=1e-3) and whole.heard == pytest.approx(1.0, abs=LONGEST)
    assert wild_videos.pitch(whole.sound) == pytest.approx(400, abs=20)  # the tone's mean over its first second
    spans = ({"read": {"start": 0.5}}, {"plan": {"start": 0.5}}, {"plan": {"start": 0.5}, "host": True})
    for span in spans:
        late = run("sound", **span)
        assert late.frames.shape[0] == 4 and late.seconds == pytest.approx(0.5, abs=1e-3), span
        assert wild_videos.number(late.first) == 4
        assert late.heard == pytest.approx(0.5, abs=LONGEST)
        assert wild_videos.pitch(late.sound) == pytest.approx(500, abs=40)  # of its second half
    fewer = run("sound", plan={"sampled_fps": 3.0})
    assert len(fewer.frames) == 3 and fewer.seconds == pytest.approx(1.0, abs=2e-3)
    assert fewer.heard == pytest.approx(1.0, abs=LONGEST) and wild_videos.pitch(fewer.sound) == pytest.approx(400, abs=20)


def test_frames_at_uneven_times_come_evenly(run):
    """The file's eight frames lie at 0 to 0.94 s, in three bursts."""
    mean = run("uneven")
    assert len(mean.frames) == 8 and mean.seconds == pytest.approx(1.065, abs=0.02)
    assert mean.heard == pytest.approx(mean.seconds, abs=LONGEST) and "frames were 0.040 s apart and more" in mean.reports
    late = run("uneven", read={"fps": 5.0, "start": 0.45})
    assert wild_videos.number(late.first) == 3, "shown from 0.12 to 0.6 s"
    assert len(late.frames) == 3 and late.seconds == pytest.approx(0.6, abs=1e-3)
    # The host's own node knows the mean rate alone: all frames, the right length, the wrong moments.
    host = run("uneven", plan={"start": 0.45}, host=True)
    assert host.seconds == pytest.approx(1.065 - 3 / 7.512, abs=0.01) and wild_videos.number(host.first) == 3


@pytest.mark.parametrize("kind", ["cut", "cut_mkv"])
def test_a_cut_file_gives_the_frames_up_to_there(run, kind):
    edited = run(kind)
    count = len(edited.frames)  # 60 per cent of the bytes; the encoder's own division of work decides how many that are
    assert 2 < count < 7 and edited.frames.shape[1:] == (64, 96, 3) and edited.seconds == pytest.approx(count / 8, abs=1e-3)
    assert f"the file is damaged: it can be read up to {count / 8:.3f} s" in edited.reports


def test_a_file_that_cannot_be_opened_is_named(run, lab):
    with pytest.raises(lab.tools.RunFailed, match=r"Read Video: 'wild_\d+.mov' cannot be opened .*copy it again"):
        run("headless")


def test_an_odd_size_by_the_hosts_nodes(run, lab):
    """The host's encoder refuses odd sizes; Plan Clips says so beforehand, and each way out works."""
    hosts = {"class_type": "SaveVideo", "inputs": {"video": ["7", 0], "format": "mp4", "codec": "h264"}}
    with pytest.raises(lab.tools.RunFailed, match="SaveVideo"):
        run("odd", host=True, **{"8": hosts})
    crop = {"class_type": "ImageCrop", "inputs": {"image": ["6", 0], "width": 96, "height": 60, "x": 0, "y": 0}}
    create = {"class_type": "CreateVideo", "inputs": {"images": ["12", 0], "fps": ["3", 2]}}
    edited = run("odd", host=True, **{"12": crop, "7": create, "8": hosts})
    assert edited.frames.shape == (8, 60, 96, 3)
    assert "97 x 61 pixels: Save Video cannot write odd sizes" in edited.reports
    assert edited.first.shape == (61, 97, 3), "the frame to edit is the source's"
    assert run("odd", host=True).frames.shape == (8, 62, 98, 3), "our own saver loses nothing"


def test_an_odd_size_is_kept_for_webm(run, lab):
    save = {"class_type": "SaveWEBM", "inputs": {"images": ["6", 0], "codec": "vp9", "fps": 8.0, "crf": 20.0}}
    edited = run("odd", read={"even_size": False}, **{"8": save})
    assert edited.frames.shape == (8, 61, 97, 3) and edited.first.shape == (61, 97, 3)
