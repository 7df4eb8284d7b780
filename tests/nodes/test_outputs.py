"""Names of files and folders: any text gives one file under the output folder or one sentence, and nothing is overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ODD = {
    "dot": "style v1.5", "two dots": "a.b.c", "dot at the end": "style v2.", "folder": "x/style v1.5", "spaces": " a b ",
    "letters": "größe-\u65e5\u672c-\U0001f3a8", "number": "00001", "like an ending": "style.safetensors", "year": "%year%.%month%",
}
WRONG = {
    "NUL": "a\0b", "half a letter": "a\ud800b", "bell": "a\x07b", "lines": "a\nb", "300 characters": "x" * 300,
    "300 characters in a folder": "y" * 300 + "/a", "100 letters of three bytes": "\u65e5" * 100, "out": "../../x",
    "whole": "/etc/x",
    "empty": "", "folder alone": "a/", "dots": "a/..", "here": ".",
}


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    for name in ("output", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"get_{name}_directory", lambda name=name: str(tmp_path / name))
    return tmp_path / "output"


@pytest.fixture(scope="module")
def checkpoint_parts(pack, checkpoint):
    with torch.inference_mode():
        return pack("host.weights.loading").load(checkpoint, None, None, torch.float32)


@pytest.fixture(scope="module")
def found(pack):
    trajectory = pack("core.inversion.trajectory")
    source = trajectory.SourceConditioning(torch.ones(1, 1, 4), torch.ones(1, 4, 2, 2), {"fps": 6.0})
    return trajectory.Trajectory(torch.zeros(3, 2, 4, 2, 2), (2.0, 1.0, 0.0), source, "model")


@pytest.fixture
def savers(pack, checkpoint_parts, found):
    """Every node that writes a file, as a function of the prefix."""
    from types import SimpleNamespace

    lora = pack("nodes.motion_lora")
    full = pack("nodes.weights").SaveFramePainterCheckpoint
    tuned = pack("core.weights.tuned_video").TunedVideo({"a": torch.zeros(2, 2)}, "base", 0, False)

    def checkpoint(form):
        def save(prefix):
            full.hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)
            with torch.inference_mode():
                return full.execute(checkpoint_parts.model, checkpoint_parts.weights, prefix, form=form)

        return save

    weights = {"a.lora_up.weight": torch.ones(1, 1), "a.lora_down.weight": torch.ones(1, 1)}
    forms = pack("nodes.weights").FORMS
    return {
        "Save Motion LoRA": lambda prefix: lora.SaveMotionLora.execute(weights, prefix, lora.FORMS[0]),
        "Save Trajectory": lambda prefix: pack("nodes.inversion").SaveTrajectory.execute(found, prefix),
        "Save Tuned Video": lambda prefix: pack("nodes.video_text").SaveTunedVideo.execute(tuned, prefix, "full", 1, "fp32"),
        "Save FramePainter Checkpoint": checkpoint(forms[0]), "two files": checkpoint(forms[1]),
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("node", ["Save Motion LoRA", "Save Trajectory", "Save Tuned Video", "Save FramePainter Checkpoint",
                                  "two files"])
@pytest.mark.parametrize("prefix", ["style v1.5", "folder/a.b.c"])
def test_a_dot_in_the_prefix_is_part_of_the_name(savers, output, node, prefix):
    """It was taken for the ending, and `style v1.safetensors` overwritten."""
    (output / "folder").mkdir()
    others = ["style v1.safetensors", "style v1.pt", "folder/a.b.safetensors", "style v1.5.safetensors", "style v1.5_.safetensors",
              "style v1_unet.safetensors", "style v1.whole.safetensors"]
    for other in others:
        (output / other).write_bytes(b"mine")
    for number in (1, 2):
        before = files(output)
        savers[node](prefix)
        after = files(output)
        assert {n: c for n, c in after.items() if n in before} == before
        new = set(after) - set(before)
        assert len(new) == (2 if node == "two files" else 1)
        assert all(n.startswith(f"{prefix}_{number:05}_") and n.endswith(".safetensors") for n in new), new


@pytest.mark.parametrize("name", ODD)
def test_any_name_that_can_be_is_one_file(savers, output, name):
    for count in (1, 2, 3):
        savers["Save Motion LoRA"](ODD[name])
        assert len(files(output)) == count and all(n.endswith("_.safetensors") for n in files(output))


@pytest.mark.parametrize("node", ["Save Motion LoRA", "Save Trajectory", "Save Tuned Video", "Save FramePainter Checkpoint"])
@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_cannot_be_is_a_sentence(savers, output, node, name):
    with pytest.raises(ValueError, match=f"^{node}: filename_prefix is '.*(Use letters|Choose|Write a name)") as raised:
        savers[node](WRONG[name])
    text = str(raised.value)
    assert text.encode() and len(text) < 400 and "\0" not in text and "\n" not in text
    assert [p for p in output.parent.rglob("*") if p.is_file()] == []


def test_a_file_that_the_number_does_not_see_is_not_overwritten(pack, output, monkeypatch):
    """The host counts by names; whatever it says, a file that is there stays."""
    import folder_paths

    (output / "a_00001_.safetensors").write_bytes(b"mine")
    monkeypatch.setattr(folder_paths, "get_save_image_path", lambda *_: (str(output), "a", 1, "", "a"))
    assert pack("host.outputs").new_file("a", ".safetensors").name == "a_00002_.safetensors"


def test_a_folder_that_cannot_be_made_is_a_sentence(savers, output):
    (output / "place").write_text("a file in the folder's place")
    with pytest.raises(ValueError, match="Save Motion LoRA: .*could not be written.*Make room, or choose a folder"):
        savers["Save Motion LoRA"]("place/deep/a")


@pytest.fixture
def readers(pack):
    """Every node that reads what a text names, as a function of the name, with what it says when there is nothing."""
    from types import SimpleNamespace

    data, lora, weights = pack("nodes.data"), pack("nodes.motion_lora"), pack("nodes.weights")
    model = SimpleNamespace()
    given = dict(width=16, height=16, min_seconds=1.0, max_seconds=5.0, min_motion=0.0, max_motion=1.0, static_camera=0.0,
                 pairs_per_video=1, flow_source="weight-free", drag_points=1, seed=0)
    return {
        "Dataset Preview": lambda name: data.DatasetPreview.execute(name, 0, 1),
        "Build Dataset": lambda name: data.BuildDataset.execute(videos=name, name="a", **given),
        "Load Trajectory": lambda name: pack("nodes.inversion").LoadTrajectory.execute(name),
        "Load Tuned Video": lambda name: pack("nodes.video_text").LoadTunedVideo.execute(model, name),
        "Load Motion LoRA": lambda name: lora.LoadMotionLora.execute(model, name, 1.0),
        "Load FramePainter": lambda name: weights.LoadFramePainter.execute(name, weights.INSIDE, weights.INSIDE),
        "Load Small Text-to-Image Model": lambda name: weights.LoadSmallTextToImage.execute(name),
    }


@pytest.mark.parametrize("node", ["Dataset Preview", "Build Dataset", "Load Trajectory", "Load Tuned Video", "Load Motion LoRA",
                                  "Load FramePainter", "Load Small Text-to-Image Model"])
@pytest.mark.parametrize("name", [n for n in WRONG if n not in ("empty", "here", "folder alone", "dots")])
def test_a_name_of_nothing_is_a_sentence(readers, output, node, name):
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{node}: ") as raised:
        readers[node](WRONG[name])
    text = str(raised.value)
    assert text.encode() and "\0" not in text and "Errno" not in text and "embedded null" not in text


@pytest.mark.parametrize("name", [n for n in WRONG if n not in ("empty", "here")])
def test_fingerprints_of_such_names_do_not_fail(pack, output, name):
    data, train = pack("nodes.data"), pack("nodes.training").TrainFramePainter
    for node, key in ((data.DatasetPreview, "dataset"), (data.BuildDataset, "videos"), (train, "dataset"),
                      (pack("nodes.inversion").LoadTrajectory, "file"), (pack("nodes.video_text").LoadTunedVideo, "file")):
        node.fingerprint_inputs(**{key: WRONG[name]})


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_folders_of_runs_and_datasets_do_not_lead_out(pack, output, tmp_path):
    outputs, elsewhere = pack("host.outputs"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dataset.json").write_text("{}")
    for parent in ("framepainter_training", "framepainter_datasets"):
        (output / parent).mkdir()
        (output / parent / "linked").symlink_to(elsewhere, target_is_directory=True)
        (output / parent / "circle").symlink_to(output / parent / "circle")
        for name in ("linked", "circle"):
            with pytest.raises(ValueError, match=f"run_name is '{name}', which leads out of the output folder"):
                outputs.new_folder(parent, name, "run_name")
        assert outputs.new_folder(parent, "mine", "run_name") == (output / parent / "mine").resolve()
    with pytest.raises(ValueError, match="no finished dataset"):
        outputs.dataset("linked")
    (output / "framepainter_datasets" / "mine").mkdir()
    (output / "framepainter_datasets" / "mine" / "dataset.json").write_text("{}")
    for name in ("mine", "framepainter_datasets/mine", str(output / "framepainter_datasets" / "mine"), " mine "):
        assert outputs.dataset(name) == (output / "framepainter_datasets" / "mine").resolve()


@pytest.mark.parametrize("name", ["con", "NUL.txt", "a ", "a.", "-a", ".a", "ä", "a/b", "", "a" * 81, "lpt1"])
def test_folder_names_that_some_system_cannot_write(pack, output, name):
    with pytest.raises(ValueError, match="run_name is '.*use up to 80 letters"):
        pack("host.outputs").new_folder("framepainter_training", name, "run_name")


def test_a_stamp_changes_with_the_file(pack, tmp_path):
    path, stamp = tmp_path / "a", pack("host.outputs").stamp
    assert stamp(lambda: path) is None
    path.write_bytes(b"1")
    first = stamp(tmp_path.joinpath, "a")
    path.write_bytes(b"12")
    assert first is not None and stamp(tmp_path.joinpath, "a") not in (None, first)
