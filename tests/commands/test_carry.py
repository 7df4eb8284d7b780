"""commands/carry.py: what it writes, and how it refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder of three frames in which a red square moves, and its first frame with the square green."""
    folder = tmp_path_factory.mktemp("carry")
    ground = np.random.default_rng(0).integers(90, 130, (48, 64, 3), np.uint8)
    (folder / "in").mkdir()
    for i in range(3):
        frame = ground.copy()
        frame[10:30, 8 + 4 * i:28 + 4 * i] = (200, 40, 30)
        Image.fromarray(frame).save(folder / "in" / f"{i}.png")
        frame[10:30, 8 + 4 * i:28 + 4 * i] = (20, 180, 40)
        Image.fromarray(frame).save(folder / f"truth{i}.png")
    Image.fromarray(ground[1:]).save(folder / "small.png")
    return folder


def arguments(folder: Path, **other) -> list[str]:
    given = {"--video": folder / "in", "--keyframe": ("0", folder / "truth0.png"), "--out": folder / "out", **other}
    return [str(x) for name, value in given.items() for x in (name, *(value if isinstance(value, tuple) else (value,)))]


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("carry_command", ROOT / "commands" / "carry.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_and_a_lossless_video_come_out_without_comfyui(command, material):
    import av

    given = arguments(material, **{"--out": material / "out", "--confidence": material / "sure", "--flow": "own"})
    done = subprocess.run([sys.executable, str(ROOT / "commands" / "carry.py"), *given], capture_output=True, text=True,
                          timeout=300, cwd=material, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert done.returncode == 0, done.stderr
    assert "s a frame" in done.stdout
    assert command.main(arguments(material, **{"--out": material / "out.mkv", "--flow": "own"})) == 0
    with av.open(str(material / "out.mkv")) as file:
        video = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    for i in range(3):
        result, truth, plain = (pixels(material / name) for name in (f"out/{i:05d}.png", f"truth{i}.png", f"in/{i}.png"))
        assert np.square(result - truth).sum() < 0.05 * np.square(plain - truth).sum()
        assert np.array_equal(video[i], result)
        assert Image.open(material / "sure" / f"{i:05d}.png").size == (64, 48)
    assert sorted(p.name for p in (material / "out").iterdir()) == [f"{i:05d}.png" for i in range(3)]


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(command, material, monkeypatch):
    """Stopped while writing frame 2; what is written stays as it is, and the rest is as of a run that was not stopped."""
    (material / "stopped").mkdir()
    given = arguments(material, **{"--out": material / "stopped", "--flow": "own"})
    files = command.open_core()("carry.files")
    write, numbers = files.PictureWriter.write, []

    def stop(self, number, picture):
        numbers.append(number)
        if numbers == [0, 1, 2]:
            raise KeyboardInterrupt
        write(self, number, picture)

    monkeypatch.setattr(files.PictureWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        command.main(given)
    assert command.main(given) == 0
    assert numbers == [0, 1, 2, 2]
    monkeypatch.undo()
    assert command.main(arguments(material, **{"--out": material / "whole", "--flow": "own"})) == 0
    for i in range(3):
        assert (material / "stopped" / f"{i:05d}.png").read_bytes() == (material / "whole" / f"{i:05d}.png").read_bytes()
    assert not (material / "stopped" / ".carry").exists()


@pytest.mark.parametrize(("wrong", "says"), [
    ({"--video": "missing.mp4"}, "missing.mp4"),
    ({"--keyframe": ("7", "truth0.png")}, "0 to 2"),
    ({"--keyframe": ("one", "truth0.png")}, "'one'"),
    ({"--keyframe": ("0", "small.png")}, "64 x 47"),
    ({"--keyframe": ("0", "none.png")}, "none.png"),
    ({"--mask": "small.png"}, "64 x 47"),
    ({"--out": "out.xyz"}, "out.xyz"),
    ({"--out": "in"}, "--video"),
    ({"--flow": "raft", "--raft": "truth0.png"}, "truth0.png"),
    ({"--flow": "magic"}, "magic"),
])
def test_bad_input_is_one_line_and_code_2(command, material, monkeypatch, capsys, wrong, says):
    monkeypatch.chdir(material)
    try:
        code = command.main(arguments(material, **wrong))
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr().err
    assert code == 2 and told.count("\n") == 1 and says in told, told
