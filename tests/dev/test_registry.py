"""What the registry package holds is enough for those who have nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from framepainter_tests.missing import missing

ROOT = Path(__file__).resolve().parents[2]


def tracked(*options: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        missing("this is no git checkout")
    return set(filter(None, done.stdout.split("\0")))


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The files that are published, alone in a folder."""
    folder = tmp_path_factory.mktemp("package")
    for name in tracked() - tracked("-c", "-i", "--exclude-from=.comfyignore"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_what_is_left_out(package):
    assert not (package / "tests").exists() and not (package / "dev.py").exists()
    assert (package / "workflows" / "framepainter_small.json").is_file() and any((package / "models").glob("*.safetensors"))
    assert sum(p.stat().st_size for p in package.rglob("*") if p.is_file()) < 60e6


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "commands").glob("*.py")))
def test_the_commands_run_without_the_rest_of_the_repository(package, name):
    done = subprocess.run([sys.executable, str(package / "commands" / name), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
