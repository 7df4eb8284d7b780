"""The demo: the sketch-edit example workflow, run headless on a real picture and sketch."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tools.problem import Problem
from tools.server import HostLike, Server, ServerProblem, free_port, images, port_is_free
from tools.steps import Say, write_atomically

WORKFLOW = Path("workflows") / "api" / "framepainter_sketch.json"
INPUTS = Path("workflows") / "inputs"
RESULTS = "demo_output"
LOADER = "FramePainterLoad"
# The folders in which the loader looks for each of its files; `unet` is an old name of `diffusion_models`.
MODEL_FOLDERS = ("framepainter", "diffusion_models", "unet", "checkpoints")
ENCODER_FOLDERS = ("framepainter", "controlnet", "diffusion_models", "unet")
SVD_FOLDERS = ("checkpoints", "framepainter")
OFFICIAL_NAME = "unet_diffusion_pytorch_model.safetensors"
OFFICIAL_ENCODER = "encoder_diffusion_pytorch_model.safetensors"
RANDOM_NAME = "framepainter_random_demo.safetensors"
RANDOM_NOTICE = f"""\
Weights: RANDOM. No FramePainter weights were found, so the edited picture is noise: only the way through the
         nodes is real, at a small size and in few steps. For a real edit, put under {{models}}
         or {{own}}:
             {OFFICIAL_NAME} into framepainter,
             {OFFICIAL_ENCODER} into framepainter,
             a Stable Video Diffusion checkpoint (svd...) into checkpoints."""
# What a file with everything inside holds besides the UNet: the control encoder, the VAE, CLIP vision.
SINGLE_FILE_PARTS = ("framepainter.encoder.", "first_stage_model.", "conditioner.embedders.")
SHORT_RUN = {"width": 256, "height": 192, "steps": 4}
MAX_HEADER_BYTES = 100_000_000
RUN_TIMEOUT_S = 3600.0
USUAL_PORT = 8188

Kind = Literal["official", "shipped", "random"]


@dataclass(frozen=True)
class ModelChoice:
    """The weights the demo runs on. Of random ones the path is None until the file has been written.

    The authors' release is a UNet file and an encoder file, and takes CLIP vision and VAE from a Stable Video
    Diffusion checkpoint; `encoder` and `svd` are None when everything is inside the one file. `note` says
    why weights that were found are not used.
    """

    kind: Kind
    path: Path | None
    encoder: Path | None = None
    svd: Path | None = None
    note: str = ""


def choose_model(models_dirs: Iterable[Path], shipped_dir: Path | None = None) -> ModelChoice:
    """FramePainter weights in a models folder, else a small file shipped in the repo, else random."""
    found = [directory for directory in models_dirs if directory.is_dir()]
    note = ""
    unet = _first(found, MODEL_FOLDERS, lambda path: path.name == OFFICIAL_NAME)
    if unet is not None:
        encoder = _first(found, ENCODER_FOLDERS, lambda path: path.name == OFFICIAL_ENCODER)
        svd = _first(found, SVD_FOLDERS, _is_svd)
        if encoder is not None and svd is not None:
            return ModelChoice("official", unet, encoder, svd)
        wanted = {OFFICIAL_ENCODER: encoder, "a Stable Video Diffusion checkpoint (svd...)": svd}
        missing = " and ".join(name for name, path in wanted.items() if path is None)
        note = f"{unet} was found, but not what it needs beside it: {missing}."
    single = _first(found, MODEL_FOLDERS, _is_single_file)
    if single is not None:
        return ModelChoice("official", single)
    shipped = sorted(shipped_dir.glob("*.safetensors")) if shipped_dir is not None else []
    if shipped:
        return ModelChoice("shipped", shipped[0], note=note)
    return ModelChoice("random", None, note=note)


def _first(directories: Iterable[Path], folders: Iterable[str], fits: Callable[[Path], bool]) -> Path | None:
    """The first model file that fits, looking through the folders in their order."""
    folders = list(folders)
    files = (
        path
        for directory in directories
        for folder in folders
        for path in sorted((directory / folder).rglob("*.safetensors"))
    )
    return next((path for path in files if path.is_file() and fits(path)), None)


def _is_svd(path: Path) -> bool:
    # The variants with an image decoder would decode the two frames apart from each other.
    return "svd" in path.name.lower() and "image_decoder" not in path.name.lower()


def _is_single_file(path: Path) -> bool:
    # A random network from an earlier demo is not weights, and a renamed bare UNet is not complete.
    if path.name == RANDOM_NAME or "framepainter" not in path.name.lower():
        return False
    names = tensor_names(path)
    return all(any(name.startswith(prefix) for name in names) for prefix in SINGLE_FILE_PARTS)


def tensor_names(path: Path) -> list[str]:
    """The tensors in a safetensors file, read from its header; empty when it is not such a file."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= MAX_HEADER_BYTES:
                return []
            return list(json.loads(file.read(size)))
    except (OSError, ValueError):
        return []


def models_dirs(host: HostLike, own: Path, repo: Path | None = None) -> list[Path]:
    """The models folders that servers started from here see besides their own."""
    return [host.directory / "models", own]


def usual_port() -> int:
    """ComfyUI's usual port, or a free one when that is taken."""
    return USUAL_PORT if port_is_free(USUAL_PORT) else free_port()


# The prompt ----------------------------------------------------------------------------------------------


def titled(prompt: Mapping[str, Any], title: str, class_type: str) -> str:
    """The id of the node with this title and type in an API-format prompt."""
    for node_id, node in prompt.items():
        if node.get("class_type") == class_type and node.get("_meta", {}).get("title") == title:
            return str(node_id)
    raise Problem(
        f"The example workflow has no {class_type} node titled “{title}”. Restore {WORKFLOW} from "
        "the repository."
    )


def of_type(prompt: Mapping[str, Any], class_type: str) -> list[str]:
    """The ids of all nodes of one type."""
    return [str(node_id) for node_id, node in prompt.items() if node.get("class_type") == class_type]


def loader_inputs(
    info: Mapping[str, Any], model: str, encoder: str | None, svd: str | None
) -> dict[str, str]:
    """The loader's inputs for these files; None stands for a part that is inside the model file."""
    return {
        name: _option(info, name, filename)
        for name, filename in {"model_file": model, "encoder_file": encoder, "clip_and_vae": svd}.items()
    }


def _option(info: Mapping[str, Any], name: str, filename: str | None) -> str:
    groups = info.get("input", {})
    definition = {**groups.get("optional", {}), **groups.get("required", {})}.get(name, [])
    for option in _options(definition):
        # A file may be listed with its sub-folder; the choice that names no file is set in brackets.
        last = str(option).replace("\\", "/").rsplit("/", 1)[-1]
        if last == filename or (filename is None and last.startswith("(")):
            return option
    raise Problem(
        f"The input {name} of {LOADER} does not offer {filename or 'the parts inside the model file'}. "
        "Is the file in a folder that the server sees?"
    )


def _options(definition: Sequence[Any]) -> list[Any]:
    # Two generations of combo inputs: [[options], {...}] and ["COMBO", {"options": [...]}].
    if definition and isinstance(definition[0], list):
        return definition[0]
    if len(definition) > 1 and isinstance(definition[1], Mapping):
        return definition[1].get("options") or []
    return []


def fill(prompt: Mapping[str, Any], picture: str, sketch: str, loader: Mapping[str, str]) -> dict[str, Any]:
    """The example prompt with its pictures and its model put in; the original stays as it is."""
    filled = copy.deepcopy(dict(prompt))
    filled[titled(prompt, "Picture", "LoadImage")]["inputs"]["image"] = picture
    filled[titled(prompt, "Sketch", "LoadImage")]["inputs"]["image"] = sketch
    for node_id in of_type(prompt, LOADER):
        filled[node_id]["inputs"].update(loader)
    return filled


def shorten(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt at a small size and with few steps: for weights whose picture gets no better by more."""
    small = copy.deepcopy(dict(prompt))
    for node in small.values():
        inputs = node["inputs"]
        inputs.update({name: value for name, value in SHORT_RUN.items() if isinstance(inputs.get(name), int)})
    return small


# The run -------------------------------------------------------------------------------------------------


def run(repo: Path, host: HostLike, *, cpu: bool, models: Path, say: Say) -> dict[str, Path]:
    """Run the example and put source, sketch, result and contact sheet into `demo_output/`."""
    prompt = _read_workflow(repo / WORKFLOW)
    picture, sketch = _input_file(repo, "picture"), _input_file(repo, "sketch")
    base = repo / ".host" / "demo"
    visible = models_dirs(host, models)
    choice = _present(choose_model(visible, repo / "models"), repo, host, base, say)
    say("Starting ComfyUI ...")
    with Server(host, repo, base, cpu=cpu, model_dirs=visible) as server:
        info = server.object_info().get(LOADER)
        if info is None:
            raise Problem(f"ComfyUI started without this pack's nodes. Its log says why: {server.log_path}")
        files = [path and path.name for path in (choice.path, choice.encoder, choice.svd)]
        filled = fill(
            prompt, _hand_in(server, picture), _hand_in(server, sketch), loader_inputs(info, *files)
        )
        if choice.kind == "random":
            filled = shorten(filled)
        say("Running the sketch edit" + (" on the CPU, which takes a while ..." if cpu else " ..."))
        entry = server.run(filled, timeout=RUN_TIMEOUT_S)
        edited = _saved(server, entry, titled(prompt, "Edited picture", "SaveImage"))
        sheet = _saved(server, entry, titled(prompt, "Contact sheet", "SaveImage"))
    contents = {
        f"source{picture.suffix}": picture.read_bytes(),
        f"sketch{sketch.suffix}": sketch.read_bytes(),
        "edited.png": edited,
        "contact_sheet.png": sheet,
    }
    return _report(repo / RESULTS, contents, say)


def _read_workflow(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"The example workflow is missing: {path}. Restore it from the repository.") from None
    except ValueError as error:
        raise Problem(f"The example workflow {path} is not readable as JSON: {error}.") from None


def _input_file(repo: Path, name: str) -> Path:
    for suffix in (".png", ".jpg"):
        path = repo / INPUTS / f"{name}{suffix}"
        if path.is_file():
            return path
    raise Problem(f"The example's {name} is missing from {repo / INPUTS}. Restore it from the repository.")


def _hand_in(server: Server, path: Path) -> str:
    return server.upload(path, name=f"framepainter_{path.name}")["name"]


def _saved(server: Server, entry: Mapping[str, Any], node_id: str) -> bytes:
    found = images(entry, node_id)
    if not found:
        raise ServerProblem(
            f"The run ended without the picture that node {node_id} saves. Log: {server.log_path}"
        )
    return server.fetch(found[0])


def _present(choice: ModelChoice, repo: Path, host: HostLike, base: Path, say: Say) -> ModelChoice:
    """See to it that the chosen weights lie where the server finds them, and say what they are."""
    if choice.kind == "official":
        parts = [str(path) for path in (choice.path, choice.encoder, choice.svd) if path is not None]
        say("Weights: " + "\n         ".join(parts))
        return choice
    if choice.note:
        say(choice.note)
    target = base / "models" / "diffusion_models" / (choice.path.name if choice.path else RANDOM_NAME)
    if choice.path is not None:
        say(f"Weights: the small example model {choice.path}")
        _copy_once(choice.path, target)
    else:
        say(RANDOM_NOTICE.format(models=host.directory / "models", own=repo / ".host" / "models"))
        _write_random(repo, host, target)
    return ModelChoice(choice.kind, target)


def _copy_once(source: Path, target: Path) -> None:
    there, wanted = target.stat() if target.exists() else None, source.stat()
    if there is None or (there.st_size, there.st_mtime) != (wanted.st_size, wanted.st_mtime):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _write_random(repo: Path, host: HostLike, target: Path) -> None:
    # Written anew each time: it takes seconds, and an old file may not fit changed nodes.
    script = repo / "tools" / "random_model.py"
    if not script.is_file():
        raise Problem(
            f"There are no weights for the demo, and {script} is missing. Restore it from the repository."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.stem}.part.safetensors")
    done = subprocess.run(
        [str(host.python), str(script), "--host", str(host.directory), str(temporary)],
        cwd=repo,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0 or not temporary.is_file():
        temporary.unlink(missing_ok=True)
        raise Problem(
            "Writing the random weights failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:])
        )
    os.replace(temporary, target)


def _report(results: Path, contents: Mapping[str, bytes], say: Say) -> dict[str, Path]:
    paths = {}
    for name, content in contents.items():
        paths[Path(name).stem] = results / name
        write_atomically(results / name, content)
    labels = {
        "source": "Source",
        "sketch": "Sketch",
        "edited": "Edited picture",
        "contact_sheet": "Contact sheet",
    }
    for key, label in labels.items():
        say(f"{label + ':':16}{paths[key].resolve()}")
    return paths


if __name__ == "__main__":
    sys.exit("Run `python dev.py demo`.")
