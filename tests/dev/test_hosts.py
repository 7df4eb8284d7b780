"""Which ComfyUI and which Python dev.py picks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tools.hosting import hosts
from tools.hosting.hosts import PythonFacts
from tools.hosting.problem import Problem

COMPLETE = PythonFacts("3.11.7", "2.11.0", "3.13.2", "25.0")
BARE = PythonFacts("3.11.7", "", "", "25.0")


def make_python(directory: Path) -> Path:
    python = hosts.venv_python(directory)
    python.parent.mkdir(parents=True)
    python.write_text("", encoding="utf-8")
    return python


def knows(**facts: PythonFacts | None):
    """An inspection that knows some paths (by their text) and takes all others for complete."""
    return lambda python: facts.get(str(python), COMPLETE)


def test_environment_variable_wins_over_everything(comfyui: Path, tmp_path: Path) -> None:
    python = make_python(comfyui / ".venv")
    around = tmp_path / "Other"
    shutil.copytree(comfyui, around)
    repo = around / "custom_nodes" / "pack"
    repo.mkdir(parents=True)
    choice = hosts.choose(repo, {"COMFYUI_DIR": str(comfyui)}, tmp_path / "pinned", inspect=knows())
    assert (choice.origin, choice.directory, choice.python) == ("environment", comfyui, python)


def test_a_surrounding_comfyui_is_used(comfyui: Path, tmp_path: Path) -> None:
    python = make_python(comfyui / "venv")
    repo = comfyui / "custom_nodes" / "pack"
    repo.mkdir(parents=True)
    choice = hosts.choose(repo, {}, tmp_path / "pinned", inspect=knows())
    assert (choice.origin, choice.directory, choice.python) == ("installed", comfyui, python)


def test_a_custom_nodes_folder_outside_a_comfyui_means_the_pinned_one(tmp_path: Path) -> None:
    repo = tmp_path / "somewhere" / "custom_nodes" / "pack"
    repo.mkdir(parents=True)
    choice = hosts.choose(repo, {"COMFYUI_DIR": "  "}, tmp_path / "pinned", inspect=knows())
    assert (choice.origin, choice.directory) == ("pinned", tmp_path / "pinned")


def test_a_folder_that_is_no_comfyui_is_refused_with_what_is_missing(comfyui: Path, tmp_path: Path) -> None:
    (comfyui / "nodes.py").unlink()
    shutil.rmtree(comfyui / "comfy")
    with pytest.raises(Problem, match=r"has no nodes\.py, comfy\. Name the folder"):
        hosts.choose(tmp_path, {"COMFYUI_DIR": str(comfyui)}, tmp_path / "pinned", inspect=knows())
    with pytest.raises(Problem, match="not a folder"):
        hosts.choose(tmp_path, {"COMFYUI_DIR": str(tmp_path / "none")}, tmp_path / "pinned", inspect=knows())


def test_order_of_pythons(comfyui: Path, tmp_path: Path) -> None:
    active = make_python(tmp_path / "active")
    environ = {"COMFYUI_DIR": str(comfyui), "VIRTUAL_ENV": str(tmp_path / "active")}

    def chosen(**extra: str) -> Path:
        return hosts.choose(tmp_path, {**environ, **extra}, tmp_path / "p", inspect=knows()).python

    assert chosen() == active
    portable = tmp_path / "python_embeded" / "python.exe"
    portable.parent.mkdir()
    portable.write_text("", encoding="utf-8")
    assert chosen() == portable
    venv = make_python(comfyui / "venv")
    assert chosen() == venv
    dot_venv = make_python(comfyui / ".venv")
    assert chosen() == dot_venv
    assert chosen(COMFYUI_PYTHON=str(active)) == active


def test_environments_without_torch_are_passed_over(comfyui: Path, tmp_path: Path) -> None:
    bare, broken = make_python(comfyui / ".venv"), make_python(comfyui / "venv")
    inspect = knows(**{str(bare): BARE, str(broken): None})
    choice = hosts.choose(tmp_path, {"COMFYUI_DIR": str(comfyui)}, tmp_path / "p", inspect=inspect)
    assert choice.python == Path(sys.executable)


def test_no_python_that_fits_names_the_remedy_and_what_was_tried(comfyui: Path, tmp_path: Path) -> None:
    broken = make_python(comfyui / ".venv")
    inspect = knows(**{str(broken): None, sys.executable: BARE})
    with pytest.raises(Problem) as caught:
        hosts.choose(tmp_path, {"COMFYUI_DIR": str(comfyui)}, tmp_path / "p", inspect=inspect)
    text = str(caught.value)
    assert "COMFYUI_PYTHON" in text
    assert f"{broken} (does not run)" in text
    assert f"{sys.executable} (has no torch" in text


@pytest.mark.parametrize(("facts", "words"), [(None, "does not run"), (BARE, "has no torch")])
def test_a_named_python_is_not_silently_replaced(
    comfyui: Path, facts: PythonFacts | None, words: str
) -> None:
    make_python(comfyui / ".venv")
    environ = {"COMFYUI_DIR": str(comfyui), "COMFYUI_PYTHON": "/opt/somewhere/python"}
    named = str(Path("/opt/somewhere/python").absolute())
    with pytest.raises(Problem, match=words):
        hosts.choose(comfyui, environ, comfyui, inspect=knows(**{named: facts}))


def test_inspecting_a_real_python_and_a_broken_one(tmp_path: Path) -> None:
    facts = hosts.inspect_python(Path(sys.executable))
    assert facts is not None and facts.minor == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert hosts.inspect_python(tmp_path / "missing") is None
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho hello\n", encoding="utf-8")
    os.chmod(fake, 0o755)
    assert hosts.inspect_python(fake) is None


def test_versions(comfyui: Path) -> None:
    assert hosts.comfyui_version(comfyui) == "9.8.7"
    (comfyui / "comfyui_version.py").unlink()
    assert hosts.comfyui_version(comfyui) == "unknown"
    (comfyui / "pyproject.toml").write_text(
        '[project]\nname = "ComfyUI"\nversion = "1.2.3"\n', encoding="utf-8"
    )
    assert hosts.comfyui_version(comfyui) == "1.2.3"
