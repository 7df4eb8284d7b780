"""The dataset command in processes of its own: from videos to a contact sheet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "commands" / "dataset.py"


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "2"})


def test_from_frames_to_a_sheet(pack, tmp_path):
    data, generator = pack("core.data.procedural"), torch.Generator().manual_seed(1)
    settings = data.SceneSettings(48, 64, sprites=(1, 1), texture=5, shift=(0.5, 0.6))
    scenes = pack("core.data.procedural_pairs").textured(data.draw_scenes(1, 14, settings, generator), generator)
    (tmp_path / "videos" / "clip").mkdir(parents=True)
    for n, frame in enumerate(data.render(scenes)[0]):
        Image.fromarray((frame.movedim(0, -1) * 255).round().byte().numpy()).save(tmp_path / "videos" / "clip" / f"{n}.png")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"broken" * 99)
    made = run("videos", tmp_path / "videos", tmp_path / "set", "--width", 64, "--height", 48, "--fps", 8, "--pairs", 2,
               "--flow", "weight-free", "--cpu", "--host", os.environ["FRAMEPAINTER_HOST"])
    assert made.returncode == 0, made.stderr
    assert "2 pairs in 1 shards" in made.stdout and "broken.mp4 cannot be opened" in made.stdout
    shown = run("show", tmp_path / "set", tmp_path / "sheet.png")
    assert shown.returncode == 0 and "2 pairs; shown 0 to 1" in shown.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 7 * 128 and len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


def test_wrong_arguments_are_named(tmp_path):
    for arguments, message in (
            (("procedural", tmp_path / "set", "--sprites", 3, 1), "sprites are 3 to 1"),
            (("show", tmp_path, tmp_path / "a.png"), "is no dataset")):
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
