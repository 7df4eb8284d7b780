"""The demo: the sketch-edit example workflow, run headless on a real picture and sketch."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.hosting.problem import Problem
from tools.hosting.server import HostLike, Server, ServerProblem, free_port, images, port_is_free
from tools.hosting.steps import Say, atomic

WORKFLOWS = Path("workflows") / "api"
INPUTS = Path("workflows") / "inputs"
RESULTS = "demo_output"
LOADER = "FramePainterLoad"
# The folders in which the loader looks for each of its files; `unet` is an old name of `diffusion_models`.
MODEL_FOLDERS = ("framepainter", "diffusion_models", "unet", "checkpoints")
ENCODER_FOLDERS = ("framepainter", "controlnet", "diffusion_models", "unet")
SVD_FOLDERS = ("checkpoints", "framepainter")
OFFICIAL_NAME = "unet_diffusion_pytorch_model.safetensors"
OFFICIAL_ENCODER = "encoder_diffusion_pytorch_model.safetensors"
SHIPPED = "framepainter_small_sketch.safetensors"
SHIPPED_NOTICE = f"""\
Weights: the small model that comes with the pack, models/{SHIPPED}.
         It knows coloured shapes on smooth grounds, at 96 x 96 pixels. For photographs, put under {{models}}
         or {{own}}:
             {OFFICIAL_NAME} into framepainter,
             {OFFICIAL_ENCODER} into framepainter,
             a Stable Video Diffusion checkpoint (svd...) into checkpoints."""
# What a file with everything inside holds besides the UNet: the control encoder, the VAE, CLIP vision.
SINGLE_FILE_PARTS = ("framepainter.encoder.", "first_stage_model.", "conditioner.embedders.")
MAX_HEADER_BYTES = 100_000_000
RUN_TIMEOUT_S = 3600.0
USUAL_PORT = 8188
NAMES = {"Picture": "source", "Sketch": "sketch"}  # title of a node -> name of its file beside the results



@dataclass(frozen=True)
class Example:
    """An example workflow and the pictures it is run on; without a sketch its strokes are in the workflow."""

    workflow: str
    picture: str
    sketch: str | None


OFFICIAL = Example("framepainter_sketch", "picture", "sketch")
SMALL = Example("framepainter_small", "scene", None)


@dataclass(frozen=True)
class ModelChoice:
    """Weights found in a models folder; `path` is None if there are none, and the small model is used.

    The authors' release is a UNet file and an encoder file, and takes CLIP vision and VAE from a Stable Video
    Diffusion checkpoint; `encoder` and `svd` are None when everything is inside the one file. `note` says
    why weights that were found are not used.
    """

    path: Path | None
    encoder: Path | None = None
    svd: Path | None = None
    note: str = ""


def choose_model(models_dirs: Iterable[Path]) -> ModelChoice:
    """FramePainter weights in a models folder, if there are any."""
    found = [directory for directory in models_dirs if directory.is_dir()]
    note = ""
    unet = _first(found, MODEL_FOLDERS, lambda path: path.name == OFFICIAL_NAME)
    if unet is not None:
        encoder = _first(found, ENCODER_FOLDERS, lambda path: path.name == OFFICIAL_ENCODER)
        svd = _first(found, SVD_FOLDERS, _is_svd)
        if encoder is not None and svd is not None:
            return ModelChoice(unet, encoder, svd)
        wanted = {OFFICIAL_ENCODER: encoder, "a Stable Video Diffusion checkpoint (svd...)": svd}
        missing = " and ".join(name for name, path in wanted.items() if path is None)
        note = f"{unet} was found, but not what it needs beside it: {missing}."
    return ModelChoice(_first(found, MODEL_FOLDERS, _is_single_file), note=note)


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
    if "framepainter" not in path.name.lower():  # and a renamed bare UNet is not complete
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
        f"The example workflow has no {class_type} node titled “{title}”. Restore {WORKFLOWS} from "
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


def fill(prompt: Mapping[str, Any], pictures: Mapping[str, str], loader: Mapping[str, str]) -> dict[str, Any]:
    """The example prompt with its pictures, by the titles of their nodes, and its model put in; the original stays as it is."""
    filled = copy.deepcopy(dict(prompt))
    for title, name in pictures.items():
        filled[titled(prompt, title, "FramePainterPicture")]["inputs"]["image"] = name
    for node_id in of_type(prompt, LOADER):
        filled[node_id]["inputs"].update(loader)
    return filled


# The run -------------------------------------------------------------------------------------------------


def run(repo: Path, host: HostLike, *, cpu: bool, models: Path, say: Say) -> dict[str, Path]:
    """Run an example and put its pictures, the result and the contact sheet into `demo_output/`."""
    visible = models_dirs(host, models)
    choice = choose_model(visible)
    example = OFFICIAL if choice.path else SMALL
    prompt = _read_workflow(repo / WORKFLOWS / f"{example.workflow}.json")
    given = {"Picture": _input_file(repo, example.picture)}
    if example.sketch:
        given["Sketch"] = _input_file(repo, example.sketch)
    say(_notice(choice, host, repo))
    say("Starting ComfyUI ...")
    with Server(host, repo, repo / ".host" / "demo", cpu=cpu, model_dirs=visible) as server:
        info = server.object_info().get(LOADER)
        if info is None:
            raise Problem(f"ComfyUI started without this pack's nodes. Its log says why: {server.log_path}")
        files = [path and path.name for path in (choice.path or Path(SHIPPED), choice.encoder, choice.svd)]
        filled = fill(prompt, {title: _hand_in(server, path) for title, path in given.items()}, loader_inputs(info, *files))
        slow = cpu and choice.path is not None
        say("Running the sketch edit" + (" on the CPU, which takes a while ..." if slow else " ..."))
        entry = server.run(filled, timeout=RUN_TIMEOUT_S)
        edited = _saved(server, entry, titled(prompt, "Edited picture", "SaveImage"))
        sheet = _saved(server, entry, titled(prompt, "Contact sheet", "SaveImage"))
    contents = {
        **{f"{NAMES[title]}{path.suffix}": path.read_bytes() for title, path in given.items()},
        "edited.png": edited,
        "contact_sheet.png": sheet,
    }
    return _report(repo / RESULTS, contents, say)


def _notice(choice: ModelChoice, host: HostLike, repo: Path) -> str:
    if choice.path is not None:
        parts = [str(path) for path in (choice.path, choice.encoder, choice.svd) if path is not None]
        return "Weights: " + "\n         ".join(parts)
    shipped = SHIPPED_NOTICE.format(models=host.directory / "models", own=repo / ".host" / "models")
    return f"{choice.note}\n{shipped}" if choice.note else shipped


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


def _report(results: Path, contents: Mapping[str, bytes], say: Say) -> dict[str, Path]:
    paths = {}
    for name, content in contents.items():
        paths[Path(name).stem] = results / name
        atomic.write_bytes(results / name, content)
    labels = {
        "source": "Source",
        "sketch": "Sketch",
        "edited": "Edited picture",
        "contact_sheet": "Contact sheet",
    }
    for key, label in labels.items():
        if key not in paths:
            continue
        say(f"{label + ':':16}{paths[key].resolve()}")
    return paths


if __name__ == "__main__":
    sys.exit("Run `python dev.py demo`.")
