"""A motion LoRA trained on a real server: its file loads by ComfyUI's own node, and the clip made with it moves as the truth."""

from __future__ import annotations

import shutil

import pytest
import torch
from framepainter_tests import examples

SCENE = {"height": 96, "width": 96, "sprites": (1, 2), "radius": (0.32, 0.45), "shift": (0.2, 0.5), "texture": 3, "contrast": 0.22}
SEED = 935        # of workflows/inputs/clip.mp4, which is this scene without its second sprite
MOVING = 4.0      # pixels of true flow from which a place counts
SEEDS = (1, 2)    # of the sampled clips' noise; the example's is the first
STEPS = 100


@pytest.fixture(scope="module")
def prompt(server) -> examples.Prompt:
    shutil.copy(examples.WORKFLOWS / "inputs" / "clip.mp4", server.base / "input" / "framepainter_clip.mp4")
    return examples.prompt("i2vedit_motion_lora")


@pytest.fixture(scope="module")
def flow_error(pack):
    """Mean end-point error over the moving object: flow from each later frame to the first, measured against the truth."""
    procedural, flow = pack("core.data.procedural"), pack("core.flow.weight_free")
    scenes = procedural.draw_scenes(1, 4, procedural.SceneSettings(**SCENE), torch.Generator().manual_seed(SEED))
    scenes = scenes._replace(present=torch.tensor([[True, False]]))
    true = [procedural.correspondence(scenes, 0, t) for t in (1, 2, 3)]

    def measure(frames: torch.Tensor) -> float:
        pictures = frames.float().movedim(-1, 1) / 255
        total = count = 0.0
        for t, c in enumerate(true, 1):
            moving = (c.owner > 0) & c.visible & (c.flow.norm(dim=1) > MOVING)
            total += float((flow.weight_free_flow(pictures[t:t + 1], pictures[:1]) - c.flow).norm(dim=1)[moving].sum())
            count += int(moving.sum())
        return total / count

    rendered = procedural.render(scenes)[0].movedim(1, -1) * 255
    assert measure(rendered) < 1, "the measure itself"
    return measure, rendered


def test_the_lora_teaches_the_motion_and_loads_by_the_hosts_own_node(lab, prompt, flow_error):
    measure, rendered = flow_error
    examples.inputs(prompt, "FramePainterTrainMotionLora")["steps"] = STEPS
    without, with_lora, curves = [], [], []
    for seed in SEEDS:
        for node in prompt.values():
            if node["class_type"] == "KSampler":
                node["inputs"]["seed"] = seed
        results = lab.run(prompt)
        without.append(torch.stack(results["Without LoRA"]))
        with_lora.append(torch.stack(results["With LoRA"]))
        curves += results["Loss curve"]  # older servers do not list again what they have already
    assert without[0].shape == with_lora[0].shape == (4, 96, 96, 3)
    assert (without[0][0].float() - rendered[0]).abs().mean() < 10, "not the clip's first frame"
    assert curves[0].float().std() > 5
    errors = [sum(map(measure, clips)) / len(clips) for clips in (without, with_lora)]
    assert errors[1] < 0.5 * errors[0], errors
    assert errors[1] < 0.85 * measure(without[0][:1].expand(4, -1, -1, -1)), "no better than standing still"

    written = sorted((lab.server.base / "output" / "loras").glob("motion_*.safetensors"))
    loras = lab.server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    shutil.copy(written[-1], loras / "learned_motion.safetensors")
    model = examples.inputs(prompt, "KSampler", "Sample without LoRA")["model"]
    short = {k: n for k, n in prompt.items() if n["class_type"] not in
             ("FramePainterTrainMotionLora", "FramePainterSaveMotionLora", "CreateVideo",
              "FramePainterSaveVideo")
             and n["_meta"]["title"] != "Loss curve"}
    short["host's"] = {"class_type": "LoraLoaderModelOnly", "_meta": {"title": "Load LoRA"}, "inputs": {
        "model": model, "lora_name": "learned_motion.safetensors", "strength_model": 1.0}}
    examples.inputs(short, "KSampler", "Sample with LoRA")["model"] = ["host's", 0]
    try:
        loaded = lab.run(short)
    finally:
        (loras / "learned_motion.safetensors").unlink()
    assert torch.equal(torch.stack(loaded["Without LoRA"]), without[-1])
    assert torch.equal(torch.stack(loaded["With LoRA"]), with_lora[-1])
    assert not torch.equal(with_lora[-1], without[-1])
