"""FramePainter weight files <-> ComfyUI models.

A file's header is checked in full before any tensor is read: what it is, that it is whole, that every tensor has its
place and shape. Then the weights become ordinary host-managed models (ModelPatcher), cast by the host's own operations.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.clip_vision
import comfy.model_detection
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.attention.matching import MatchingBranch
from ..core.models.control_encoder import ControlEncoder, widths_from_shapes
from ..core.weights import diffusers_svd, framepainter
from ..core.weights.framepainter import UNetNames
from ..core.weights.safetensors_header import BrokenFile, Header, read_header
from .patches import attach_matching

log = logging.getLogger(__name__)

HEAD_WIDTH = 64  # channels a head in every published SVD; a small network's file may say otherwise in its metadata
EPSILON_DIFFUSERS = 1e-6
WHERE = {
    "framepainter unet": "the authors' FramePainter UNet (unet_diffusion_pytorch_model.safetensors, Hugging Face "
                         "repository Yabo/FramePainter)",
    "encoder": "the authors' control encoder (encoder_diffusion_pytorch_model.safetensors, Hugging Face repository "
               "Yabo/FramePainter)",
    "svd checkpoint": "a Stable Video Diffusion checkpoint (svd.safetensors, svd_xt.safetensors or "
                      "svd_xt_1_1.safetensors, Hugging Face organisation stabilityai)",
}
_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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


def unet_config(unet: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The host's UNet configuration, from ComfyUI names and shapes. The same detection that the core loaders use."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in unet.items()}
    config = comfy.model_detection.detect_unet_config(empty, "")
    if config is None:
        raise ValueError("the host does not recognise these tensors as a UNet")
    return config


def svd_config(config: dict[str, Any], head_width: int = HEAD_WIDTH) -> comfy.supported_models.SVD_img2vid:
    """The host's SVD model configuration for a network of any width.

    The host picks this class at 320 channels only, so it is named here instead of detected.
    """
    out = comfy.supported_models.SVD_img2vid(config)
    out.unet_config["num_head_channels"] = head_width
    return out


class _PlainLayers:
    """torch's own layers. The host's make no weights of their own when it pages them in (dynamic VRAM), so a network
    built from those would not tell what it needs."""

    Linear, Conv1d, Conv2d, Conv3d = torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d
    GroupNorm, LayerNorm, Embedding = torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.Embedding

    @staticmethod
    def conv_nd(dims: int, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims](*args, **kwargs)


def expected_unet(config: dict[str, Any], head_width: int = HEAD_WIDTH) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the UNet that the host builds from a configuration, made on the meta device."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    settings = {k: v for k, v in svd_config(config, head_width).unet_config.items() if k != "disable_unet_model_creation"}
    with torch.device("meta"):
        unet = UNetModel(**settings, device="meta", operations=_PlainLayers)
    return {name: tuple(p.shape) for name, p in unet.state_dict().items()}


# ---- building --------------------------------------------------------------------------------------------------------


def _patcher(module: torch.nn.Module, disable_dynamic: bool = False) -> ModelPatcher:
    make = ModelPatcher if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    offload = mm.unet_offload_device()
    return make(module, load_device=mm.get_torch_device(), offload_device=offload)


def _fill(patcher: ModelPatcher, tensors: dict[str, Tensor], dtype: torch.dtype) -> ModelPatcher:
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    # Cast here: a host that pages weights in takes the tensors as they are.
    patcher.model.load_state_dict({name: t.to(dtype) for name, t in tensors.items()}, assign=dynamic)
    patcher.model.eval()
    return patcher


def build_encoder(tensors: dict[str, Tensor], dtype: torch.dtype) -> ModelPatcher:
    """The control encoder as a host-managed model, from its tensors."""
    widths = widths_from_shapes({name: tuple(t.shape) for name, t in tensors.items()})
    module = ControlEncoder(widths, comfy.ops.manual_cast, dtype, mm.unet_offload_device())
    return _fill(_patcher(module), tensors, dtype)


def build_matching(tensors: dict[str, Tensor], dtype: torch.dtype, head_width: int = HEAD_WIDTH) -> ModelPatcher:
    """The matching branch as a host-managed model, from its tensors (`<path>.to_q.weight`, ...)."""
    tail = ".to_q.weight"
    widths = {name.removesuffix(tail): t.shape[0] for name, t in tensors.items() if name.endswith(tail)}
    module = MatchingBranch(widths, head_width, comfy.ops.manual_cast, dtype, mm.unet_offload_device())
    return _fill(_patcher(module), tensors, dtype)


def build_unet(tensors: dict[str, Tensor], dtype: torch.dtype | None, head_width: int = HEAD_WIDTH,
               diffusers_epsilon: bool = True, disable_dynamic: bool = False) -> ModelPatcher:
    """An SVD model of any width from its UNet tensors (ComfyUI names), as the core loaders build theirs.

    Args:
        tensors: emptied while loading.
        dtype: of the weights; None leaves the choice to the host (its flags, the card, the file's own dtype).
        diffusers_epsilon: give 72 GroupNorms the epsilon that diffusers-trained weights were trained with.
        disable_dynamic: whole weights in the modules even where the host would page them in, as training needs.
    """
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    config = svd_config(unet_config(shapes), head_width)
    parameters = sum(t.numel() for t in tensors.values())
    kinds = list(config.supported_inference_dtypes)
    dtype = dtype or mm.unet_dtype(model_params=parameters, supported_dtypes=kinds,
                                   weight_dtype=comfy.utils.weight_dtype(tensors))
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, mm.get_torch_device(), kinds))
    model = config.get_model(tensors, "")
    if diffusers_epsilon:
        for name in diffusers_svd.diffusers_epsilon_norms(diffusers_svd.layout_from_comfy(shapes)):
            model.diffusion_model.get_submodule(name).eps = EPSILON_DIFFUSERS
    patcher = _patcher(model, disable_dynamic)
    offload = mm.unet_offload_device()
    if not mm.is_device_cpu(offload):
        model.to(offload)
    if getattr(patcher, "is_dynamic", lambda: False)():
        model.load_model_weights(tensors, "", assign=True)
    else:
        model.load_model_weights(tensors, "")
    model.eval()
    return patcher


def build_vae(tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    """A VAE from its tensors: the host's own choice for published ones, a plain AutoencoderKL of any width else."""
    narrow = tensors["decoder.conv_out.weight"].shape[1]
    if narrow == 128:
        return comfy.sd.VAE(sd=tensors)
    levels = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder.down."))
    blocks = 1 + max(int(n.split(".")[4]) for n in tensors if n.startswith("encoder.down.0.block."))
    base = tensors["encoder.conv_in.weight"].shape[0]
    mult = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // base for i in range(levels)]
    latent = tensors["decoder.conv_in.weight"].shape[1]
    vae = comfy.sd.VAE(sd=tensors, config={"params": {"embed_dim": latent, "ddconfig": {
        "double_z": True, "z_channels": latent, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": base,
        "ch_mult": mult, "num_res_blocks": blocks, "attn_resolutions": [], "dropout": 0.0}}})
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (levels - 1)
    vae.latent_channels = latent
    return vae


def build_clip_vision(tensors: dict[str, Tensor], head_width: int = HEAD_WIDTH) -> Any:
    """A CLIP vision encoder from its tensors: the host's own choice for published ones, one of any size else.

    Args:
        tensors: names under `CLIP_VISION`, OpenCLIP's or transformers' spelling.
    """
    known = comfy.clip_vision.load_clipvision_from_sd(dict(tensors), framepainter.CLIP_VISION, True)
    if known is not None:
        return known
    sd = comfy.clip_vision.convert_to_transformers(dict(tensors), framepainter.CLIP_VISION)
    width, _, patch, _ = sd["vision_model.embeddings.patch_embedding.weight"].shape
    positions = sd["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    layers = 1 + max(int(n.split(".")[3]) for n in sd if n.startswith("vision_model.encoder.layers."))
    config = {
        "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": width, "image_size": round(positions**0.5) * patch,
        "model_type": "clip_vision_model",
        "intermediate_size": sd["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0], "layer_norm_eps": 1e-5,
        "num_attention_heads": max(1, width // head_width), "num_channels": 3, "num_hidden_layers": layers,
        "patch_size": patch, "projection_dim": sd["visual_projection.weight"].shape[0], "torch_dtype": "float32",
    }
    # The older host takes a file name only.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip_vision.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        clip = comfy.clip_vision.ClipVisionModel(str(path))
    clip.load_sd(sd)
    return clip


# ---- loading ---------------------------------------------------------------------------------------------------------


def _read(path: Path, names: dict[str, str]) -> dict[str, Tensor]:
    """Read tensors: new name -> name in the file. Only these are read, straight from the mapped file."""
    with safe_open(str(path), framework="pt") as file:
        return {new: file.get_tensor(old) for new, old in names.items()}


def _under(header: Header, prefix: str) -> dict[str, str]:
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
    model = build_unet(_read(path, names.unet), dtype, head_width, epsilon, disable_dynamic)
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
    branch = {site: width for site, width in framepainter.spatial_sites(expected).items()}
    with torch.device("meta"):
        matching = MatchingBranch(branch, head_width, device="meta")
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

    inside = _under(header, framepainter.ENCODER)
    if encoder_path is None and not inside:
        raise WeightsError(f"'{model_path.name}' holds no control encoder. Choose one as 'encoder_file': {WHERE['encoder']}.")
    encoder_file = encoder_path or model_path
    encoder_header = header if encoder_path is None else _header(encoder_file)
    if encoder_path is not None and framepainter.file_kind(_shapes(encoder_header)) == "single file":
        encoder_names = _under(encoder_header, framepainter.ENCODER)
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
        build_matching(_read(model_path, names.matching), used, head_width),
        build_encoder(_read(encoder_file, encoder_names), used),
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
    vae_names = _under(header, framepainter.VAE)
    clip_names = {n: n for n in header.tensors if n.startswith(framepainter.CLIP_VISION)}
    clip, vae = Absent("CLIP_VISION", path.name), Absent("VAE", path.name)
    if clip_names:
        tensors = _read(path, clip_names)
        given = comfy.clip_vision.convert_to_transformers(dict(tensors), framepainter.CLIP_VISION)
        clip = _complete(path, "CLIP image encoder", lambda: build_clip_vision(tensors), lambda built: built.model, given)
    if vae_names:
        tensors = _read(path, vae_names)
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


# ---- saving ----------------------------------------------------------------------------------------------------------


def save(path: Path, model: ModelPatcher, weights: FramePainterWeights, clip_vision: Any, vae: Any,
         metadata: dict[str, str]) -> Path:
    """Write the pack's single file. Appears whole or not at all.

    Args:
        path: the .safetensors file to make.
        model: the UNet, LoRAs on it included (they are merged, as core's checkpoint saving does).
        clip_vision, vae: None or Absent are left out.
        metadata: text fields to add, such as the workflow.

    Raises:
        WeightsError: not enough room on the disk, or it cannot be written.
    """
    clip_vision, vae = (None if part is None or isinstance(part, Absent) else part for part in (clip_vision, vae))
    unet = model.model.diffusion_model
    norm = diffusers_svd.diffusers_epsilon_norms(diffusers_svd.layout_from_comfy(unet.state_dict()))[0]
    metadata = {
        **metadata,
        "framepainter.format": "1",
        "framepainter.head_width": str(model.model.model_config.unet_config["num_head_channels"]),
        "framepainter.group_norm_epsilon": "diffusers" if unet.get_submodule(norm).eps == EPSILON_DIFFUSERS else "svd",
    }
    extra = {framepainter.MATCHING + n: t for n, t in weights.matching.model.state_dict().items()}
    extra |= {framepainter.ENCODER + n: t for n, t in weights.encoder.model.state_dict().items()}
    parts = [unet, weights.matching.model, weights.encoder.model]
    parts += [vae.first_stage_model] if vae is not None else []
    parts += [clip_vision.model] if clip_vision is not None else []
    need = sum(mm.module_size(part) for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise WeightsError(f"'{path}' needs {need / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free. "
                           "Make room or choose another output folder.")
    partial = path.with_name(path.name + ".partial")
    try:
        comfy.sd.save_checkpoint(str(partial), model, vae=vae, clip_vision=clip_vision, metadata=metadata,
                                 extra_keys=extra)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"'{path}' could not be written: {error}. Check the folder's permissions and space."
                           ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def save_pair(path: Path, model: ModelPatcher, weights: FramePainterWeights, metadata: dict[str, str]) -> tuple[Path, Path]:
    """Write the two files of the authors' form: the UNet with diffusers' names, and the control encoder.

    Args:
        path: `<name>.safetensors`; the files are `<name>_unet.safetensors` and `<name>_encoder.safetensors`.
        model, weights, metadata: see `save`.

    Raises:
        WeightsError: see `save`.
    """
    # Through the single file, so that LoRAs are merged by the host's own saving, whatever its version.
    whole = save(path.with_name(path.stem + ".whole.safetensors"), model, weights, None, None, metadata)
    try:
        header = _header(whole)
        unet = _under(header, framepainter.UNET)
        names = framepainter.join_diffusers_unet(unet, _under(header, framepainter.MATCHING))
        contents = {
            "unet": {new: framepainter.UNET + old if old in unet else old for old, new in names.items()},
            "encoder": _under(header, framepainter.ENCODER),
        }
        files = {part: path.with_name(f"{path.stem.rstrip('_')}_{part}.safetensors") for part in contents}
        for part, wanted in contents.items():
            partial = files[part].with_name(files[part].name + ".partial")
            try:
                save_file(_read(whole, wanted), str(partial), metadata=header.metadata)
                os.replace(partial, files[part])
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"'{files[part]}' could not be written: {error}. Check the folder's permissions and "
                                   "space.") from None
            finally:
                partial.unlink(missing_ok=True)
    finally:
        whole.unlink(missing_ok=True)
    return files["unet"], files["encoder"]
