"""Video Text Model, Tune on Video, Save and Load Tuned Video: runs that continue, files, refusals."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from framepainter_tests import text_model
from safetensors import safe_open
from safetensors.torch import save_file

FRAMES, SIDE, STEPS = 3, 8, 4


@pytest.fixture(scope="module")
def nodes(pack):
    found = {node.define_schema().node_id: node for node in pack("nodes").NODES}

    def call(name: str, **inputs):
        node = found[f"FramePainter{name}"]
        node.hidden = type("Hidden", (), {"unique_id": None})()
        with torch.inference_mode():
            return node.execute(**inputs)

    return call


@pytest.fixture(scope="module")
def model(pack):
    return text_model.build(pack, text_model.split(text_model.small_tensors(pack))[0])


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


VIDEO, TEXT = noise(FRAMES, 4, SIDE, SIDE, seed=1), noise(1, 77, 16, seed=2)


@pytest.fixture
def output(tmp_path, monkeypatch):
    for kind in ("output", "input"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path / "output"


@pytest.fixture
def tune(nodes, model):
    def make(**more):
        given = {"model": model, "positive": [[TEXT, {}]], "latent": {"samples": VIDEO}, "preset": "small network", "steps": STEPS,
                 "learning_rate": 1e-3, "seed": 5}
        return nodes("TuneOnVideo", **{**given, **more}).args

    return make


def seen(pack, model) -> torch.Tensor:
    return text_model.evaluate(pack, model, VIDEO, 501, TEXT)


def test_a_run_is_kept_and_comes_back(pack, nodes, model, tune, output):
    before = seen(pack, model)
    tuned_model, tuned, curve, report, previews = tune()
    assert f"{STEPS} steps" in report and curve.shape[0] == 1 and curve.shape[-1] == 3
    again = tune()
    assert "taken from an equal run" in again[3] and torch.equal(seen(pack, again[0]), seen(pack, tuned_model))
    assert (seen(pack, tuned_model) - before).abs().max() > 1e-3 and torch.equal(seen(pack, model), before)
    (by_hand,) = nodes("VideoTextModel", model=model, tuned=tuned).args
    assert torch.equal(seen(pack, by_hand), seen(pack, tuned_model))
    assert not previews.any()
    other = tune(seed=6)
    assert "equal run" not in other[3] and len(list((output / "framepainter_tuning").iterdir())) == 2


def test_previews_are_shown_and_change_nothing(pack, tune, output, monkeypatch):
    vae = SimpleNamespace(decode=lambda z: torch.nn.functional.interpolate(z[:, :3], scale_factor=8).movedim(1, -1).sigmoid())
    shown = []
    monkeypatch.setattr(pack("host.report").Steps, "show", lambda self, done, total=None, picture=None: shown.append(picture))
    plain = tune()
    shutil.rmtree(output / "framepainter_tuning")
    looked = tune(vae=vae, preview_every=2)
    assert all(torch.equal(looked[1].tensors[name], tensor) for name, tensor in plain[1].tensors.items())
    height, width = (8 * side for side in VIDEO.shape[-2:])
    assert looked[4].shape == (1, 2 * height, 3 * width, 3)
    assert torch.allclose(looked[4][0, height:, :width], vae.decode(VIDEO[:1])[0], atol=1 / 255), "below, the video itself"
    assert (looked[4][0, :height] - looked[4][0, height:]).abs().mean() > 0.01
    sizes = [picture[1].size for picture in shown if picture]
    assert sizes[0][1] < sizes[-1][1], "the curve alone, and with a preview below"
    with pytest.raises(ValueError, match="'preview_every' is 2, but no 'vae' is connected"):
        tune(preview_every=2)


def test_a_cancelled_run_continues_bit_for_bit(pack, tune, output, monkeypatch):
    import comfy.model_management as mm

    whole = tune(seed=7, save_every=1)[1]
    for folder in (output / "framepainter_tuning").iterdir():
        folder.rename(output / "done")
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise mm.InterruptProcessingException

    with monkeypatch.context() as patch:
        patch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(mm.InterruptProcessingException):
            tune(seed=7, save_every=1)
    rest = tune(seed=7, save_every=1)[1]
    assert all(torch.equal(t, rest.tensors[n]) for n, t in whole.tensors.items())


def test_files_in_both_forms(pack, nodes, model, tune, output, caplog):
    tuned_model, tuned, *_ = tune()
    expected = seen(pack, tuned_model)

    def through_a_file(**more) -> tuple:
        given = {"tuned": tuned, "filename_prefix": "tuned_videos/video", "form": "full", "rank": 64, "precision": "fp32"}
        before = set(output.rglob("tuned_videos/*"))
        said = nodes("SaveTunedVideo", **{**given, **more}).ui.as_dict()["text"][0]
        (path,) = set(output.rglob("tuned_videos/*")) - before
        return path, said, nodes("LoadTunedVideo", model=model, file=path.name).args

    path, said, (loaded, again) = through_a_file()
    assert path.name in said and torch.equal(seen(pack, loaded), expected)
    assert all(torch.equal(t, again.tensors[n]) for n, t in tuned.tensors.items())
    half, _, (loaded, _) = through_a_file(precision="fp16")
    assert half.stat().st_size < 0.6 * path.stat().st_size and 0 < (seen(pack, loaded) - expected).abs().max() < 0.05

    _, said, (loaded, _) = through_a_file(form="low rank", rank=1024, model=model)  # every direction: exact up to rounding
    assert "0.0% of what tuning changed is lost" in said and (seen(pack, loaded) - expected).abs().max() < 1e-3
    thin, said, (loaded, _) = through_a_file(form="low rank", rank=2, model=model, precision="fp16")
    with safe_open(str(thin), framework="pt") as file:
        error = float(file.metadata()["framepainter.error"])
    assert 0.01 < error < 0.99 and f"{error:.1%} of what tuning changed is lost" in said
    assert thin.stat().st_size < 0.5 * half.stat().st_size
    lost = {n: tuned.tensors[n] - nodes("LoadTunedVideo", model=model, file=thin.name).args[1].tensors[n] for n in tuned.tensors}
    start = pack("host.weights.tuned_video").start_of(model, tuned)
    measured = (sum(float(t.pow(2).sum()) for t in lost.values())
                / sum(float((tuned.tensors[n] - start[n]).pow(2).sum()) for n in lost)) ** 0.5
    assert measured == pytest.approx(error, rel=0.05)
    assert "another checkpoint" not in caplog.text


def test_another_checkpoint_is_named(pack, nodes, model, tune, output, caplog):
    tuned = tune()[1]
    other = text_model.build(pack, text_model.split(text_model.small_tensors(pack, seed=3))[0])
    nodes("VideoTextModel", model=other, tuned=tuned)
    assert "Video Text Model: the video was tuned on another checkpoint than 'model'" in caplog.text
    thin = {"tuned": tuned, "filename_prefix": "tuned_videos/x", "form": "low rank", "rank": 2, "precision": "fp16"}
    with pytest.raises(ValueError, match="Save Tuned Video: 'model' is another one than was tuned"):
        nodes("SaveTunedVideo", **thin, model=other)
    with pytest.raises(ValueError, match="Save Tuned Video: the low-rank form holds what tuning added"):
        nodes("SaveTunedVideo", **thin)


def test_broken_and_foreign_files_are_refused(nodes, model, tune, output):
    folder = output / "tuned_videos"
    folder.mkdir()
    nodes("SaveTunedVideo", tuned=tune()[1], filename_prefix="tuned_videos/x", form="full", rank=2, precision="fp16")
    (whole,) = folder.iterdir()
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    save_file({"a": torch.zeros(1)}, str(folder / "other.safetensors"))
    with safe_open(str(whole), framework="pt") as file:
        header = file.metadata()
    save_file({"a": torch.zeros(1)}, str(folder / "newer.safetensors"), metadata={**header, "framepainter.format": "9"})
    save_file({"input_blocks.9.x.up": torch.zeros(2, 1), "input_blocks.9.x.down": torch.zeros(1, 2)},
              str(folder / "wide.safetensors"), metadata=header)
    for name, message in (("cut", "'cut.safetensors' is broken"), ("other", "it holds no tuned video"),
                          ("newer", "it has format 9, this version reads 1"), ("wide", "belongs to another network"),
                          ("gone", "is in none of the folders"), ("../../x", "lies outside of the folder")):
        with pytest.raises((ValueError, OSError), match=f"Load Tuned Video: .*{message}"):
            nodes("LoadTunedVideo", model=model, file=f"{name}.safetensors")


def test_streamed_and_windowed(pack, nodes, model):
    (plain,) = nodes("VideoTextModel", model=model).args
    (streamed,) = nodes("VideoTextModel", model=model, streamed=True).args
    assert (seen(pack, plain) - seen(pack, streamed)).abs().max() < 1e-3
    (windowed,) = nodes("VideoTextModel", model=model, window=2).args
    assert pack("host.attention.inflated").settings_of(windowed).window == 2


def test_other_networks_and_single_frames_are_refused(pack, nodes, model, tune, checkpoint, output):
    with torch.inference_mode():
        video = pack("host.weights.loading").load(checkpoint, None, None, torch.float32).model
    for name in ("VideoTextModel", "TuneOnVideo"):
        run = tune if name == "TuneOnVideo" else lambda model: nodes("VideoTextModel", model=model)
        with pytest.raises(ValueError, match="is a SVD_img2vid model .*Load Checkpoint with an SD 1.5"):
            run(model=video)
    kept = tune()[1]
    low_rank = {"tuned": kept, "filename_prefix": "tuned_videos/x", "form": "low rank", "rank": 2, "precision": "fp16"}
    nodes("SaveTunedVideo", **low_rank, model=model)
    for family in ("SDXL", "SD20", "SVD_img2vid", "Flux"):
        other = text_model.of_family(model, family)
        for title, run in (("Video Text Model", lambda m: nodes("VideoTextModel", model=m)),
                           ("Video Text Model", lambda m: nodes("VideoTextModel", model=m, tuned=kept)),
                           ("Tune on Video", lambda m: tune(model=m)),
                           ("Save Tuned Video", lambda m: nodes("SaveTunedVideo", **low_rank, model=m)),
                           ("Load Tuned Video", lambda m: nodes("LoadTunedVideo", model=m, file="x_00001_.safetensors"))):
            with pytest.raises(ValueError, match=f"{title}: the 'model' input is a {family} model .*Load Checkpoint with an SD 1"):
                run(other)
    with pytest.raises(ValueError, match="Tune on Video: 'latent' has one frame"):
        tune(latent={"samples": VIDEO[:1]})
    with pytest.raises(ValueError, match="Tune on Video: preset is 'fast'; choose one of"):
        tune(preset="fast")
