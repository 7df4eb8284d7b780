"""One running ComfyUI with this pack, a small random network and the example inputs, for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from framepainter_tests import examples
from framepainter_tests.browser import open_browser
from framepainter_tests.missing import missing
from torch import Tensor


@pytest.fixture(scope="session")
def server_tools(tool):
    """The module tools/hosting/server.py."""
    return tool("hosting.server")


@pytest.fixture(scope="session")
def server(tmp_path_factory, server_tools, checkpoint):
    base = tmp_path_factory.mktemp("comfyui")
    models = base / "models" / "framepainter"
    models.mkdir(parents=True)
    shutil.copy(checkpoint, models / examples.MODEL)
    (base / "input").mkdir()
    (base / "custom_nodes").mkdir()
    shutil.copy(examples.ROOT / "tests" / "support" / "image_models.py", base / "custom_nodes")
    for name, source in examples.INPUTS.items():
        shutil.copy(source, base / "input" / name)
    with server_tools.Server.from_environment(examples.ROOT, base) as running:
        yield running


@dataclass
class Lab:
    """Runs prompts on the server and looks at the results."""

    server: Any
    tools: Any

    def run(self, prompt: examples.Prompt, timeout: float = 180.0) -> dict[str, list[Tensor]]:
        """Node title -> pictures that it saved. Samples again even if the server holds the result already."""
        prompt = examples.again(prompt)
        entry = self.server.run(prompt, timeout)
        return {node["_meta"]["title"]: [examples.pixels(self.server.fetch(i)) for i in self.tools.images(entry, key)]
                for key, node in prompt.items() if node["class_type"] == "SaveImage"}

    def edited(self, prompt: examples.Prompt, timeout: float = 180.0) -> Tensor:
        """The one edited picture."""
        (picture,) = self.run(prompt, timeout)["Edited picture"]
        return picture

    def forget(self) -> None:
        """Unload models and drop all cached results. The server does so before it takes up a prompt or just after that prompt,
        in any case before it takes up the next one; so one is run here."""
        self.server.free()
        self.server.run({"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
                         "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})

    def upload(self, folder: Path, name: str, picture: Tensor) -> str:
        """Put a picture into the input folder; its name for Load Image."""
        return self.server.upload(examples.save(folder / name, picture))["name"]

    def model_path(self, name: str) -> Path:
        return self.server.base / "models" / "framepainter" / name


@pytest.fixture(scope="session")
def lab(server, server_tools) -> Lab:
    return Lab(server, server_tools)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def good(lab) -> tuple[examples.Prompt, Tensor]:
    """The small example and its edited picture, made by a server that had done nothing else."""
    prompt = examples.only_edited(examples.small(examples.prompt()))
    return prompt, lab.edited(prompt)


@pytest.fixture(scope="session")
def comfy_cli(server, tmp_path_factory):
    """Run comfy-cli against the server: comfy_cli("run", ...) -> CompletedProcess."""
    folder = os.environ.get("FRAMEPAINTER_TOOLS_BIN", "")
    program = shutil.which("comfy", path=folder) if folder else None
    if program is None:
        missing("comfy-cli is not there: run the suite with `python dev.py test`")
    home = str(tmp_path_factory.mktemp("home"))
    environ = {**os.environ, "DO_NOT_TRACK": "1", "HOME": home, "USERPROFILE": home, "APPDATA": home,
               "XDG_CONFIG_HOME": home, "PYTHONIOENCODING": "utf-8"}

    def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        place = ["--host", "127.0.0.1", "--port", str(server.port)]
        return subprocess.run([program, "--skip-prompt", command, *arguments, *place], env=environ, cwd=home,
                              stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=300)

    return call
