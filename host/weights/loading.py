"""FramePainter weight files, and Stable Video Diffusion's, -> ComfyUI models.

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
from torch import Tensor

from ...core.attention.matching import MatchingBranch
from ...core.models.control_encoder import ControlEncoder, widths_from_shapes
from ...core.weights import framepainter
from ...core.weights.framepainter import UNetNames
from ...core.weights.trained import trained_as
from ...core.weights.weight_file import WHERE, WeightFile, WeightsError
from ..attention.matching import attach_matching
from ..models.network import set_trained
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


class NoTrainedParts:
    """The FRAMEPAINTER output of a Stable Video Diffusion checkpoint, which has none of its parts. Asked for one, it says so."""

    def __init__(self, file: str):
        self.name = Path(file).stem
        self._file = file

    def __getattr__(self, part: str) -> Any:
        what = {"matching": "matching attention", "encoder": "control encoder"}.get(part)
        if what is None:
            raise AttributeError(part)
        raise MissingPart(f"'{self._file}' is Stable Video Diffusion itself and holds no {what}. For edits of a picture choose "
                          f"{WHERE['framepainter unet']} as 'model_file' in Load FramePainter, and this file as 'clip_and_vae'.")


class FramePainterWeights(NamedTuple):
    """What travels on the FRAMEPAINTER socket: the trained parts beside the UNet, and the name they came from."""

    matching: ModelPatcher
    encoder: ModelPatcher
    name: str


class Loaded(NamedTuple):
    """The outputs of `load`. clip_vision and vae are `Absent` if no file held them."""

    model: ModelPatcher
    weights: FramePainterWeights | NoTrainedParts
    clip_vision: Any
    vae: Any


# ---- checking --------------------------------------------------------------------------------------------------------


def _places(file: WeightFile) -> tuple[UNetNames, int]:
    """Where each tensor of a model file goes, and its channels a head."""
    split = {"single file": framepainter.split_single_file, "framepainter unet": framepainter.split_diffusers_unet,
             "svd checkpoint": framepainter.split_svd_checkpoint}.get(file.kind)
    if split is None:
        raise file.wrong_kind("framepainter unet")
    try:
        head_width = int(file.header.metadata.get("framepainter.head_width", HEAD_WIDTH))
        if head_width < 1:
            raise ValueError(f"a head has {head_width} channels")
        return split(file.header.tensors), head_width
    except (ValueError, KeyError, IndexError) as error:
        raise file.differs(_kind_of_unet(file), [str(error)]) from None


def _kind_of_unet(file: WeightFile) -> str:
    return "Stable Video Diffusion checkpoint" if file.kind == "svd checkpoint" else "FramePainter UNet"


def _check_unet(file: WeightFile, names: UNetNames, head_width: int) -> None:
    shapes = file.shapes_of(names.unet)
    try:
        expected = expected_unet(unet_config(shapes), head_width)
        with torch.device("meta"):
            matching = MatchingBranch(framepainter.spatial_sites(expected), head_width, device="meta")
    except KeyError as error:  # the host's detection asks for tensors by name
        raise file.differs(_kind_of_unet(file), [f"missing {error.args[0]}"]) from None
    except Exception as error:  # and trips in other ways over a UNet with holes
        raise file.differs(_kind_of_unet(file), [f"its layout cannot be read ({type(error).__name__}: {error})"]) from None
    problems = framepainter.differences(expected, shapes)
    if file.kind != "svd checkpoint":
        problems += framepainter.differences({n: tuple(p.shape) for n, p in matching.state_dict().items()},
                                             file.shapes_of(names.matching))
    if problems:
        raise file.differs(_kind_of_unet(file), problems)


def _check_encoder(file: WeightFile, names: dict[str, str], unet_width: int) -> None:
    shapes = file.shapes_of(names)
    try:
        widths = widths_from_shapes(shapes)
        with torch.device("meta"):
            expected = {n: tuple(p.shape) for n, p in ControlEncoder(widths, device="meta").state_dict().items()}
    except KeyError as error:
        raise file.differs("control encoder", [f"missing {error.args[0]}"]) from None
    except Exception as error:  # shapes that no such network has
        raise file.differs("control encoder", [f"its layout cannot be read ({type(error).__name__}: {error})"]) from None
    problems = framepainter.differences(expected, shapes)
    if problems:
        raise file.differs("control encoder", problems)
    if widths.out != unet_width:
        raise WeightsError(f"'{file.name}' is a control encoder for a UNet of {widths.out} channels; the chosen UNet "
                           f"has {unet_width}. Choose the two files of one release: {WHERE['encoder']}.")


# ---- loading ---------------------------------------------------------------------------------------------------------


def load(model_path: Path, encoder_path: Path | None, clip_and_vae_path: Path | None,
         dtype: torch.dtype | None) -> Loaded:
    """Load FramePainter from the authors' two files or from the pack's single file, or Stable Video Diffusion itself.

    Args:
        model_path: the authors' UNet, a single file, or an SVD checkpoint.
        encoder_path: the authors' control encoder; None takes it from the single file. An SVD checkpoint has none.
        clip_and_vae_path: an SVD checkpoint or single file to take CLIP vision and VAE from; None takes them from the
            model's file, if it has them.
        dtype: of the weights; None leaves it to the host.

    Returns:
        See Loaded. FramePainter's model has its matching attention attached as released; SVD's is core's own.

    Raises:
        WeightsError: any of the files is wrong, broken, incomplete or does not fit the others.
    """
    return from_files(WeightFile.open(model_path), *(None if path is None else WeightFile.open(path)
                                                     for path in (encoder_path, clip_and_vae_path)), dtype)


def from_files(file: WeightFile, encoder: WeightFile | None, clip_and_vae: WeightFile | None,
               dtype: torch.dtype | None) -> Loaded:
    """`load`, from files that are open already."""
    places = _places(file)
    names, head_width = places
    if file.kind == "svd checkpoint" and encoder is not None:
        raise WeightsError(f"'{file.name}' is Stable Video Diffusion itself, which has no control encoder. For edits of a picture "
                           f"choose {WHERE['framepainter unet']} as 'model_file' and '{file.name}' as 'clip_and_vae'; for videos "
                           "set 'encoder_file' to (in the model file).")
    _check_unet(file, names, head_width)
    if file.kind == "svd checkpoint":
        return Loaded(_unet_of(file, places, dtype), NoTrainedParts(file.name), *clip_and_vae_of(clip_and_vae or file))
    if encoder is None:
        encoder, encoder_names = file, file.under(framepainter.ENCODER)
        if not encoder_names:
            raise WeightsError(f"'{file.name}' holds no control encoder. Choose one as 'encoder_file': {WHERE['encoder']}.")
    elif encoder.kind == "single file":
        encoder_names = encoder.under(framepainter.ENCODER)
    elif encoder.kind == "encoder":
        encoder_names = encoder.under("")
    else:
        raise encoder.wrong_kind("encoder")
    unet_width = file.shapes[names.unet[f"input_blocks.{names.layout.injection_block}.0.op.weight"]][0]
    _check_encoder(encoder, encoder_names, unet_width)

    model = _unet_of(file, places, dtype)
    used = model.model.get_dtype()
    weights = FramePainterWeights(build_matching(file.read(names.matching), used, head_width),
                                  build_encoder(encoder.read(encoder_names), used), file.path.stem)
    return Loaded(attach_matching(model, weights.matching, "release", 1.0), weights, *clip_and_vae_of(clip_and_vae or file))


def _load_unet(path: Path, dtype: torch.dtype | None, disable_dynamic: bool = False) -> ModelPatcher:
    """The UNet of a model file that has been checked. Newer hosts call this again for an independent copy."""
    file = WeightFile.open(path)
    return _unet_of(file, _places(file), dtype, disable_dynamic)


def _unet_of(file: WeightFile, places: tuple[UNetNames, int], dtype: torch.dtype | None, disable_dynamic: bool = False
             ) -> ModelPatcher:
    names, head_width = places
    trained_in_diffusers = file.header.metadata.get("framepainter.group_norm_epsilon", "diffusers") == "diffusers"
    epsilon = trained_in_diffusers and file.kind != "svd checkpoint"
    model = build_unet(file.read(names.unet), dtype, head_width, epsilon, disable_dynamic)
    set_trained(model.model, trained_as(file.header.metadata, file.path.stem))
    model.cached_patcher_init = (_load_unet, (file.path, dtype))
    return model


def load_clip_and_vae(path: Path) -> tuple[Any, Any]:
    """CLIP vision and VAE of an SVD checkpoint or single file, without touching its UNet; `Absent` where it has none.

    Raises:
        WeightsError: the file is broken, of another kind, or either part in it is incomplete.
    """
    return clip_and_vae_of(WeightFile.open(path))


def clip_and_vae_of(file: WeightFile) -> tuple[Any, Any]:
    """`load_clip_and_vae`, from a file that is open already."""
    if file.kind not in ("svd checkpoint", "single file", "framepainter unet"):
        raise file.wrong_kind("svd checkpoint")
    vae_names = file.under(framepainter.VAE)
    clip_names = {name: name for name in file.under(framepainter.CLIP_VISION).values()}
    clip, vae = Absent("CLIP_VISION", file.name), Absent("VAE", file.name)
    if clip_names:
        tensors = file.read(clip_names)
        given = comfy.clip_vision.convert_to_transformers(dict(tensors), framepainter.CLIP_VISION)
        clip = _complete(file, "CLIP image encoder", lambda: build_clip_vision(tensors), lambda built: built.model, given)
    if vae_names:
        tensors = file.read(vae_names)
        given = dict(tensors)
        vae = _complete(file, "VAE", lambda: build_vae(tensors), lambda built: built.first_stage_model, given)
        set_trained(vae.first_stage_model, trained_as(file.header.metadata, file.path.stem))
    return clip, vae


def _complete(file: WeightFile, what: str, build: Callable[[], Any], module: Callable[[Any], torch.nn.Module],
              given: dict[str, Tensor]) -> Any:
    """Build a part and make sure that all its parameters came from the file. The host only logs it if not.

    Raises:
        WeightsError: the part cannot be built, or lacks tensors; the text names the file and them.
    """
    try:
        built = build()
    except KeyError as error:  # asked for by name
        raise file.differs(what, [f"missing {error.args[0]}"]) from None
    except (RuntimeError, ValueError) as error:  # torch tells of shapes over several lines
        raise file.differs(what, [" ".join(str(error).split())]) from None
    missing = [n for n in module(built).state_dict() if n not in given and not n.endswith("position_ids")]
    if missing:
        raise file.differs(what, [f"missing {n}" for n in missing])
    return built
