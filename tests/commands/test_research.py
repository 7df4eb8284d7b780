"""The researcher's route of docs/research.md: its own commands, with fewer steps, from videos to numbers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
# One process for all lines, so that ComfyUI is imported once.
RUNNER = """
import importlib.util, json, sys
for script, arguments in json.load(sys.stdin):
    print("$", script, *arguments, flush=True)
    spec = importlib.util.spec_from_file_location("command", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = module.main(arguments)
    if code:
        sys.exit(f"{script} ended with {code}")
"""


def lines() -> list[list[str]]:
    """The commands of the page's first block, made short."""
    page = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    short = block.replace("--steps 3000", "--steps 2 --batch 2").replace("--steps 25", "--steps 2")
    return [shlex.split(line)[1:] for line in short.splitlines()]


@pytest.fixture(scope="module")
def result(pack, tmp_path_factory):
    """The folder in which the page's commands have run on two videos of moving shapes."""
    folder = tmp_path_factory.mktemp("research")
    data, generator = pack("core.data.procedural"), torch.Generator().manual_seed(1)
    settings = data.SceneSettings(96, 96, sprites=(1, 1), texture=5, shift=(0.3, 0.5))
    scenes = pack("core.data.procedural_pairs").textured(data.draw_scenes(2, 10, settings, generator), generator)
    for name, frames in zip("ab", data.render(scenes), strict=True):
        (folder / "my_videos" / name).mkdir(parents=True)
        for n, frame in enumerate(frames):
            Image.fromarray((frame.movedim(0, -1) * 255).round().byte().numpy()).save(folder / "my_videos" / name / f"{n}.png")
    commands = [[str(ROOT / script), [a if not a.startswith("models/") else str(ROOT / a) for a in arguments]]
                for script, *arguments in lines()]
    commands[0][1] += ["--flow", "weight-free", "--fps", "8", "--pairs", "2", "--static-camera", "0.3"]
    done = subprocess.run([sys.executable, "-c", RUNNER], input=json.dumps(commands), capture_output=True, text=True, timeout=600,
                          cwd=folder, env={**os.environ, "COMFYUI_DIR": os.environ["FRAMEPAINTER_HOST"], "FRAMEPAINTER_CPU": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_every_step_ends_in_numbers(result):
    folder, done = result
    found = json.loads((folder / "result.json").read_text())
    told = {"mse", "ssim", "moved_mse", "disoccluded_mse", "static_mse"}
    for row in ("edited", "unedited source"):
        assert told <= found["summary"][row].keys() and found["summary"][row]["moved_mse"]["count"] > 0
    names = {kind: {p.stem for p in (folder / "held_out" / kind).iterdir() if p.suffix in (".png", ".json") and p.stem != "edit"}
             for kind in ("edited", "truth", "source", "moved", "disoccluded", "sketch", "coarse", "drags")}
    assert names["truth"] and all(found == names["truth"] for found in names.values())
    videos = [{json.loads(line)["source"] for line in (folder / part / "journal.jsonl").read_text().splitlines()[1:]}
              for part in ("pairs_train", "pairs_held_out")]
    assert all(videos) and not videos[0] & videos[1], "a video in both parts"


def test_another_model_is_not_mixed_into_a_folder_of_edits(result):
    folder, _ = result
    before = {p: p.read_bytes() for p in (folder / "held_out" / "edited").iterdir()}
    given = ("--dataset pairs_held_out --steps 3 --model runs/sketch/framepainter.safetensors --out held_out/edited --cpu "
             f"--host {os.environ['FRAMEPAINTER_HOST']}")
    command = [sys.executable, str(ROOT / "commands" / "edit.py"), *given.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 1 and "holds edits made otherwise (steps was 2, now it is 3)" in done.stderr
    assert before == {p: p.read_bytes() for p in before}
