"""The demo's choice of weights and its filling-in of the example prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import demo
from tools.demo import ModelChoice, choose_model, fill, loader_inputs
from tools.hosting.problem import Problem
from tools.hosting.server import PlainHost


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def single_file(path: Path, parts: tuple[str, ...] = demo.SINGLE_FILE_PARTS) -> Path:
    header = json.dumps({"model.diffusion_model.x": {}, **{f"{part}weight": {} for part in parts}}).encode()
    touch(path).write_bytes(len(header).to_bytes(8, "little") + header)
    return path


@pytest.mark.parametrize("folder", ["diffusion_models", "unet/sub", "framepainter", "checkpoints"])
def test_the_official_files_are_found_across_folders(tmp_path: Path, folder: str) -> None:
    unet = touch(tmp_path / "second" / folder / demo.OFFICIAL_NAME)
    encoder = touch(tmp_path / "first" / "controlnet" / demo.OFFICIAL_ENCODER)
    svd = touch(tmp_path / "second" / "checkpoints" / "SVD_xt_1_1.safetensors")
    dirs = [tmp_path / "missing", tmp_path / "first", tmp_path / "second"]
    assert choose_model(dirs) == ModelChoice(unet, encoder, svd)


def test_official_files_that_are_not_all_there_are_not_used_and_the_rest_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "diffusion_models" / demo.OFFICIAL_NAME)
    choice = choose_model([tmp_path])
    assert choice.path is None
    assert demo.OFFICIAL_ENCODER in choice.note and "Stable Video Diffusion" in choice.note
    touch(tmp_path / "framepainter" / demo.OFFICIAL_ENCODER)
    assert demo.OFFICIAL_ENCODER not in choose_model([tmp_path]).note


@pytest.mark.parametrize("folder", ["framepainter", "diffusion_models", "checkpoints/mine"])
def test_one_file_with_everything_inside_is_found(tmp_path: Path, folder: str) -> None:
    path = single_file(tmp_path / folder / "FramePainter-fp16.safetensors")
    assert choose_model([tmp_path]) == ModelChoice(path)


def test_other_files_are_no_weights(tmp_path: Path) -> None:
    for name in (
        "diffusion_models/svd.safetensors",
        "unet/framepainter.txt",
        "unet/framepainter.safetensors",
    ):
        touch(tmp_path / name)
    (tmp_path / "unet" / "framepainter.safetensors").write_bytes(b"\xff" * 50)
    single_file(tmp_path / "vae" / "framepainter.safetensors")
    single_file(tmp_path / "checkpoints" / "framepainter_unet.safetensors", ("framepainter.matching.",))
    assert choose_model([tmp_path]) == ModelChoice(None)


def prompt() -> dict[str, Any]:
    def node(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}

    return {
        "1": node("FramePainterPicture", "Picture", image="a.png"),
        "2": node("FramePainterPicture", "Sketch", image="b.png"),
        "3": node(demo.LOADER, "Load", model_file="x.safetensors", weight_dtype="default"),
        "4": node("SaveImage", "Edited picture", images=["3", 0]),
        "5": node("SaveImage", "Contact sheet", images=["3", 0]),
    }


INSIDE = "(in the model file)"
# The two forms in which servers describe a choice.
OLD = {
    "model_file": [["other.safetensors", "sub\\m.safetensors"], {}],
    "encoder_file": [[INSIDE, "e.safetensors"], {}],
    "clip_and_vae": [[INSIDE, "a/svd.safetensors"], {}],
}
NEW = {name: ["COMBO", {"options": options}] for name, (options, _) in OLD.items()}


@pytest.mark.parametrize("definitions", [OLD, NEW])
def test_files_are_chosen_as_the_loader_lists_them(definitions: dict[str, Any]) -> None:
    info = {"input": {"required": definitions, "optional": {"weight_dtype": [["default"], {}]}}}
    assert loader_inputs(info, "m.safetensors", "e.safetensors", "svd.safetensors") == {
        "model_file": "sub\\m.safetensors",
        "encoder_file": "e.safetensors",
        "clip_and_vae": "a/svd.safetensors",
    }
    single = loader_inputs(info, "other.safetensors", None, None)
    assert (single["encoder_file"], single["clip_and_vae"]) == (INSIDE, INSIDE)
    with pytest.raises(Problem, match=r"encoder_file of FramePainterLoad does not offer none\.safetensors"):
        loader_inputs(info, "m.safetensors", "none.safetensors", None)


def test_the_prompt_is_filled_by_title_and_the_original_kept() -> None:
    original = prompt()
    filled = fill(original, {"Picture": "p.png", "Sketch": "s.png"}, {"model_file": "m", "encoder_file": "e"})
    assert filled["1"]["inputs"] == {"image": "p.png"}
    assert filled["2"]["inputs"] == {"image": "s.png"}
    assert filled["3"]["inputs"] == {"model_file": "m", "encoder_file": "e", "weight_dtype": "default"}
    assert original == prompt()


def test_a_prompt_without_a_titled_node_says_which() -> None:
    broken = prompt()
    del broken["2"]
    with pytest.raises(Problem, match="FramePainterPicture node titled “Sketch”"):
        fill(broken, {"Picture": "p", "Sketch": "s"}, {})


class FakeServer:
    """Stands in for a ComfyUI that lists what lies in its models folder and answers with known bytes."""

    prompts: list[dict[str, Any]] = []

    def __init__(self, host: object, pack: Path, base: Path, **options: Any) -> None:
        self.pack, self.log_path = pack, base / "server.log"

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def object_info(self) -> dict[str, Any]:
        names = sorted(path.name for path in self.pack.rglob("*.safetensors"))
        inputs = {name: ["COMBO", {"options": [INSIDE, *names]}] for name in OLD}
        return {demo.LOADER: {"input": {"required": inputs}}}

    def upload(self, path: Path, name: str) -> dict[str, str]:
        return {"name": name}

    def run(self, filled: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.prompts.append(filled)
        return {"outputs": {key: {"images": [{"filename": key}]} for key in ("4", "5")}}

    def fetch(self, image: dict[str, str]) -> bytes:
        return b"image of node " + image["filename"].encode()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repo = tmp_path / "repo"
    for example in (demo.SMALL, demo.OFFICIAL):
        path = repo / demo.WORKFLOWS / f"{example.workflow}.json"
        touch(path).write_text(json.dumps(prompt()), encoding="utf-8")
        touch(repo / demo.INPUTS / f"{example.picture}.jpg").write_bytes(example.picture.encode())
        if example.sketch:
            touch(repo / demo.INPUTS / f"{example.sketch}.png").write_bytes(example.sketch.encode())
    touch(repo / "models" / demo.SHIPPED)
    monkeypatch.setattr(demo, "Server", FakeServer)
    monkeypatch.setattr(FakeServer, "prompts", [])
    return repo


def run_demo(repo: Path) -> tuple[dict[str, Path], str]:
    said: list[str] = []
    host = PlainHost(repo / "host", Path(sys.executable))
    paths = demo.run(repo, host, cpu=True, models=repo / ".host" / "models", say=said.append)
    return paths, "\n".join(said)


def test_the_demo_runs_the_small_model_and_names_its_results(example: Path) -> None:
    paths, said = run_demo(example)
    assert {key: path.read_bytes() for key, path in paths.items()} == {
        "source": b"scene",
        "edited": b"image of node 4",
        "contact_sheet": b"image of node 5",
    }
    assert all(str(path.resolve()) in said for path in paths.values())
    assert paths["source"].name == "source.jpg"
    assert demo.SHIPPED in said and demo.OFFICIAL_NAME in said
    inputs = [FakeServer.prompts[0][key]["inputs"] for key in ("1", "2", "3")]
    assert [inputs[0]["image"], inputs[1]["image"]] == ["framepainter_scene.jpg", "b.png"]  # its strokes are in the workflow
    assert (inputs[2]["model_file"], inputs[2]["encoder_file"]) == (demo.SHIPPED, INSIDE)


def test_the_demo_prefers_real_weights(example: Path) -> None:
    own = single_file(example / ".host" / "models" / "framepainter" / "framepainter_mine.safetensors")
    paths, said = run_demo(example)
    assert str(own) in said and demo.SHIPPED not in said
    assert paths["source"].read_bytes() == b"picture" and paths["sketch"].read_bytes() == b"sketch"
    pictures = [FakeServer.prompts[0][key]["inputs"]["image"] for key in ("1", "2")]
    assert pictures == ["framepainter_picture.jpg", "framepainter_sketch.png"]
    assert FakeServer.prompts[0]["3"]["inputs"]["model_file"] == own.name


def test_missing_examples_are_named(example: Path) -> None:
    (example / demo.INPUTS / "scene.jpg").unlink()
    with pytest.raises(Problem, match="scene is missing"):
        run_demo(example)
    (example / demo.WORKFLOWS / "framepainter_small.json").unlink()
    with pytest.raises(Problem, match=r"framepainter_small\.json"):
        run_demo(example)
