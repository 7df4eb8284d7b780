"""Making a Stable Diffusion 1.x model see a whole video (Video-P2P's text-to-set network), as a guest.

`inflate` gives a clone on which sampling works as always, with the frames of the video as the batch: LATENT [V*F, 4, h, w],
the frame varying faster. Object patches on the `.forward` of layers do the work (see inflated_layers.py), so LoRAs go on
counting; a wrapper of the network tells them how many frames a video has. Conditional and unconditional rows may come together
or in separate passes.

Several videos in one pass, such as a source and its edits, are groups of rows as the host's conditional and unconditional ones:
options["cond_or_uncond"] has an entry for each. Conditioning for them is one embedding for each row, (V*F, 77, C), as the host
repeats shorter ones in the order of a batch, not of videos.

To observe or replace what cross-attention and temporal attention layers compute, put a hook on the model or on one evaluation:
`hook(place, q, k, v, attention, options) -> out`, see hooks.py for shapes and order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...core.digest import digest
from ...core.models.inflated import TemporalLayers, block_sites, is_trained
from .. import keys
from ..models.identity import model_digest
from ..models.managed import fill, managed
from ..models.network import UNET, WrongModel, frames_in, unet_shapes
from .inflated_layers import Pass, Settings, _Forward, forwards, running
from .streamed import STORE, streamed_forwards

KEY = f"{keys.PREFIX}_inflated"
STREAMED = f"{KEY}_streamed"  # transformer_options: whether features rest in main memory


def _run_with_frames(executor: Callable, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None,
                     control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> Tensor:
    """Wrapper of the network: F from the rows of a pass."""
    options = {} if transformer_options is None else transformer_options
    streamed = options.get(STREAMED, False)
    if streamed and control is not None:  # it is added to features, which rest in the store
        control = {place: [None if t is None else t.to(STORE) for t in tensors] for place, tensors in control.items()}
    with running(Pass(frames_in(x.shape[0], options), x.device if streamed else None)):
        return executor(x, timesteps, context, y, control, options, **kwargs)


def check_model(model: ModelPatcher) -> dict[str, int]:
    """Transformer blocks of a Stable Diffusion 1.x model, path -> width.

    Raises:
        WrongModel: the model is of another family; the text says what came and what to connect.
    """
    shapes = unet_shapes(model) if hasattr(model.model, "diffusion_model") else {}
    sites = block_sites(shapes)
    config = getattr(model.model, "model_config", None)
    if not isinstance(config, comfy.supported_models.SD15) or not sites or shapes["input_blocks.0.0.weight"][1] != 4:
        raise WrongModel(
            f"the 'model' input is a {type(config).__name__} model ({type(model.model).__name__}), but Video-P2P works on "
            "Stable Diffusion 1.x networks that take a 4-channel latent. Connect MODEL from Load Checkpoint with an SD 1.5 "
            "checkpoint."
        )
    return sites


def heads_of(model: ModelPatcher) -> int:
    """N, the number of heads at every level."""
    unet = model.model.diffusion_model
    return next(unet.get_submodule(site).n_heads for site in block_sites(unet_shapes(model)))


def build_temporal(model: ModelPatcher, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> ModelPatcher:
    """Temporal layers for a model as one that the host loads, offloads and unloads.

    Args:
        tensors: `<block path>.attn_temp.*` and `.norm_temp.*` of every block.
        dtype: of the weights, the model's where None; they are cast to the type of what they work on.

    Raises:
        WrongModel: the tensors belong to a network of another layout or width.
    """
    sites = block_sites(unet_shapes(model))
    dtype = model.model.get_dtype() if dtype is None else dtype
    module = TemporalLayers(sites, heads_of(model), comfy.ops.manual_cast, dtype, comfy.model_management.unet_offload_device())
    _check_shapes(tensors, {n: tuple(p.shape) for n, p in module.state_dict().items()})
    # Weights that ask for gradients take another path through torch's matrix product, with other last bits.
    return fill(managed(module.requires_grad_(False)), dict(tensors), dtype)


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [n for n in {**expected, **tensors} if n not in tensors or n not in expected or tuple(tensors[n].shape) != expected[n]]
    if wrong:
        name = wrong[0]
        here = tuple(tensors[name].shape) if name in tensors else "missing"
        raise WrongModel(f"The tuned weights belong to another network than 'model': {name} is {here}, this model needs "
                         f"{expected.get(name, 'no such tensor')}. Connect the model that the video was tuned on.")


def inflate(model: ModelPatcher, temporal: ModelPatcher | None = None, settings: Settings = Settings()) -> ModelPatcher:  # noqa: B008
    """A clone whose frames see each other. On a model that is inflated already, layers and settings are replaced.

    Args:
        temporal: from build_temporal; None for frame attention and pooled norms alone.

    Raises:
        WrongModel: not a Stable Diffusion 1.x model.
    """
    check_model(model)
    clone, unet = model.clone(), model.model.diffusion_model
    _take_off(clone)

    def forward_of(path: str) -> Callable:
        return clone.get_model_object(f"{UNET}{path}.forward")

    found = forwards(unet, None if temporal is None else temporal.model, settings, forward_of)
    if settings.streamed:
        found |= streamed_forwards(unet, found, forward_of)
    for path, forward in found.items():
        clone.add_object_patch(f"{UNET}{path}.forward", forward)
    clone.model_options["transformer_options"][STREAMED] = settings.streamed
    clone.remove_additional_models(KEY)
    if temporal is not None:
        clone.set_additional_models(KEY, [temporal])
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _run_with_frames)
    clone.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    clone.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow_copied_network)
    return clone


def _take_off(clone: ModelPatcher) -> None:
    """Remove what inflating has put around layers; what other nodes put inside it stays."""
    for name, patch in list(clone.object_patches.items()):
        if isinstance(patch, _Forward):
            if getattr(patch.forward, "__self__", None) is patch.module:
                del clone.object_patches[name]
            else:
                clone.object_patches[name] = patch.forward


def with_tuned(model: ModelPatcher, tensors: Mapping[str, Tensor], settings: Settings = Settings()) -> ModelPatcher:  # noqa: B008
    """A clone that is inflated with the weights of a tuned video.

    Query projections of attn1 and attn2 take the tuned values, which already hold what LoRAs did to them while tuning; LoRAs
    put on later are added. norm_temp may be missing, as it is not trained.

    Args:
        tensors: by ComfyUI names without prefix; see `core.models.inflated.is_trained`.

    Raises:
        WrongModel: not a Stable Diffusion 1.x model, or the tensors are another network's.
    """
    sites = check_model(model)
    queries = {n: t for n, t in tensors.items() if ".to_q." in n and ".attn_temp." not in n}
    shapes = {n: s for n, s in unet_shapes(model).items() if is_trained(n)}
    _check_shapes(queries, shapes)
    norms = {f"{site}.norm_temp.{leaf}": make(width) for site, width in sites.items()
             for leaf, make in (("weight", torch.ones), ("bias", torch.zeros))}
    temporal = build_temporal(model, {**norms, **{n: t for n, t in tensors.items() if n not in queries}})
    clone = inflate(model, temporal, settings)
    clone.add_patches({f"{UNET}{n}": ("set", (t,)) for n, t in queries.items()})
    return clone


def temporal_of(model: ModelPatcher) -> ModelPatcher | None:
    """The temporal layers on an inflated model."""
    return next(iter(model.get_additional_models_with_key(KEY)), None)


def settings_of(model: ModelPatcher) -> Settings:
    """The settings of an inflated model."""
    return next(patch.settings for patch in model.object_patches.values() if isinstance(patch, _Forward))


def is_inflated(model: ModelPatcher) -> bool:
    """Whether frames see each other in this model."""
    return bool(model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY))


def _follow_copied_network(model: ModelPatcher, clone: ModelPatcher) -> None:
    """A clone with a network of its own (newer hosts: compiling, training, several GPUs) must run its own layers."""
    if clone.model is model.model:
        return
    for name, patch in list(clone.object_patches.items()):
        if isinstance(patch, _Forward):
            clone.object_patches[name] = patch.on(clone.model.get_submodule(name.removesuffix(".forward")))


def network_digest(model: ModelPatcher) -> str:
    """Identity of an inflated network: UNet with its LoRAs, temporal layers, window.

    Raises:
        WrongModel: not a Stable Diffusion 1.x model, or not inflated.
    """
    check_model(model)
    if not is_inflated(model):
        raise WrongModel("in 'model' the frames do not see each other. Put Video Text Model between the checkpoint and "
                         "this node.")
    temporal = temporal_of(model)
    weights = {} if temporal is None else {name: first[0] for name, (first, *_) in temporal.get_key_patches().items()}
    patches = {} if temporal is None else {name: [str(p[:1]) for p in more] for name, more in temporal.patches.items()}
    return digest(model_digest(model, patched=True), weights, patches, settings_of(model).window)
