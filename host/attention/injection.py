"""Match Attention: attention injection from the source's network into the edit's, step by step.

One sampling run has one InjectionRun, which the outer wrapper puts into the run's own copy of the options and takes out again.
Around every evaluation the source network runs at the paired state of the trajectory (or its features come from a record),
and the edit's attention is mixed with the source's. A model without a run in its options is unchanged.

Legend: T frames, L tokens, rows are (groups * T, L, C) in spatial and (groups * h * w, T, C) in temporal attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.attention.injection import Masks
from ...core.attention.record import AttentionRecord
from ...core.attention.sites import attention_sites
from ...core.inversion.schedule import is_stretch, source_step
from ...core.inversion.trajectory import SHOWN, Trajectory, TrajectoryError, describe
from .. import keys
from ..models.identity import made_by, model_digest
from ..models.network import check_embedding, svd_layout
from ..models.savings import save
from ..report import warn
from ..source import Unguided
from .bypass import Gate, bypass_patches
from .injection_run import NODE, SCHEDULE_TOLERANCE, InjectionRun, Plan, ReadOut, Settings, apply, evaluate
from .watched import watch_attention

KEY = f"{keys.PREFIX}_match_attention"


@dataclass
class _Attached:
    """What Match Attention leaves on a model: the gate of its bypassed LoRAs, the read-out of its last run."""

    gate: Gate
    read_out: ReadOut
    plan: Plan | None = None


def _sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """OUTER_SAMPLE wrapper: a run begins, is checked against the trajectory, and ends whatever happens."""
    guider = executor.class_obj
    attached = guider.model_patcher.get_attachment(keys.READ_OUT)
    if attached is None or attached.plan is None or isinstance(guider, Unguided):
        return executor(*args, **kwargs)
    plan = attached.plan
    noise, sigmas = args[0], args[3]
    _check_run(plan, guider.model_patcher, noise.shape, [float(s) for s in sigmas])
    options = guider.model_options.setdefault("transformer_options", {})
    run = options[keys.RUN] = InjectionRun(plan, len(noise))
    try:
        return executor(*args, **kwargs)
    finally:
        options.pop(keys.RUN, None)
        run.close()


def _check_run(plan: Plan, model: ModelPatcher, shape: tuple[int, ...], sigmas: list[float]) -> None:
    found = plan.trajectory
    if len(shape) != 4 or shape[0] != found.frames:
        raise TrajectoryError(f"{NODE}: the trajectory has {found.frames} frames, the latent to sample has {shape[0]}. Sample "
                              "the LATENT of Invert EDM, or invert a clip of that length.")
    if tuple(shape[-2:]) != found.size:
        sizes = [f"{w * 8} x {h * 8} pixels" for h, w in (found.size, shape[-2:])]
        raise TrajectoryError(f"{NODE}: the trajectory is for {sizes[0]}, the latent to sample for {sizes[1]}. Sample the "
                              "LATENT of Invert EDM, or invert the clip at that size.")
    if not is_stretch(sigmas, found.sigmas, SCHEDULE_TOLERANCE):
        raise TrajectoryError(f"{NODE}: the trajectory was made with {describe(found.sigmas)}, the sampler runs "
                              f"{describe(sigmas)}. Give the sampler the same SIGMAS as Invert EDM (Load Trajectory has them, "
                              "too), or invert again with these.")
    patches = sum(len(p) for p in model.patches.values())
    if patches != plan.patched:
        raise TrajectoryError(f"{NODE}: the model has {patches} weight patches where the source had {plan.patched}; a LoRA "
                              f"put on after {NODE} would change the source, too. Put it before {NODE}.")


# ---- holding areas on the source -------------------------------------------------------------------------------------


def _hold(args: dict) -> Tensor:
    """Post-guidance function: where the user's mask says stay, a prediction that lands an Euler step on the source's state."""
    run: InjectionRun | None = args["model_options"].get("transformer_options", {}).get(keys.RUN)
    denoised, x = args["denoised"], args["input"]
    if run is None or run.plan.masks.stay is None:
        return denoised
    found = run.plan.trajectory
    sigma = float(args["sigma"].flatten()[0])
    step = run.step(args["sigma"])
    here, following = found.sigmas[step], found.sigmas[step + 1]
    if abs(sigma - here) > SCHEDULE_TOLERANCE * here:  # a sampler's look between two levels
        return denoised
    target = found.states[source_step(step, found.steps)].to(x)
    landing = x + (target - x) * (here / (here - following))
    # A latent that the edit shares with a held area is the edit's: half of each would be neither.
    stay = run.mask(run.plan.masks.stay, found.size, x.device, least=True).unflatten(1, found.size)[:, None].to(x)
    return torch.lerp(denoised, landing, stay)


# ---- attaching -------------------------------------------------------------------------------------------------------


def inject_attention(model: ModelPatcher, trajectory: Trajectory, settings: Settings = Settings(),  # noqa: B008
                     record: AttentionRecord | None = None, masks: Masks = Masks(), hold: bool = True,  # noqa: B008
                     source: ModelPatcher | None = None) -> ModelPatcher:
    """A clone whose sampling follows a source clip's attention. An earlier Match Attention on it is replaced.

    Args:
        model: the SVD model that the clip was inverted with, possibly with LoRAs besides: they act on the edit alone.
        record: attention recorded before; for steps that it lacks, and for all steps without a record, the source runs again.
        masks: of pixels, areas that must follow the edit, or the source.
        hold: also hold the latents of areas that stay to the source's, not only their attention.
        source: the model that the clip was inverted with, if `model` is the same with further LoRAs. None: the clip was inverted
            either with all LoRAs of `model` or with none.

    Raises:
        WrongModel: not an SVD model.
        TrajectoryError: the trajectory, or the record, belongs to something else.
    """
    layout = svd_layout(model)
    if trajectory.reached != trajectory.steps:
        raise TrajectoryError(f"the trajectory has {trajectory.reached} of {trajectory.steps} steps; its inversion was "
                              "interrupted. Run Invert EDM to its end.")
    made_plain = source is None and made_by(trajectory.model, model, False)
    if not made_plain and not made_by(trajectory.model, source or model, True):
        plain, patched = (model_digest(model, p, fresh=False) for p in (False, True))
        raise TrajectoryError(f"the trajectory belongs to the model {trajectory.model[:SHOWN]}, 'model' is "
                              f"{plain[:SHOWN]}" + (f" ({patched[:SHOWN]} with its LoRAs)" if patched != plain else "")
                              + ". Load the model that the clip was inverted with, at the same weight_dtype, or invert the "
                                "clip with this one.")
    if record is not None and record.source != trajectory.digest():
        raise TrajectoryError(f"'record' belongs to the trajectory {record.source[:SHOWN]}, 'trajectory' is "
                              f"{trajectory.digest()[:SHOWN]}. Connect the same trajectory to Record Attention.")
    for name, mask in masks._asdict().items():
        if mask is not None and len(mask) not in (1, trajectory.frames):
            raise TrajectoryError(f"'{name}_mask' has {len(mask)} masks, the trajectory has {trajectory.frames} frames. "
                                  "Give one mask for all frames, or one a frame.")
    clone = model.clone()
    before = clone.get_attachment(keys.READ_OUT)
    gate = Gate() if before is None else before.gate
    read_out = ReadOut()
    if made_plain or source is not None:
        bypass_patches(clone, gate, source)
    watch_attention(clone)
    if settings.spatial or settings.temporal:  # else it is the unpatched model, to the bit
        save(clone)
    plan = Plan(trajectory, settings, tuple(attention_sites(layout)), record, masks, gate, read_out,
                sum(len(p) for p in clone.patches.values()))
    clone.set_attachments(keys.READ_OUT, _Attached(gate, read_out, plan))
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _sample), (WrappersMP.CALC_COND_BATCH, evaluate),
                          (WrappersMP.APPLY_MODEL, apply)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    after = clone.model_options.get("sampler_post_cfg_function", [])
    clone.model_options["sampler_post_cfg_function"] = [f for f in after if f is not _hold]
    if masks.stay is not None and hold:
        clone.set_model_sampler_post_cfg_function(_hold)
    replaced = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    if replaced:
        warn(f"another node replaces self-attention in {len(replaced)} blocks; no attention is injected there.")
    return clone


def read_out_of(model: ModelPatcher) -> tuple[ReadOut, Plan] | None:
    """The differences of a model's last run with attention injection, and its plan; None if it has no Match Attention."""
    attached = model.get_attachment(keys.READ_OUT)
    return None if attached is None or attached.plan is None else (attached.read_out, attached.plan)


def measure(model: ModelPatcher, positive: list, latent: Tensor, steps: Iterable[int]) -> None:
    """Fill the read-out of a model with attention injection from a finished edit, without its run.

    At each of the given steps the network sees the edit with the noise that the source has there.

    Args:
        latent: (T, 4, h, w) the finished edit, as the sampler returns it.
    """
    check_embedding(model, positive, "positive")
    found = read_out_of(model)[1].trajectory

    def look(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback: Any = None,
             disable: Any = None) -> Tensor:
        edit = model.model.process_latent_in(latent).to(x)
        for step in steps:
            state = edit + (found.states[found.steps - step] - found.states[0]).to(x)
            model_k(state, sigmas[step].expand(len(x)), **(extra_args or {}))
        return x

    comfy.sample.sample_custom(model, torch.zeros_like(latent), 1.0, comfy.samplers.KSAMPLER(look),
                               torch.tensor(found.sigmas), positive, positive, latent, disable_pbar=True, seed=0)
