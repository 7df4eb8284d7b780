"""The Evaluate Edits node and the evaluate command."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from framepainter_tests.missing import missing
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def node(pack):
    class Hidden:
        unique_id = None

    found = pack("nodes.evaluation").EvaluateEdits
    found.hidden = Hidden()
    return found


@pytest.fixture(scope="module")
def clip(pack, checkpoint):
    return pack("host.weights.loading").load_clip_and_vae(checkpoint)[0]


@pytest.fixture(scope="module")
def scenes(pack):
    """Source, edit (the source warped along the true motion), truth, masks of six scenes, channels last."""
    data = pack("core.data.procedural")
    drawn = data.draw_scenes(6, 2, data.SceneSettings(40, 48), torch.Generator().manual_seed(1))
    frames, truth = data.render(drawn), data.correspondence(drawn, 0, 1)
    areas = pack("core.evaluation.metrics").areas_from_flow(truth.flow, truth.visible)
    edited = pack("core.flow.warp").warp(frames[:, 0], truth.flow)
    source, edited, target = (x.movedim(1, -1).contiguous() for x in (frames[:, 0], edited, frames[:, 1]))
    return {"edited": edited, "truth": target, "source": source, "moved": areas.moved.float(),
            "disoccluded": areas.disoccluded.float()}


def run(node, **inputs):
    """Every input in a list, as the host passes them to this node."""
    with torch.inference_mode():
        report, text, sheet = node.execute(**{k: v if isinstance(v, list) else [v] for k, v in inputs.items()}).args
    return report, json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")), sheet


def test_numbers_are_the_cores(node, scenes, pack):
    report, found, sheet = run(node, **scenes)
    bchw = {k: scenes[k].movedim(-1, 1) for k in ("edited", "truth", "source")}
    areas = pack("core.evaluation.metrics").areas_from_masks(scenes["moved"], scenes["disoccluded"])
    expected = pack("core.evaluation.pairs").evaluate_pairs(**bchw, areas=areas)
    assert found["count"] == 6 and [p["name"] for p in found["pairs"]] == list("012345")
    for metric, values in expected.items():
        assert [p[metric] for p in found["pairs"]] == values
    columns = found["summary"]
    assert columns["edited"]["moved_mse"]["mean"] == pytest.approx(np.mean(expected["moved_mse"]))
    assert columns["edited"]["moved_mse"]["mean"] < columns["unedited source"]["moved_mse"]["mean"]
    assert "| moved mse | lower |" in report and "6 pairs" in report
    assert sheet.ndim == 4 and sheet.shape[2] == 6 + 5 * (128 + 6) and 0 <= sheet.min() and sheet.max() <= 1


def test_lists_and_batches_are_one_set(node, scenes):
    """A list of single pictures, of two sizes, is measured as the batch is."""
    assert node.define_schema().is_input_list  # else the host calls the node once for each item
    whole = run(node, edited=scenes["edited"], truth=scenes["truth"])[1]
    split = run(node, edited=list(scenes["edited"].split(1)), truth=[scenes["truth"][:4], scenes["truth"][4:]])[1]
    assert split == whole
    extra = torch.rand(1, 20, 30, 3)
    mixed = run(node, edited=[scenes["edited"], extra], truth=[scenes["truth"], extra])[1]
    assert mixed["count"] == 7 and mixed["pairs"][6]["psnr"] == "inf" and mixed["pairs"][:6] == whole["pairs"]
    assert mixed["summary"]["edited"]["psnr"]["infinite"] == 1


def test_one_truth_for_all_and_opacity_is_ignored(node, scenes):
    opaque = torch.cat([scenes["edited"], torch.rand(6, 40, 48, 1)], -1)
    found = run(node, edited=opaque, truth=scenes["truth"][:1])[1]
    assert found["pairs"][0] == run(node, edited=scenes["edited"][:1], truth=scenes["truth"][:1])[1]["pairs"][0]


@pytest.mark.parametrize("inputs, message", [
    ({"truth": torch.zeros(2, 16, 24, 3)}, "picture 0 of 'edited' is 16 x 16, its truth 24 x 16.*Upscale Image"),
    ({"truth": torch.zeros(3, 16, 16, 3)}, "edited has 2 pictures, truth has 3"),
    ({"source": torch.zeros(2, 8, 16, 3)}, "picture 0 of 'source' is 16 x 8"),
    ({"moved": torch.ones(2, 8, 8)}, "mask 0 of 'moved' is 8 x 8, its truth 16 x 16"),
    ({"edited": torch.zeros(0, 16, 16, 3)}, "'edited' has no pictures"),
])
def test_inputs_that_do_not_fit(node, inputs, message):
    image = torch.zeros(2, 16, 16, 3)
    with pytest.raises(ValueError, match=f"Evaluate Edits: .*{message}"):
        run(node, **{"edited": image, "truth": image, **inputs})


def test_load_images_black_mask_is_an_empty_area(node, scenes):
    report, found, _ = run(node, edited=scenes["edited"], truth=scenes["truth"], moved=torch.zeros(1, 64, 64))
    assert found["summary"]["edited"]["moved_mse"]["undefined"] == 6
    assert "The moved area is empty in 6 of 6 pairs" in report


def test_pictures_that_are_not_finite_are_named(node, scenes, clip, caplog):
    edited = scenes["edited"].clone()
    edited[2] = math.nan
    report, found, sheet = run(node, edited=edited, truth=scenes["truth"], clip_vision=clip)
    assert "1 of 6 pairs have values that are not finite and count nowhere: 2." in report
    assert "not finite" in caplog.text and found["pairs"][2]["mse"] is None and found["summary"]["edited"]["mse"]["count"] == 5
    assert found["clip_fid"] > 0 and bool(sheet.isfinite().all())


def test_clip_fid_is_the_distance_of_the_hosts_embeddings(node, scenes, clip):
    report, found, _ = run(node, edited=scenes["edited"], truth=scenes["truth"], clip_vision=clip)
    with torch.inference_mode():
        a, b = (clip.encode_image(scenes[k])["image_embeds"].double() for k in ("edited", "truth"))
    s, t = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(s @ t).sqrt().real.sum()
    expected = float((a.mean(0) - b.mean(0)).square().sum() + s.trace() + t.trace() - 2 * root)
    # fp32 embeddings of one picture and of a batch differ in the last bits
    assert found["clip_fid"] == pytest.approx(expected, rel=1e-3, abs=1e-6) and found["clip_fid"] > 0
    assert "CLIP-FID of 6 pairs is biased upwards" in report and "| clip fid | lower |" in report
    same = run(node, edited=scenes["truth"], truth=scenes["truth"], clip_vision=clip)[1]
    assert same["clip_fid"] < 1e-6 * max(1.0, found["clip_fid"])


def test_pixels_are_prepared_for_clip_as_clean_fid_does(pack, clip):
    """Shorter side resized, centre cropped, 8 bit. A squeezed picture, the other usual way, is told apart."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    seed = torch.Generator().manual_seed(4)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 12, generator=seed), (300, 500), mode="bicubic").clamp(0, 1)
    image = (image.movedim(1, -1) * 255).round() / 255
    size = clip.image_size
    published = Compose([Resize(size, interpolation=InterpolationMode.BICUBIC), CenterCrop(size)])
    theirs = torch.from_numpy(np.array(published(Image.fromarray((image[0] * 255).byte().numpy()))))[None].float() / 255
    with torch.inference_mode():
        ours = pack("host.evaluation").clip_features(clip, image)
        expected = clip.encode_image(theirs)["image_embeds"].double()  # of its own size: passed on unchanged
        squeezed = clip.encode_image(image, crop=False)["image_embeds"].double()
    assert (ours - expected).norm() < 0.05 * (squeezed - expected).norm()


def test_clip_fid_of_one_picture_is_left_out(node, scenes, clip):
    report, found, _ = run(node, edited=scenes["edited"][:1], truth=scenes["truth"][:1], clip_vision=clip)
    assert found["clip_fid"] is None and "CLIP-FID is left out" in report and "here is 1" in report


def test_clip_vision_that_is_not_there(node, pack, scenes):
    absent = pack("host.weights.loading").Absent("CLIP_VISION", "small.safetensors")
    with pytest.raises(AttributeError, match="'small.safetensors' holds no CLIP_VISION"):
        run(node, edited=scenes["edited"], truth=scenes["truth"], clip_vision=absent)


def test_cancelling_stops_between_pairs(node, scenes):
    import comfy.model_management as mm

    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        run(node, edited=scenes["edited"], truth=scenes["truth"])
    assert run(node, edited=scenes["edited"], truth=scenes["truth"])[1]["count"] == 6


# ---- LPIPS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """An AlexNet with random weights where torch keeps downloads, so that the published package finds it there."""
    if importlib.util.find_spec("lpips") is None:
        missing("the package lpips is not installed")
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    # The classifier is most of the file, and neither package uses it.
    state = {k: v for k, v in torchvision.models.alexnet().state_dict().items() if k.startswith("features.")}
    torch.save(state, folder / "alexnet-owt-7be5be79.pth")
    return folder / "alexnet-owt-7be5be79.pth"


def test_lpips_is_the_published_packages(node, scenes, backbone, monkeypatch):
    import lpips
    import torchvision

    def no_classifier(self, state, *args, **kwargs):
        return load(self, state, strict=False)

    load = torchvision.models.AlexNet.load_state_dict
    monkeypatch.setattr(torchvision.models.AlexNet, "load_state_dict", no_classifier)
    theirs = lpips.LPIPS(net="alex", verbose=False)
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(backbone.parents[2]))
    with torch.no_grad():
        expected = [float(theirs(*(scenes[k][i:i + 1].movedim(-1, 1) * 2 - 1 for k in ("edited", "truth")))) for i in range(6)]
    found = run(node, edited=scenes["edited"], truth=scenes["truth"], lpips=True)[1]
    assert [p["lpips"] for p in found["pairs"]] == pytest.approx(expected, rel=1e-5) and min(expected) > 0


def test_lpips_without_its_weights_downloads_nothing(node, scenes, tmp_path, monkeypatch):
    if importlib.util.find_spec("lpips") is None:
        missing("the package lpips is not installed")

    def refused(*args, **kwargs):
        pytest.fail("something was downloaded")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    report, found, _ = run(node, edited=scenes["edited"], truth=scenes["truth"], lpips=True)
    assert "LPIPS is left out: the weights of its backbone, alexnet-owt-7be5be79.pth" in report
    assert "lpips" not in found["pairs"][0] and found["summary"]["edited"]["ssim"]["count"] == 6


def test_lpips_without_the_package(node, scenes, monkeypatch):
    found_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lpips" else found_spec(name, *a))
    report = run(node, edited=scenes["edited"], truth=scenes["truth"], lpips=True)[0]
    assert "LPIPS is left out: the package 'lpips' is not installed" in report


def test_lpips_with_a_damaged_file(node, scenes, backbone):
    backbone.write_bytes(b"not weights")
    report = run(node, edited=scenes["edited"], truth=scenes["truth"], lpips=True)[0]
    assert "LPIPS is left out: its weights cannot be read" in report


# ---- the command -----------------------------------------------------------------------------------------------------


def save(folder: Path, name: str, image: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).round().byte().numpy()).save(folder / name)


@pytest.fixture
def folders(tmp_path, scenes):
    for kind, images in scenes.items():
        for i, image in enumerate(images):
            save(tmp_path / kind, f"scene {i}.png", image)
    return tmp_path


@pytest.fixture
def command(tool, monkeypatch):
    """commands/evaluate.py as a module."""
    spec = importlib.util.spec_from_file_location("framepainter_command_evaluate", ROOT / "commands" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def arguments(folders: Path, *kinds: str) -> list[str]:
    given = ["--host", os.environ["FRAMEPAINTER_HOST"], "--cpu"]
    for kind in ("edited", "truth", *kinds):
        given += [f"--{kind}", str(folders / kind)]
    return given


def test_command_as_a_user_runs_it(folders, scenes, checkpoint):
    """In a process of its own, with everything asked for; the numbers are those of the pictures as 8 bit files."""
    out = folders / "new" / "folder"
    done = subprocess.run(
        [sys.executable, str(ROOT / "commands" / "evaluate.py"),
         *arguments(folders, "source", "moved", "disoccluded"), "--clip-vision", str(checkpoint), "--json", str(out / "o.json"),
         "--csv", str(out / "o.csv"), "--sheet", str(out / "o.png")],
        capture_output=True, text=True, encoding="utf-8", cwd=folders, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    assert "6 pairs" in done.stdout and "| disoccluded mse | lower |" in done.stdout and "| clip fid |" in done.stdout
    found = json.loads((out / "o.json").read_text(encoding="utf-8"))
    a, b = ((scenes[k][3] * 255).round().byte().double() / 255 for k in ("edited", "truth"))
    assert found["pairs"][3]["name"] == "scene 3"
    assert found["pairs"][3]["mse"] == pytest.approx(float((a - b).square().mean()), rel=1e-5)
    assert (out / "o.csv").read_text().count("\n") == 7 and Image.open(out / "o.png").width == 6 + 5 * 134
    assert sorted(p.name for p in out.iterdir()) == ["o.csv", "o.json", "o.png"]


def test_command_names_what_it_skips(command, folders, capsys, scenes):
    (folders / "edited" / "scene 0.png").write_bytes(b"not a picture")
    whole = (folders / "truth" / "scene 1.png").read_bytes()
    (folders / "truth" / "scene 1.png").write_bytes(whole[:len(whole) // 2])
    (folders / "truth" / "scene 2.png").unlink()
    save(folders / "edited", "scene 3.png", torch.rand(8, 8, 3))
    save(folders / "edited", "scene 4.jpg", scenes["edited"][4])
    (folders / "moved" / "scene 5.png").unlink()
    assert command.main([*arguments(folders, "moved"), "--json", str(folders / "o.json")]) == 0
    out = capsys.readouterr()
    found = json.loads((folders / "o.json").read_text(encoding="utf-8"))
    assert [p["name"] for p in found["pairs"]] == ["scene 5"]
    for text in ("edited/scene 0.png is not readable", "truth/scene 1.png is not readable",
                 "edited/scene 2.png has no partner", "edited/scene 3.png is 8 x 8, its truth 48 x 40",
                 "edited: scene 4.jpg and scene 4.png have one name"):
        assert text in out.err.replace("\\", "/"), text
    assert "pairs have no picture in --moved: scene 5" in out.out and " were skipped" in out.out


def test_command_reads_partners_of_other_kinds(command, folders, scenes):
    """16 bit grey, transparency and EXIF rotation come in as a viewer shows them."""
    image = torch.rand(40, 48)
    for kind in ("edited", "truth"):
        (folders / kind / "scene 0.png").unlink()
    Image.fromarray((image * 65535).numpy().astype(np.uint16)).save(folders / "edited" / "grey.png")
    rgb = command.read(folders / "edited" / "grey.png", False)
    assert rgb.shape == (40, 48, 3) and torch.allclose(rgb[..., 1], image, atol=1e-4)
    assert torch.allclose(command.read(folders / "edited" / "grey.png", True), image, atol=1e-4)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = Image.fromarray((scenes["truth"][0] * 255).byte().numpy()).convert("RGBA")
    turned.save(folders / "turned.png", exif=exif)
    assert command.read(folders / "turned.png", False).shape == (48, 40, 3)


@pytest.mark.parametrize("change, code, message", [
    (["--edited", "nowhere"], 2, "--edited: nowhere is not a folder"),
    (["--host", "nowhere"], 2, "--host: nowhere is not ComfyUI's folder"),
    (["--clip-vision", "nowhere.safetensors"], 2, "--clip-vision: nowhere.safetensors does not exist"),
    (["--sheet", "sheet.tga"], 2, "--sheet: sheet.tga does not end in .png"),
])
def test_command_with_wrong_arguments(command, folders, capsys, monkeypatch, change, code, message):
    monkeypatch.chdir(folders)
    assert command.main([*arguments(folders), *change]) == code and message in capsys.readouterr().err


def test_command_refuses_files_that_hold_no_clip(command, folders, capsys):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(folders / "other.safetensors"))
    (folders / "broken.safetensors").write_bytes(b"\0" * 64)
    (folders / "pickle.pth").write_bytes(b"\0")
    for name, message in (("other.safetensors", "holds no CLIP vision model"), ("broken.safetensors", "cannot be loaded"),
                          ("pickle.pth", "is not a .safetensors file")):
        assert command.main([*arguments(folders), "--clip-vision", str(folders / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_named(pack, command, folders, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (folders / "o.json").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(pack("core.atomic").os, "replace", full)
        assert command.main([*arguments(folders), "--json", str(folders / "o.json")]) == 2
    assert "o.json' could not be written: No space left on device. Make room" in capsys.readouterr().err
    assert (folders / "o.json").read_text() == "old"
    assert command.main([*arguments(folders), "--json", str(folders / "o.json" / "under" / "o.json")]) == 2
    assert "o.json cannot be made: " in capsys.readouterr().err


def test_command_without_pairs(command, folders, capsys):
    (folders / "empty").mkdir()
    assert command.main([*arguments(folders), "--truth", str(folders / "empty")]) == 1
    assert "no pair could be evaluated" in capsys.readouterr().err
