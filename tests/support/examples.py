"""The example workflows at a size for tests, and what a server made of them."""

from __future__ import annotations

import copy
import io
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
NAMES = sorted(p.stem for p in WORKFLOWS.glob("*.json"))
PICTURE, SKETCH = "framepainter_picture.jpg", "framepainter_sketch.png"
INPUTS = {f"framepainter_{path.name}": path for path in sorted((WORKFLOWS / "inputs").iterdir()) if path.suffix != ".md"}
MODEL, INSIDE = "small.safetensors", "(in the model file)"
# Node type -> inputs that make a run short; all else stays as the example has it.
SMALL = {
    "FramePainterConditioning": {"width": 128, "height": 128},
    "KSampler": {"steps": 2},
    "FramePainterInvertEDM": {"steps": 2},
    "FramePainterInvertDDIM": {"steps": 3},
    "FramePainterTuneOnVideo": {"steps": 2},
    "FramePainterPropagateEdit": {"steps": 2, "lora_steps": 2},
    "FramePainterProceduralDataset": {"count": 8},
    "FramePainterTrainMotionLora": {"steps": 3},
    "FramePainterTrain": {"steps": 3, "batch": 2, "preview_every": 3},
}
# Stands in for the authors' files; the small models that come with the pack run as they are.
RANDOM = {"model_file": MODEL, "encoder_file": INSIDE, "clip_and_vae": INSIDE}

Prompt = dict[str, Any]
_RUNS = itertools.count(1)


def prompt(name: str = "framepainter_sketch") -> Prompt:
    """The API form of an example as shipped."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def inputs(prompt: Prompt, class_type: str, title: str | None = None) -> dict[str, Any]:
    """The inputs of the only node of a type (and title), to be read or changed."""
    found = [n for n in prompt.values()
             if n["class_type"] == class_type and title in (None, n.get("_meta", {}).get("title"))]
    assert len(found) == 1, f"{len(found)} nodes {class_type} {title or ''}"
    return found[0]["inputs"]


def small(prompt: Prompt, **changes: dict[str, Any]) -> Prompt:
    """A copy that runs in seconds. `changes`: node type, or the title Picture or Sketch -> inputs to set besides."""
    out = copy.deepcopy(prompt)
    for node in out.values():
        node["inputs"].update(SMALL.get(node["class_type"], {}))
        if node["inputs"].get("model_file", "").startswith("unet_"):
            node["inputs"].update(RANDOM)
    for key, values in changes.items():
        target = inputs(out, "FramePainterPicture", key) if key in ("Picture", "Sketch") else inputs(out, key)
        target.update(values)
    return out


def again(prompt: Prompt) -> Prompt:
    """A copy that the host has no cached result for, from the sampler on, though the result is the same.

    What comes before stays cached, the loaded and patched model above all: leftovers of a failed run would show.
    """
    out = copy.deepcopy(prompt)
    for node in (n for n in out.values() if n["class_type"] == "KSampler"):
        node["inputs"]["denoise"] = 1.0 - 1e-7 * next(_RUNS)  # the host takes all above 0.9999 for 1
    return out


def only_edited(prompt: Prompt) -> Prompt:
    """Without the contact sheet: a quarter of the pixels to write."""
    drop = {"ImageStitch", "SaveImage"}
    return {k: n for k, n in prompt.items() if n["class_type"] not in drop or n["_meta"]["title"] == "Edited picture"}


def small_canvas(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The canvas form of an example, made small as `small` does. `definitions`: the server's /object_info."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for node in every_node(workflow):
        values = SMALL.get(node["type"], {})
        if str((node.get("widgets_values") or [""])[0]).startswith("unet_"):
            values = RANDOM
        for field, value in values.items():
            node["widgets_values"][widget_names(definitions[node["type"]]).index(field)] = value
    return workflow


def every_node(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a canvas file and of its subgraphs."""
    return [*workflow["nodes"], *(n for graph in workflow.get("definitions", {}).get("subgraphs", []) for n in graph["nodes"])]


def without_subgraphs(prompt: Prompt) -> Prompt:
    """A queued prompt with the nodes of subgraphs by their own ids: "19:3" as "3"."""
    def own(key: str) -> str:
        return key.rpartition(":")[2]

    out = {own(key): {**node, "inputs": {f: [own(v[0]), v[1]] if isinstance(v, list) else v for f, v in node["inputs"].items()}}
           for key, node in prompt.items()}
    assert len(out) == len(prompt), "two nodes of one id"
    return out


def widget_names(definition: dict[str, Any]) -> list[str]:
    """A node's widgets in the order of a canvas file's widgets_values."""
    out = []
    for name, (kind, *options) in {**definition["input"].get("required", {}),
                                   **definition["input"].get("optional", {})}.items():
        if isinstance(kind, list) or kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"):
            out.append(name)
            if options and options[0].get("control_after_generate"):
                out.append("control_after_generate")
    return out


def pixels(data: bytes | Path) -> Tensor:
    """A picture file as (H, W, 3) uint8. Files of equal pictures differ in their metadata, so compare these."""
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).reshape(
            image.height, image.width, 3)


def save(path: Path, picture: Tensor) -> Path:
    """Write (H, W, 3 or 4) uint8 as a PNG."""
    height, width, channels = picture.shape
    mode = {3: "RGB", 4: "RGBA"}[channels]
    Image.frombytes(mode, (width, height), picture.contiguous().numpy().tobytes()).save(path, compress_level=1)
    return path
