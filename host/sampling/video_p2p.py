"""Prompt Attention: sampling a video with edited prompts beside its source, through the host's own samplers (Video-P2P, section
3.3).

One sampling run has one EditRun, which the outer wrapper puts into the run's own copy of the options and takes out again. The
sampler's latent is the edit alone; the source's rows join the network's passes (host/attention/prompt.py). A model without a
run in its options does what it always did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.attention.align import TOKENS
from ...core.attention.edit import Edit
from ...core.attention.prompt import mapped_sites
from ...core.attention.sites import attention_sites
from ...core.edm import scale_input
from ...core.inversion.null_text import NullText
from ...core.inversion.schedule import is_stretch
from ...core.inversion.trajectory import Trajectory, TrajectoryError, describe
from ...core.weights.inflated import layout_from_comfy
from .. import keys, report
from ..attention.hooks import hooked
from ..attention.inflated import check_model, network_digest, settings_of
from ..attention.prompt import apply_with_source
from ..models.network import unet_shapes
from ..source import Unguided
from .edit_run import BRANCHES, TOLERANCE, EditRun, Plan, ReadOut, Settings

NODE = "Prompt Attention"
KEY = f"{keys.PREFIX}_prompt_attention"
SAME_SHAPE = 0.05  # relative difference of aspect ratios that a mask may have
START_TOLERANCE = 0.05  # of a start's distance to the inversion's end, relative; half precision stays far below


@dataclass
class Attached:
    """What Prompt Attention leaves on a model: its plan, and who is told of what a run does not do as it should."""

    plan: Plan
    warn: Callable[[str], None]

    def __deepcopy__(self, memo: dict) -> Attached:
        return self


# ---- wrappers --------------------------------------------------------------------------------------------------------


def _sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """OUTER_SAMPLE wrapper: a run begins, is checked, and ends whatever happens."""
    guider = executor.class_obj
    attached: Attached | None = guider.model_patcher.get_attachment(keys.PROMPT_EDIT)
    if attached is None or isinstance(guider, Unguided):
        return executor(*args, **kwargs)
    noise, sampler, sigmas = args[0], args[2], [float(s) for s in args[3]]
    check_run(attached.plan, noise.shape, sigmas, guider.conds)
    _warn_of_other_samplers(sampler, attached.warn)
    options = guider.model_options.setdefault("transformer_options", {})
    run = options[keys.PROMPT_RUN] = EditRun(attached.plan, len(noise), sigmas, attached.warn)
    try:
        return _finished(run, executor(*args, **kwargs), guider.model_patcher.model)
    finally:
        options.pop(keys.PROMPT_RUN, None)
        run.close()


def _finished(run: EditRun, samples: Tensor, model: Any) -> Tensor:
    """The sampler's result as latents: a schedule of ours ends above sigma 0, and they are meant as they are there."""
    last, source = run.schedule[-1], run.source
    if source is None:
        return samples
    if last > 0.0 and abs(last - run.levels[-1]) <= TOLERANCE * last:
        samples, source = (scale_input(x, run.levels[-1]) for x in (samples, source))
    return run.outside_exact(samples, model.process_latent_out(source).to(samples))


def _evaluate(executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list:
    """CALC_COND_BATCH wrapper: one evaluation of the edits, the source beside them."""
    options = model_options.get("transformer_options", {})
    run: EditRun | None = options.get(keys.PROMPT_RUN)
    if run is None or keys.PROMPT_PASS in options:
        return executor(model, conds, x, timestep, model_options)
    mm.throw_exception_if_processing_interrupted()
    sigma = float(timestep.flatten()[0])
    _warn_of_another_start(run, x, sigma)
    at_work = run.begin(x, sigma, _negative(conds))
    model_options = hooked(model_options, at_work)
    model_options["transformer_options"][keys.PROMPT_PASS] = at_work
    if len(conds) < 2 or conds[1] is None or run.together(model, conds, x):
        return executor(model, conds, x, timestep, model_options)
    return [executor(model, [c if n == i else None for n, c in enumerate(conds)], x, timestep, model_options)[i]
            for i in range(len(conds))]


def _negative(conds: list) -> Tensor | None:
    """(1, K, C) the unconditional embedding of an evaluation, as the host's batching holds it."""
    if len(conds) < 2 or not conds[1]:
        return None
    return conds[1][0]["model_conds"]["c_crossattn"].cond[:1]


def _after(args: dict) -> Tensor:
    """Post-guidance function: the source goes on, and the edits are blended with it."""
    run: EditRun | None = args["model_options"].get("transformer_options", {}).get(keys.PROMPT_RUN)
    if run is None:
        return args["denoised"]
    return run.finish(args["denoised"], args["input"], float(args["sigma"].flatten()[0]), args["cond_scale"])


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_run(plan: Plan, shape: Sequence[int], sigmas: list[float], conds: dict[str, list]) -> None:
    """Refuse a run that does not fit its plan.

    Args:
        shape: of the sampler's latent.  conds: the guider's, by name.

    Raises:
        TrajectoryError: see the message.
    """
    edits, found = len(plan.edits), plan.trajectory
    if len(shape) != 4 or shape[1] != 4 or shape[0] % edits:
        raise TrajectoryError(f"{NODE}: the latent to sample is of shape {list(shape)}; a video for {edits} edited prompt"
                              f"{'s' if edits > 1 else ''} is [{'frames' if edits == 1 else f'{edits} x frames'}, 4, height / 8, "
                              "width / 8]. Connect the LATENT of Invert DDIM.")
    frames = shape[0] // edits
    if frames < 2:
        raise TrajectoryError(f"{NODE}: the latent to sample has one frame; editing a video needs at least two. Connect the "
                              "LATENT of all frames.")
    if plan.mask is not None:
        _check_mask(plan.mask, frames, shape[-2:])
    if found is not None:
        _check_trajectory(plan, shape, sigmas)
    elif plan.unconditional and len(plan.unconditional) != len(sigmas) - 1:
        raise TrajectoryError(f"{NODE}: 'null_text' has embeddings for {len(plan.unconditional)} steps, the sampler runs "
                              f"{len(sigmas) - 1}. Give the sampler the SIGMAS of Invert DDIM.")
    if len(sigmas) < 2 or any(a <= b for a, b in zip(sigmas, sigmas[1:], strict=False)):
        raise TrajectoryError(f"{NODE}: the sampler runs {describe(sigmas)}, which do not fall from each to the next. Connect the "
                              "SIGMAS of Invert DDIM.")
    others = sorted(set(conds) - {"positive", "negative"})
    if others:
        raise TrajectoryError(f"{NODE}: the sampler's guider has the conditioning {', '.join(others)} besides positive and "
                              "negative. Connect CFG Guider, or use SamplerCustom.")
    positive = conds.get("positive", [])
    if len(positive) != 1:
        raise TrajectoryError(f"{NODE}: the sampler's 'positive' holds {len(positive)} conditionings; an edited prompt needs "
                              "exactly one. Connect the edited conditioning of Prompt Edit directly.")
    limited = [name for name in ("area", "mask") if positive[0].get(name) is not None]
    if limited:
        raise TrajectoryError(f"{NODE}: the sampler's 'positive' is limited to a part of the picture ({', '.join(limited)}). "
                              "Connect the edited conditioning of Prompt Edit directly, and limit the edit with 'blend_mask'.")
    text = positive[0].get("cross_attn")
    if text is None or text.shape[1] != TOKENS or text.shape[-1] != plan.text.shape[-1]:
        size = "no text" if text is None else f"{text.shape[1]} tokens of width {text.shape[-1]}"
        raise TrajectoryError(f"{NODE}: the sampler's 'positive' has {size}, the plan is for {TOKENS} tokens of width "
                              f"{plan.text.shape[-1]}. Connect the edited conditioning of the same Prompt Edit.")


def _check_trajectory(plan: Plan, shape: Sequence[int], sigmas: list[float]) -> None:
    found, frames = plan.trajectory, shape[0] // len(plan.edits)
    if frames != found.frames:
        raise TrajectoryError(f"{NODE}: 'trajectory' has {found.frames} frames, the latent to sample has {frames}. Sample the "
                              "LATENT of Invert DDIM, or invert a video of that length.")
    if tuple(shape[-2:]) != found.size:
        sizes = [f"{w * 8} x {h * 8} pixels" for h, w in (found.size, shape[-2:])]
        raise TrajectoryError(f"{NODE}: 'trajectory' is for {sizes[0]}, the latent to sample for {sizes[1]}. Sample the LATENT of "
                              "Invert DDIM, or invert the video at that size.")
    if not is_stretch(sigmas, found.sigmas, TOLERANCE):
        raise TrajectoryError(f"{NODE}: 'trajectory' was made with {describe(found.sigmas)}, the sampler runs {describe(sigmas)}. "
                              "Give the sampler the SIGMAS of Invert DDIM, or invert again with as many steps.")


def _check_mask(mask: Tensor, frames: int, size: Sequence[int]) -> None:
    if len(mask) not in (1, frames):
        raise TrajectoryError(f"{NODE}: 'blend_mask' has {len(mask)} masks, the video has {frames} frames. Give one mask for all "
                              "frames, or one for each.")
    if abs((mask.shape[-1] / mask.shape[-2]) / (size[1] / size[0]) - 1.0) > SAME_SHAPE:
        raise TrajectoryError(f"{NODE}: 'blend_mask' is {mask.shape[-1]} x {mask.shape[-2]} pixels, the video {size[1] * 8} x "
                              f"{size[0] * 8}. Fit the mask in the same way as the video.")


def _warn_of_other_samplers(sampler: Any, warn: Callable[[str], None]) -> None:
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if name and name != "sample_euler":
        warn(f"{NODE}: the sampler is {name.removeprefix('sample_')}; only 'euler' takes the steps of DDIM. With other samplers "
             "the result only approximates the source outside the edit's area.")


def _warn_of_another_start(run: EditRun, x: Tensor, sigma: float) -> None:
    """Prompts are edited from one start: the state that the source's inversion has at the sampler's first level."""
    if run.started or run.plan.trajectory is None:
        return
    source = run.trajectory_state(sigma, x)
    if float((x[:run.frames] - source).norm()) > START_TOLERANCE * float(source.norm()):
        run.warn(f"{NODE}: the sampler starts from another state than the inversion reached, so the edit will not follow the "
                 "source. Connect the LATENT of Invert DDIM, and turn off the sampler's added noise.")


# ---- attaching -------------------------------------------------------------------------------------------------------


def prompt_attention(model: ModelPatcher, edits: Sequence[Edit], text: Tensor, settings: Settings = Settings(),  # noqa: B008
                     trajectory: Trajectory | None = None, null_text: NullText | None = None, mask: Tensor | None = None
                     ) -> ModelPatcher:
    """A clone whose sampling edits a video by its prompts. An earlier Prompt Attention on it is replaced.

    Args:
        model: inflated, the one that the video was inverted with.
        edits: of the same source prompt.
        text: (1, 77, C) embedding of the source prompt.
        trajectory: of the video; needed by the branch "stored trajectory". Without one the source starts where the edits do.
        null_text: of the video; needed by the branch "null-text".
        mask: (1 or F, H, W), above 0 where the edit may act; besides the words that say so, if there are any.

    Raises:
        WrongModel: not an inflated Stable Diffusion 1.x model.
        TrajectoryError: something is missing, or belongs to something else.
    """
    identity = network_digest(model)
    if settings.branch not in BRANCHES:
        raise ValueError(f"source_branch is '{settings.branch}'; choose one of {', '.join(BRANCHES)}.")
    if trajectory is None and settings.branch == "stored trajectory":
        raise TrajectoryError(f"source_branch '{settings.branch}' needs 'trajectory'. Connect Invert DDIM, or choose "
                              "'fast'.")
    if trajectory is not None:
        _check_belongs(trajectory, identity, text)
    embeddings = _embeddings(settings, trajectory, null_text)
    plan = Plan(tuple(edits), text.detach().float().cpu(), settings, trajectory, embeddings, mask,
                _mapped(model, settings.map_scale), settings_of(model).chunk)
    clone, node = model.clone(), report.node_id()
    clone.set_attachments(keys.PROMPT_EDIT, Attached(plan, lambda text: report.warn(text, node)))
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _sample), (WrappersMP.CALC_COND_BATCH, _evaluate),
                          (WrappersMP.APPLY_MODEL, apply_with_source)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    after = clone.model_options.get("sampler_post_cfg_function", [])
    clone.model_options["sampler_post_cfg_function"] = [f for f in after if f is not _after]
    clone.set_model_sampler_post_cfg_function(_after)
    return clone


def _check_belongs(trajectory: Trajectory, identity: str, text: Tensor) -> None:
    if trajectory.reached != trajectory.steps:
        raise TrajectoryError(f"'trajectory' has {trajectory.reached} of {trajectory.steps} steps; its inversion was "
                              "interrupted. Run Invert DDIM to its end.")
    if trajectory.model != identity:
        raise TrajectoryError("'trajectory' was made with another model than 'model'. Connect the model that went into "
                              "Invert DDIM, with the same LoRAs and tuned weights, or invert again.")
    given = trajectory.conditioning.embedding
    if given.shape != text.shape or float((given - text.to(given)).abs().max()) > TOLERANCE * float(given.abs().max()):
        raise TrajectoryError("'trajectory' was made with another source prompt than 'plan'. Connect the source "
                              "conditioning of the same Prompt Edit to Invert DDIM.")


def _embeddings(settings: Settings, trajectory: Trajectory | None, null_text: NullText | None) -> tuple[Tensor, ...]:
    """Unconditional embeddings of the branch "null-text"."""
    if settings.branch != "null-text":
        return ()
    if null_text is None:
        raise TrajectoryError("source_branch 'null-text' needs 'null_text'. Connect Null-Text, or choose 'stored "
                              "trajectory', which needs none.")
    if trajectory is not None and null_text.done != trajectory.steps:
        raise TrajectoryError(f"'null_text' has embeddings for {null_text.done} steps, 'trajectory' has "
                              f"{trajectory.steps}. Connect the Null-Text of the same Invert DDIM.")
    if trajectory is not None and null_text.latents and null_text.latents[-1].shape != trajectory.states.shape[1:]:
        latents, found = null_text.latents[-1].shape, trajectory.states.shape[1:]
        raise TrajectoryError(f"'null_text' is of a video of {latents[0]} frames of {latents[3] * 8} x {latents[2] * 8} pixels, "
                              f"'trajectory' of {found[0]} of {found[3] * 8} x {found[2] * 8}. Connect the Null-Text of the same "
                              "Invert DDIM.")
    if trajectory is not None and null_text.source not in ("", trajectory.digest()):
        raise TrajectoryError("'null_text' was made from another inversion than 'trajectory', perhaps of another video or prompt. "
                              "Connect the Null-Text of the same Invert DDIM.")
    return tuple(null_text.embeddings)


def _mapped(model: ModelPatcher, scale: int) -> frozenset[str]:
    """Transformer blocks whose words are mapped."""
    scales = {site.path: site.scale for site in attention_sites(layout_from_comfy(unet_shapes(model)))}
    chosen = mapped_sites(scales, scale)
    return frozenset(block for block in check_model(model) if block.rpartition(".transformer_blocks.")[0] in chosen)


def read_out_of(model: ModelPatcher) -> tuple[ReadOut, Plan] | None:
    """Where words looked in a model's last run, and its plan; None if the model has no Prompt Attention."""
    attached: Attached | None = model.get_attachment(keys.PROMPT_EDIT)
    return None if attached is None else (attached.plan.read_out, attached.plan)
