"""FramePainter weight files -> ComfyUI models.

A file's header is checked before any tensor is read: what it is, that it is whole, that every tensor of UNet, matching
attention and control encoder has its place and shape. CLIP vision and VAE, whose layout is the host's business, are
checked against what the host builds from them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.clip_vision
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from torch import Tensor

from ...core.attention.matching import MatchingBranch
from ...core.models.control_encoder import ControlEncoder, widths_from_shapes
from ...core.weights import framepainter
from ...core.weights.framepainter import UNetNames
from ...core.weights.safetensors_header import BrokenFile, Header, read_header
from ..attention.matching import attach_matching
from .building import (
    HEAD_WIDTH,
    build_clip_vision,
    build_encoder,
    build_matching,
    build_unet,
    build_vae,
    expected_unet,
    unet_config,
)

WHERE = {
    "framepainter unet": "the authors' FramePainter UNet (unet_diffusion_pytorch_model.safetensors, Hugging Face "
                         "repository Yabo/FramePainter)",
    "encoder": "the authors' control encoder (encoder_diffusion_pytorch_model.safetensors, Hugging Face repository "
               "Yabo/FramePainter)",
    "svd checkpoint": "a Stable Video Diffusion checkpoint (svd.safetensors, svd_xt.safetensors or "
                      "svd_xt_1_1.safetensors, Hugging Face organisation stabilityai)",
}


class WeightsError(ValueError):
    """A weight file that cannot be used. The text names the file, what was expected, what was found and the remedy."""


class MissingPart(AttributeError):
    """Raised by anything asked of an empty CLIP_VISION or VAE output."""


class Absent:
    """Stands on an output whose weights are not in the file; explains itself when used."""

    def __init__(self, what: str, file: str):
        self.__dict__["explanation"] = (
            f"'{file}' holds no {what}. In Load FramePainter choose a Stable Video Diffusion checkpoint as 'clip_and_vae', "
            f"or connect {what} from another loader.")

    def __getattr__(self, name: str) -> Any:
        # An AttributeError, so that hasattr() probes by the host stay harmless.
        raise MissingPart(self.__dict__.get("explanation", name))


class FramePainterWeights(NamedTuple):
    """What travels on the FRAMEPAINTER socket: the trained parts beside the UNet, and the name they came from."""

    matching: ModelPatcher
    encoder: ModelPatcher
    name: str


class Loaded(NamedTuple):
    """The outputs of `load`. clip_vision and vae are `Absent` if no file held them."""

    model: ModelPatcher
    weights: FramePainterWeights
    clip_vision: Any
    vae: Any


# ---- looking ---------------------------------------------------------------------------------------------------------


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except FileNotFoundError:
        raise WeightsError(f"'{path}' does not exist. Put the file there, or refresh the node and choose another."
                           ) from None
    except BrokenFile as error:
        raise WeightsError(f"'{path.name}' is not usable: {error}. Download it again.") from None


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in header.tensors.items()}


def _wrong_kind(path: Path, header: Header, expected: str) -> WeightsError:
    kind = framepainter.file_kind(_shapes(header))
    found = {"framepainter unet": "a FramePainter UNet", "svd unet": "a plain SVD UNet without matching attention",
             "encoder": "a FramePainter control encoder", "single file": "a FramePainter single-file checkpoint",
             "svd checkpoint": "a Stable Video Diffusion checkpoint", "sdxl checkpoint": "an SDXL checkpoint",
             "sd checkpoint": "a Stable Diffusion image checkpoint",
             "other": f"{len(header.tensors)} other tensors, the first '{next(iter(header.tensors), '-')}'"}[kind]
    return WeightsError(f"'{path.name}' holds {found}; expected {WHERE[expected]}, "
                        "or a checkpoint saved by Save FramePainter Checkpoint.")


def _differs(path: Path, what: str, problems: list[str]) -> WeightsError:
    shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
    return WeightsError(f"'{path.name}' is not a complete {what}: {shown}. Download it again, or choose the file that "
                        "belongs to this model.")


# ---- loading ---------------------------------------------------------------------------------------------------------


def read_tensors(path: Path, names: dict[str, str]) -> dict[str, Tensor]:
    """Read tensors: new name -> name in the file. Only these are read, straight from the mapped file."""
    with safe_open(str(path), framework="pt") as file:
        return {new: file.get_tensor(old) for new, old in names.items()}


def under(header: Header, prefix: str) -> dict[str, str]:
    """new name -> file's name for everything under a prefix, the prefix taken off."""
    return {n[len(prefix):]: n for n in header.tensors if n.startswith(prefix)}


def _sorted_names(path: Path, header: Header) -> tuple[UNetNames, int]:
    """Where each tensor of a model file goes, and its channels a head."""
    kind = framepainter.file_kind(_shapes(header))
    if kind not in ("single file", "framepainter unet"):
        raise _wrong_kind(path, header, "framepainter unet")
    split = framepainter.split_single_file if kind == "single file" else framepainter.split_diffusers_unet
    try:
        return split(header.tensors), int(header.metadata.get("framepainter.head_width", HEAD_WIDTH))
    except ValueError as error:
        raise _differs(path, "FramePainter UNet", [str(error)]) from None


def _load_unet(path: Path, dtype: torch.dtype | None, disable_dynamic: bool = False) -> ModelPatcher:
    """The UNet of a model file that has been checked. Newer hosts call this again for an independent copy."""
    header = _header(path)
    names, head_width = _sorted_names(path, header)
    epsilon = header.metadata.get("framepainter.group_norm_epsilon", "diffusers") == "diffusers"
    model = build_unet(read_tensors(path, names.unet), dtype, head_width, epsilon, disable_dynamic)
    model.cached_patcher_init = (_load_unet, (path, dtype))
    return model


def _check_unet(path: Path, header: Header, names: UNetNames, head_width: int) -> None:
    shapes = {new: header.tensors[old].shape for new, old in names.unet.items()}
    try:
        expected = expected_unet(unet_config(shapes), head_width)
    except KeyError as error:  # the host's detection asks for tensors by name
        raise _differs(path, "FramePainter UNet", [f"missing {error.args[0]}"]) from None
    except Exception as error:  # and trips in other ways over a UNet with holes
        raise _differs(path, "FramePainter UNet", [f"its layout cannot be read ({type(error).__name__}: {error})"]
                       ) from None
    problems = framepainter.differences(expected, shapes)
    with torch.device("meta"):
        matching = MatchingBranch(framepainter.spatial_sites(expected), head_width, device="meta")
    problems += framepainter.differences({n: tuple(p.shape) for n, p in matching.state_dict().items()},
                                         {new: header.tensors[old].shape for new, old in names.matching.items()})
    if problems:
        raise _differs(path, "FramePainter UNet", problems)


def _check_encoder(path: Path, shapes: dict[str, tuple[int, ...]], unet_width: int) -> None:
    try:
        widths = widths_from_shapes(shapes)
        with torch.device("meta"):
            expected = {n: tuple(p.shape) for n, p in ControlEncoder(widths, device="meta").state_dict().items()}
    except KeyError as error:
        raise _differs(path, "control encoder", [f"missing {error.args[0]}"]) from None
    problems = framepainter.differences(expected, shapes)
    if problems:
        raise _differs(path, "control encoder", problems)
    if widths.out != unet_width:
        raise WeightsError(f"'{path.name}' is a control encoder for a UNet of {widths.out} channels; the chosen UNet "
                           f"has {unet_width}. Choose the two files of one release: {WHERE['encoder']}.")


def load(model_path: Path, encoder_path: Path | None, clip_and_vae_path: Path | None,
         dtype: torch.dtype | None) -> Loaded:
    """Load FramePainter from the authors' two files or from the pack's single file.

    Args:
        model_path: the authors' UNet, or a single file.
        encoder_path: the authors' control encoder; None takes it from the single file.
        clip_and_vae_path: an SVD checkpoint or single file to take CLIP vision and VAE from; None takes them from the
            single file, if it has them.
        dtype: of the weights; None leaves it to the host.

    Returns:
        See Loaded. The model has its matching attention attached as released.

    Raises:
        WeightsError: any of the files is wrong, broken, incomplete or does not fit the others.
    """
    header = _header(model_path)
    names, head_width = _sorted_names(model_path, header)
    _check_unet(model_path, header, names, head_width)

    inside = under(header, framepainter.ENCODER)
    if encoder_path is None and not inside:
        raise WeightsError(f"'{model_path.name}' holds no control encoder. Choose one as 'encoder_file': {WHERE['encoder']}.")
    encoder_file = encoder_path or model_path
    encoder_header = header if encoder_path is None else _header(encoder_file)
    if encoder_path is not None and framepainter.file_kind(_shapes(encoder_header)) == "single file":
        encoder_names = under(encoder_header, framepainter.ENCODER)
    elif encoder_path is not None:
        encoder_names = {n: n for n in encoder_header.tensors}
        if framepainter.file_kind(_shapes(encoder_header)) != "encoder":
            raise _wrong_kind(encoder_file, encoder_header, "encoder")
    else:
        encoder_names = inside
    injection = f"input_blocks.{names.layout.injection_block}.0.op.weight"
    unet_width = header.tensors[names.unet[injection]].shape[0]
    _check_encoder(encoder_file, {n: encoder_header.tensors[o].shape for n, o in encoder_names.items()}, unet_width)

    model = _load_unet(model_path, dtype)
    used = model.model.get_dtype()
    weights = FramePainterWeights(
        build_matching(read_tensors(model_path, names.matching), used, head_width),
        build_encoder(read_tensors(encoder_file, encoder_names), used),
        model_path.stem,
    )
    clip_vision, vae = load_clip_and_vae(clip_and_vae_path or model_path)
    return Loaded(attach_matching(model, weights.matching, "release", 1.0), weights, clip_vision, vae)


def load_clip_and_vae(path: Path) -> tuple[Any, Any]:
    """CLIP vision and VAE of an SVD checkpoint or single file, without touching its UNet; `Absent` where it has none.

    Raises:
        WeightsError: the file is broken, of another kind, or either part in it is incomplete.
    """
    header = _header(path)
    if framepainter.file_kind(_shapes(header)) not in ("svd checkpoint", "single file", "framepainter unet"):
        raise _wrong_kind(path, header, "svd checkpoint")
    vae_names = under(header, framepainter.VAE)
    clip_names = {n: n for n in header.tensors if n.startswith(framepainter.CLIP_VISION)}
    clip, vae = Absent("CLIP_VISION", path.name), Absent("VAE", path.name)
    if clip_names:
        tensors = read_tensors(path, clip_names)
        given = comfy.clip_vision.convert_to_transformers(dict(tensors), framepainter.CLIP_VISION)
        clip = _complete(path, "CLIP image encoder", lambda: build_clip_vision(tensors), lambda built: built.model, given)
    if vae_names:
        tensors = read_tensors(path, vae_names)
        given = dict(tensors)
        vae = _complete(path, "VAE", lambda: build_vae(tensors), lambda built: built.first_stage_model, given)
    return clip, vae


def _complete(path: Path, what: str, build: Callable[[], Any], module: Callable[[Any], torch.nn.Module],
              given: dict[str, Tensor]) -> Any:
    """Build a part and make sure that all its parameters came from the file. The host only logs it if not.

    Raises:
        WeightsError: the part cannot be built, or lacks tensors; the text names the file and them.
    """
    try:
        built = build()
    except KeyError as error:  # asked for by name
        raise _differs(path, what, [f"missing {error.args[0]}"]) from None
    except (RuntimeError, ValueError) as error:  # torch tells of shapes over several lines
        raise _differs(path, what, [" ".join(str(error).split())]) from None
    missing = [n for n in module(built).state_dict() if n not in given and not n.endswith("position_ids")]
    if missing:
        raise _differs(path, what, [f"missing {n}" for n in missing])
    return built
