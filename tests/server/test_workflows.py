"""The shipped workflows, on a real server: served as templates, run as they are, the same in both forms."""

from __future__ import annotations

import json
import re

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.examples import inputs, only_edited, pixels, prompt, small

SPACING = 8  # between the pictures of a contact sheet

each = pytest.mark.parametrize("name", examples.NAMES)


def served(server, path: str) -> bytes:
    return server._request(path)


def test_there_are_examples():
    assert "framepainter_sketch" in examples.NAMES


@each
def test_is_served_as_a_template(server, name: str):
    listed = json.loads(served(server, "/workflow_templates"))
    assert name in listed["ComfyUI-FramePainter"]
    folder = "/api/workflow_templates/ComfyUI-FramePainter"
    assert served(server, f"{folder}/{name}.json") == (examples.WORKFLOWS / f"{name}.json").read_bytes()
    thumbnail = pixels(served(server, f"{folder}/{name}.jpg"))
    assert thumbnail.shape[1] >= 400 and thumbnail.float().std() > 20


def test_templates_are_the_only_ones_listed(server):
    """The files in workflows/api are not for the template browser."""
    assert sorted(json.loads(served(server, "/workflow_templates"))["ComfyUI-FramePainter"]) == examples.NAMES


@each
def test_canvas_and_api_form_are_the_same(comfy_cli, name: str):
    done = comfy_cli("run", "--workflow", str(examples.WORKFLOWS / f"{name}.json"), "--print-prompt")
    assert done.returncode == 0, done.stdout + done.stderr
    found, wanted = examples.without_subgraphs(json.loads(done.stdout)["data"]["prompt"]), prompt(name)
    assert found.keys() == wanted.keys()
    for key, node in wanted.items():
        if not node["class_type"].startswith("FramePainter"):
            # ComfyUI's own nodes gain and rename widgets (Save Video's codec is format.codec from 0.33): what both have counts.
            both = found[key]["inputs"].keys() & node["inputs"].keys()
            for form in (found[key], node):
                form["inputs"] = {k: v for k, v in form["inputs"].items() if k in both or isinstance(v, list)}
        assert found[key] == node, key


@each
def test_uses_core_nodes_and_ours_only(server, name: str):
    definitions = server.object_info()
    for node in prompt(name).values():
        module = definitions[node["class_type"]]["python_module"]
        assert module == "nodes" or module.startswith("comfy_extras.") or "ComfyUI-FramePainter" in module, node


def run_by_comfy_cli(comfy_cli, path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
    done = comfy_cli("run", "--workflow", str(path), "--wait")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["ok"] and answer["data"]["outputs"], answer


@each
def test_both_forms_run(comfy_cli, server, tmp_path, name: str):
    """The API form as it is, and the canvas form as comfy-cli turns it into a prompt."""
    entry = server.run(examples.again(small(prompt(name))), 180.0)
    assert entry["outputs"], entry
    run_by_comfy_cli(comfy_cli, tmp_path / "canvas.json", examples.small_canvas(name, server.object_info()))


def test_the_api_form_runs_in_comfy_cli(comfy_cli, tmp_path):
    run_by_comfy_cli(comfy_cli, tmp_path / "api.json", small(prompt()))


def test_the_first_pages_command_runs_as_it_stands(comfy_cli, server):
    """With another port, and no files but the pack's own."""
    page = (examples.ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^comfy --skip-prompt (run .*) --host 127\.0\.0\.1 --port 8188$", page, re.MULTILINE)
    (path,) = re.findall(r"--workflow (\S+)", line)
    shown = re.search(r"The edit is then in ComfyUI's `output/(\w+)`", page)[1]
    before = set((server.base / "output" / shown).glob("edited_*.png"))
    done = comfy_cli(*line.replace(path, str(examples.ROOT / path)).split())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (made,) = set((server.base / "output" / shown).glob("edited_*.png")) - before
    assert made.name in done.stdout and pixels(made).float().std() > 10


def test_sizes_and_contents_of_the_results(lab, good):
    source = pixels(examples.INPUTS[examples.PICTURE])
    results = lab.run(small(prompt()))
    (edited,), (sheet,) = results["Edited picture"], results["Contact sheet"]
    height, width = source.shape[:2]
    assert edited.shape == source.shape
    assert torch.equal(edited, good[1])
    assert sheet.shape == (height, 3 * width + 2 * SPACING, 3)
    first, second, third = (sheet[:, i * (width + SPACING):][:, :width] for i in range(3))
    assert (first.int() - source.int()).abs().float().mean() < 2  # hosts decode JPEG differently, at edges most
    assert torch.equal(third, edited)
    # What the network sees: white strokes on black, covering a little of the picture.
    assert torch.equal(second[..., 0], second[..., 1])
    assert 0.01 < second.gt(250).float().mean() < 0.2 and second.lt(5).float().mean() > 0.7


def test_the_small_model_puts_the_object_where_the_sketch_says(lab):
    """The shipped example as it is, against the true picture."""
    source, truth = (pixels(examples.INPUTS[f"framepainter_{name}.png"]).float() for name in ("scene", "scene_truth"))
    edited = lab.edited(prompt("framepainter_small")).float()
    difference = (truth - source).abs().amax(-1)
    changed, same = difference > 25, difference < 3
    assert 0.05 < changed.float().mean() < 0.3
    assert (edited - truth)[changed].abs().mean() < 0.4 * (source - truth)[changed].abs().mean()
    assert (edited - source)[same].abs().mean() < 6  # of 255, the small autoencoder's own error included


def test_training_leaves_a_model_that_loads(lab):
    request = small(prompt("framepainter_train"), FramePainterTrain={"run_name": "leaves_a_model"},
                    FramePainterSaveCheckpoint={"filename_prefix": "trained/model"})
    results = lab.run(request)
    assert results["Loss curve"][0].float().std() > 5 and results["Previews"][0].float().std() > 20
    assert results["Pairs"][0].shape[0] > 6 * 96
    (written,) = (lab.server.base / "output" / "trained").glob("*.safetensors")
    path = lab.model_path("trained.safetensors")
    written.replace(path)
    try:
        edited = lab.edited(small(prompt("framepainter_small"), FramePainterLoad={"model_file": path.name}))
    finally:
        path.unlink()
    assert edited.shape == (96, 96, 3) and edited.float().std() > 5
    run = lab.server.base / "output" / "framepainter_training" / "leaves_a_model"
    assert len((run / "stats.jsonl").read_text().splitlines()) == 3


def test_evaluation_compares_with_the_truth(lab):
    (sheet,) = lab.run(prompt("framepainter_evaluate"))["Comparison"]
    assert sheet.shape[1] >= 4 * 96 and sheet.float().std() > 20


def test_a_second_run_gives_the_same_picture(lab, good):
    request, reference = good
    lab.forget()
    entry = lab.server.run(request)
    cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
    assert cached == [], "nothing was run again"
    (image,) = lab.tools.images(entry)
    assert torch.equal(pixels(lab.server.fetch(image)), reference)


def test_the_sketch_and_the_seed_matter(lab, good, tmp_path):
    """Else equal pictures would prove nothing."""
    request, reference = good
    assert not torch.equal(lab.edited({**request, **small(request, KSampler={"seed": 1})}), reference)
    blank = lab.upload(tmp_path, "blank.png", torch.full((400, 600, 3), 255, dtype=torch.uint8))
    assert not torch.equal(lab.edited(small(request, Sketch={"image": blank})), reference)


def test_strokes_from_the_mask_editor_need_no_sketch(lab, tmp_path):
    """The mask editor saves the picture with the strokes as transparency; the example's note says to draw so."""
    picture = pixels(examples.INPUTS[examples.PICTURE])
    alpha = torch.full((*picture.shape[:2], 1), 255, dtype=torch.uint8)
    alpha[100:110, 100:400] = 0
    drawn = lab.upload(tmp_path, "drawn.png", torch.cat([picture, alpha], -1))
    request = small(prompt(), Picture={"image": drawn})
    inputs(request, "FramePainterSketchSignal").pop("sketch")
    request = {k: n for k, n in request.items() if n["_meta"]["title"] != "Sketch"}
    (sheet,) = lab.run(request)["Contact sheet"]
    seen = sheet[:, picture.shape[1] + SPACING:][:, :picture.shape[1]]
    assert torch.equal(seen, (255 - alpha).expand_as(picture))


def test_two_pictures_at_once_are_the_same_as_one_after_the_other(lab, good, tmp_path):
    request, reference = good
    picture, sketch = (lab.upload(tmp_path, f"mirrored_{name}.png", pixels(examples.INPUTS[name]).flip(1))
                       for name in (examples.PICTURE, examples.SKETCH))
    alone = lab.edited(small(request, Picture={"image": picture}, Sketch={"image": sketch}))
    assert not torch.equal(alone, reference)
    both = two_at_once(request, picture, sketch)
    first, second = lab.run(only_edited(both))["Edited picture"]
    assert torch.equal(first, reference)
    assert torch.equal(second, alone)


def two_at_once(request: examples.Prompt, picture: str, sketch: str) -> examples.Prompt:
    """The example with its picture and sketch, and these, in one batch each."""
    out = small(request)
    inputs(out, "FramePainterSketchSignal").pop("mask")  # that of the first picture only
    for title, name in (("Picture", picture), ("Sketch", sketch)):
        first = next(k for k, n in out.items() if n["_meta"]["title"] == title)
        for node in out.values():
            node["inputs"] = {k: [f"batch {title}", 0] if v == [first, 0] else v for k, v in node["inputs"].items()}
        out[f"second {title}"] = {"class_type": "LoadImage", "inputs": {"image": name},
                                  "_meta": {"title": f"Second {title}"}}
        out[f"batch {title}"] = {"class_type": "ImageBatch", "_meta": {"title": f"Both {title}"},
                                 "inputs": {"image1": [first, 0], "image2": [f"second {title}", 0]}}
    return out


def node_id(request: examples.Prompt, class_type: str) -> str:
    return next(k for k, n in request.items() if n["class_type"] == class_type)


def test_a_checkpoint_saved_by_the_server_gives_the_same_picture(lab, good):
    request, reference = good
    loader = node_id(request, "FramePainterLoad")
    saving = {loader: request[loader], "save": {
        "class_type": "FramePainterSaveCheckpoint", "_meta": {"title": "Save"},
        "inputs": {"model": [loader, 0], "framepainter": [loader, 1], "clip_vision": [loader, 2], "vae": [loader, 3],
                   "filename_prefix": "checkpoints/saved"}}}
    lab.server.run(saving)
    (written,) = (lab.server.base / "output" / "checkpoints").glob("saved_*.safetensors")
    path = lab.model_path("saved.safetensors")
    written.replace(path)
    try:
        again = lab.edited(small(request, FramePainterLoad={"model_file": path.name}))
    finally:
        path.unlink()
    assert torch.equal(again, reference)


def test_correspondence_and_matching_nodes_run(lab, good):
    request, _ = good
    loader, sampler = node_id(request, "FramePainterLoad"), node_id(request, "KSampler")
    request = {**request, "matching": {
        "class_type": "FramePainterMatchingAttention", "_meta": {"title": "Matching"},
        "inputs": {"model": [loader, 0], "framepainter": [loader, 1], "semantics": "paper", "strength": 0.5},
    }, "map": {
        "class_type": "FramePainterCorrespondenceMap", "_meta": {"title": "Map"},
        "inputs": {"model": ["matching", 0], "positive": [node_id(request, "FramePainterConditioning"), 0],
                   "latent": [sampler, 0], "picture": [node_id(request, "FramePainterPicture"), 0], "x": 0.25, "y": 0.75,
                   "level": "medium (1/16)"},
    }}
    for output, title in enumerate(("Heat", "Flow")):
        request[title] = {"class_type": "SaveImage", "_meta": {"title": title},
                          "inputs": {"images": ["map", output], "filename_prefix": title}}
    results = lab.run(request)
    heights = {title: results[title][0].shape for title in ("Heat", "Flow")}
    assert heights["Heat"] == (400, 600, 3) and len(heights["Flow"]) == 3, heights
