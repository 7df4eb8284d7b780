"""Match Attention: the edit's network sees the source's attention, step by step.

One sampling run has one MatchRun, which the outer wrapper puts into the run's own copy of the options and takes out again.
Around every evaluation the source network runs at the paired state of the trajectory (or its features come from a record),
and the edit's attention is mixed with what it found. A model without a run in its options does what it always did.

Legend: T frames, L tokens, rows are (groups * T, L, C) in spatial and (groups * h * w, T, C) in temporal attention.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.attention import row_kernel
from ..core.attention.matched import (
    Matched,
    apply_probabilities,
    frame_thresholds,
    matched_attention,
    matched_attention_fused,
    stage_bounds,
    temporal_probabilities,
)
from ..core.attention.record import AttentionRecord
from ..core.attention.sites import Site, attention_sites, coarse_sites
from ..core.edm import step_position
from ..core.inversion.schedule import source_step
from ..core.inversion.trajectory import SHOWN, Trajectory, TrajectoryError, describe
from . import keys
from .attention_record import Recorder, record_source
from .bypass import Gate, bypass_patches
from .inversion import Unguided, conditioning_of, model_digest
from .patches import svd_layout
from .watched_attention import SPATIAL, TEMPORAL, watch_attention, with_pass

log = logging.getLogger(__name__)
NODE = "Match Attention"
KEY = f"{keys.PREFIX}_match_attention"
SOURCE = 2  # in cond_or_uncond, beside the host's 0 (conditional) and 1 (unconditional): rows of the source
BRANCHES = ("auto", "together", "one after another")
SCHEDULE_TOLERANCE = 1e-4  # relative; two schedulers' float arithmetic differs by 1e-6


@dataclass(frozen=True)
class Settings:
    """Numbers of the method, the paper's for local edits (section 5.1).

    thresholds: of the difference, at the first and towards the last frame.
    betas: shares of the steps at which the temporal selector's second and third stage begin.
    coarse_scale: the second stage replaces attention at 1 / this of the latent's size and smaller.
    """

    thresholds: tuple[float, float] = (0.35, 0.35)
    betas: tuple[float, float] = (0.5, 0.8)
    coarse_scale: int = 4
    spatial: bool = True
    temporal: bool = True
    branches: str = BRANCHES[0]


@dataclass
class ReadOut:
    """Attention differences of a model's last run: path -> [sum of differences, sum of weights, count, (h, w), Site]."""

    sites: dict[str, list] = field(default_factory=dict)

    def add(self, site: Site, difference: Tensor, weight: Tensor, size: tuple[int, int]) -> None:
        found = self.sites.get(site.path)
        if found is None or found[0].shape != difference.shape:
            self.sites[site.path] = [difference.clone(), weight.clone(), 1, size, site]
        else:
            found[0] += difference
            found[1] += weight
            found[2] += 1


@dataclass
class _Attached:
    """What Match Attention leaves on a model: the gate of its bypassed LoRAs, the read-out of its last run."""

    gate: Gate
    read_out: ReadOut
    plan: Plan | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a run of a matched model follows. Shared by clones and never changed."""

    trajectory: Trajectory
    settings: Settings
    sites: tuple[Site, ...]
    record: AttentionRecord | None
    change: Tensor | None  # (1 or T, H, W) in [0, 1]
    stay: Tensor | None
    gate: Gate
    read_out: ReadOut
    patched: int  # weight patches that the source has, too

    def __deepcopy__(self, memo: dict) -> Plan:
        return self  # older hosts deep-copy options with every clone


# ---- one pass --------------------------------------------------------------------------------------------------------


class MatchPass:
    """attend() of an edit's pass at one step: conditional rows are matched, all others are not."""

    def __init__(self, run: MatchRun, step: int, features: Mapping[str, Tensor] | None):
        self.run, self.step, self.features = run, step, features  # None: the source's rows are in the same pass

    def attend(self, block: str, site: str, kind: str, q: Tensor, k: Tensor, v: Tensor, heads: int,
               attention: Callable, options: dict) -> Tensor:
        run, groups = self.run, list(options.get("cond_or_uncond", (0,)))
        name = f"q|{block}" if kind == SPATIAL else f"p|{block}"
        if name not in run.wanted(self.step):
            return attention(q, k, v, heads)
        rows = len(q) // len(groups)

        def part(x: Tensor, group: int) -> Tensor:
            return x[group * rows:(group + 1) * rows]

        def source() -> tuple[Tensor, ...]:
            if self.features is None:
                at = groups.index(SOURCE)
                return part(q, at), part(k, at)
            found = [self.features[f"{n}|{block}"].to(q.device) for n in ("qk" if kind == SPATIAL else "p")]
            if len(found[0]) != rows:
                raise TrajectoryError(f"{NODE}: the record of {block} has {len(found[0])} rows, this run has {rows}. "
                                      "Record Attention again for this trajectory.")
            return tuple(found)

        out = []
        for group, kind_of_rows in enumerate(groups):
            own = part(q, group), part(k, group), part(v, group)
            if kind_of_rows != 0:
                out.append(attention(*own, heads))
            elif kind == SPATIAL:
                size = tuple(options["activations_shape"][-2:])
                matched = _matched(own, source(), heads, run.thresholds, run.mask(run.plan.change, size, q.device),
                                   run.mask(run.plan.stay, size, q.device), attention)
                run.plan.read_out.add(run.by_path[site], matched.difference, matched.weight, size)
                out.append(matched.out)
            else:
                found = source()
                probabilities = found[0] if self.features is not None else temporal_probabilities(*found, heads)
                out.append(apply_probabilities(probabilities, own[2]))
        return torch.cat(out)


def _matched(own: tuple[Tensor, ...], source: tuple[Tensor, ...], heads: int, thresholds: list[float], change: Tensor | None,
             stay: Tensor | None, attention: Callable) -> Matched:
    """Spatial matching by the kernel where there is a card for it, else rows at a time in torch."""
    if row_kernel.usable(own[0]):
        try:
            return matched_attention_fused(*own, *source, heads, thresholds, attention, row_kernel.total_variation, change, stay)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's errors have no common type
            row_kernel.give_up(error)
    return matched_attention(*own, *source, heads, thresholds, change, stay)


# ---- one run ---------------------------------------------------------------------------------------------------------


class MatchRun:
    """State of one sampling run. Its end is the run's end."""

    def __init__(self, plan: Plan, frames: int):
        self.plan = plan
        self.by_path = {site.path: site for site in plan.sites}
        self.thresholds = frame_thresholds(*plan.settings.thresholds, frames)
        self.coarse = coarse_sites(list(plan.sites), plan.settings.coarse_scale)
        self._conds: list | None = None
        self._features: tuple[int, Mapping[str, Tensor]] | None = None
        self._masks: dict[tuple, Tensor] = {}
        self._wanted: dict[int, set[str]] = {}
        plan.read_out.sites.clear()

    def step(self, sigma: Tensor) -> int:
        """The schedule's step that a noise level belongs to; between two levels, the noisier one's."""
        return int(step_position(float(sigma.flatten()[0]), self.plan.trajectory.sigmas))

    def wanted(self, step: int) -> set[str]:
        """Names of the features that a sampling step needs: none, and the source need not run."""
        if step not in self._wanted:
            settings, steps = self.plan.settings, self.plan.trajectory.steps
            second, third = stage_bounds(*settings.betas, steps)
            out = set()
            for site in self.plan.sites:
                if settings.spatial:
                    out |= {f"{n}|{site.path}.{SPATIAL}.0" for n in "qk"}
                if settings.temporal and (step < second or (step < third and site.path in self.coarse)):
                    out.add(f"p|{site.path}.{TEMPORAL}.0")
            self._wanted[step] = out
        return self._wanted[step]

    def mask(self, mask: Tensor | None, size: tuple[int, int], device: torch.device, least: bool = False) -> Tensor | None:
        """A user's mask at a token grid: (1 or T, L), each token the mean, or the least, of its area."""
        if mask is None:
            return None
        key = (id(mask), size, device, least)
        if key not in self._masks:
            pixels = mask[:, None].float()
            pooled = 1.0 - F.adaptive_max_pool2d(1.0 - pixels, size) if least else F.adaptive_avg_pool2d(pixels, size)
            self._masks[key] = pooled.flatten(1).to(device)
        return self._masks[key]

    def source_conds(self, model: Any, device: torch.device) -> list:
        """The source's conditioning as the host's batching takes it."""
        if self._conds is None:
            converted = comfy.sampler_helpers.convert_cond(conditioning_of(self.plan.trajectory.conditioning))
            state = self.plan.trajectory.states[0].to(device)
            self._conds = comfy.samplers.process_conds(model, state, {"positive": converted}, device)["positive"]
        return self._conds

    def paired(self, step: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """State and noise level at which the source is evaluated for a sampling step: (T, 4, h, w), (T,)."""
        index = source_step(step, self.plan.trajectory.steps)
        level = self.plan.trajectory.levels[index]
        return self.plan.trajectory.states[index].to(x), torch.full((len(x),), level, device=x.device, dtype=torch.float32)

    def features(self, step: int, replay: Callable[[Recorder], None], device: torch.device) -> Mapping[str, Tensor]:
        """What the source's attention does at a sampling step: from the record if it is there, else by running it."""
        if self._features is not None and self._features[0] == step:  # samplers and other nodes may ask again
            return self._features[1]
        self._features = None
        found = None if self.plan.record is None else self.plan.record.get(source_step(step, self.plan.trajectory.steps))
        if found is None:
            recorder = Recorder(self.wanted(step), spare_memory=not mm.is_device_cpu(device))
            replay(recorder)
            found = recorder.features
        self._features = step, found
        return found

    def together(self, model: Any, conds: list, x: Tensor) -> bool:
        """Whether the source's rows are to share the pass of the edit's."""
        if self.plan.settings.branches != "auto":
            return self.plan.settings.branches == "together"
        groups = 1 + sum(len(c) for c in conds if c is not None)
        return model.memory_required([groups * len(x), *x.shape[1:]]) * 1.5 < mm.get_free_memory(x.device)

    def close(self) -> None:
        self._conds, self._features = None, None
        self._masks.clear()
        for found in self.plan.read_out.sites.values():
            found[0], found[1] = found[0].cpu(), found[1].cpu()


def evaluate_matched(executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list:
    """CALC_COND_BATCH wrapper: the source first, then the edit with what it found."""
    options = model_options.get("transformer_options", {})
    run: MatchRun | None = options.get(keys.RUN)
    if run is None or keys.PASS in options:
        return executor(model, conds, x, timestep, model_options)
    mm.throw_exception_if_processing_interrupted()
    step = run.step(timestep)
    if not run.wanted(step):
        return executor(model, conds, x, timestep, model_options)
    recorded = run.plan.record is not None and run.plan.record.get(source_step(step, run.plan.trajectory.steps)) is not None
    if not recorded and run.together(model, conds, x):
        return executor(model, conds, x, timestep, with_pass(model_options, MatchPass(run, step, None)))

    def replay(recorder: Recorder) -> None:
        state, level = run.paired(step, x)
        gate = run.plan.gate
        gate.share = (0.0, 0.0)
        try:
            executor(model, [run.source_conds(model, x.device)], state, level, with_pass(model_options, recorder))
        finally:
            gate.share = (0.0, 1.0)

    features = run.features(step, replay, x.device)
    return executor(model, conds, x, timestep, with_pass(model_options, MatchPass(run, step, features)))


def _apply(executor: Callable, x: Tensor, t: Tensor, c_concat: Tensor | None = None, c_crossattn: Tensor | None = None,
           control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> Tensor:
    """APPLY_MODEL wrapper: where the source shares the pass, its rows go after the edit's, and come off the result."""
    options = transformer_options or {}
    at_work = options.get(keys.PASS)
    groups = list(options.get("cond_or_uncond", (0,)))
    if not isinstance(at_work, MatchPass) or at_work.features is not None or 0 not in groups:
        at_work_here = isinstance(at_work, MatchPass) and at_work.features is None
        if at_work_here:  # unconditional rows alone: nothing to match
            options = {k: v for k, v in options.items() if k != keys.PASS}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    run, frames = at_work.run, len(x) // len(groups)
    state, level = run.paired(at_work.step, x[:frames])
    model = executor.class_obj
    (cond,) = run.source_conds(model, x.device)
    found = comfy.samplers.get_area_and_mult(cond, state, level).conditioning
    own = {name: comfy.samplers.cond_cat([{name: value}])[name] for name, value in found.items()}
    given = {"c_concat": c_concat, "c_crossattn": c_crossattn, **kwargs}
    if control is not None or not _fit(given, own, len(x)):
        raise TrajectoryError(f"{NODE}: the edit's conditioning has other parts than the source's, so they cannot share a "
                              "pass. Set 'branches' to 'one after another'.")
    joined = {name: torch.cat([value, own[name].to(value)]) if isinstance(value, Tensor) else value
              for name, value in given.items()}
    options = {**options, "cond_or_uncond": [*groups, SOURCE]}
    gate = run.plan.gate
    gate.share = (0.0, len(groups) / (len(groups) + 1))
    try:
        out = executor(torch.cat([x, state]), torch.cat([t, level.to(t)]), joined.pop("c_concat"),
                       joined.pop("c_crossattn"), None, options, **joined)
    finally:
        gate.share = (0.0, 1.0)
    return out[:len(x)]


def _fit(given: dict[str, Any], own: dict[str, Any], rows: int) -> bool:
    """Whether the source's inputs can be appended to the edit's."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            other = own.get(name)
            if len(value) != rows or not isinstance(other, Tensor) or other.shape[1:] != value.shape[1:]:
                return False
        elif value is not None and own.get(name) != value:
            return False
    return True


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
    run = options[keys.RUN] = MatchRun(plan, len(noise))
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
    if not _part_of(sigmas, found.sigmas):
        raise TrajectoryError(f"{NODE}: the trajectory was made with {describe(found.sigmas)}, the sampler runs "
                              f"{describe(sigmas)}. Give the sampler the same SIGMAS as Invert EDM (Load Trajectory has them, "
                              "too), or invert again with these.")
    patches = sum(len(p) for p in model.patches.values())
    if patches != plan.patched:
        raise TrajectoryError(f"{NODE}: the model has {patches} weight patches where the source had {plan.patched}; a LoRA "
                              f"put on after {NODE} would change the source, too. Put it before {NODE}.")


def _part_of(sigmas: list[float], whole: tuple[float, ...]) -> bool:
    """Whether a schedule is a stretch of another; its last level may be a forced 0."""

    def close(a: float, b: float) -> bool:
        return abs(a - b) <= SCHEDULE_TOLERANCE * max(abs(a), abs(b))

    for start in range(len(whole) - len(sigmas) + 1):
        stretch = whole[start:start + len(sigmas)]
        if all(close(a, b) for a, b in zip(sigmas[:-1], stretch, strict=False)):
            return close(sigmas[-1], stretch[-1]) or sigmas[-1] == 0.0
    return False


# ---- holding areas on the source -------------------------------------------------------------------------------------


def _hold(args: dict) -> Tensor:
    """Post-guidance function: where the user's mask says stay, a prediction that lands an Euler step on the source's state."""
    run: MatchRun | None = args["model_options"].get("transformer_options", {}).get(keys.RUN)
    denoised, x = args["denoised"], args["input"]
    if run is None or run.plan.stay is None:
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
    stay = run.mask(run.plan.stay, found.size, x.device, least=True).unflatten(1, found.size)[:, None].to(x)
    return torch.lerp(denoised, landing, stay)


# ---- LoRAs beside the weights ----------------------------------------------------------------------------------------


# ---- attaching -------------------------------------------------------------------------------------------------------


def match_attention(model: ModelPatcher, trajectory: Trajectory, settings: Settings = Settings(),
                    record: AttentionRecord | None = None, change: Tensor | None = None, stay: Tensor | None = None,
                    hold: bool = True) -> ModelPatcher:
    """A clone whose sampling follows a source clip's attention. An earlier Match Attention on it is replaced.

    Args:
        model: the SVD model that the clip was inverted with, possibly with LoRAs besides: they act on the edit alone.
        record: attention recorded before; steps that it lacks, and all without one, are replayed.
        change, stay: (1 or T, H, W) in [0, 1], areas that must follow the edit, or the source.
        hold: keep `stay` areas on the source's own latents, too, not on its attention alone.

    Raises:
        WrongModel: not an SVD model.
        TrajectoryError: the trajectory, or the record, belongs to something else.
    """
    layout = svd_layout(model, NODE)
    if trajectory.reached != trajectory.steps:
        raise TrajectoryError(f"{NODE}: the trajectory has {trajectory.reached} of {trajectory.steps} steps; its inversion was "
                              "interrupted. Run Invert EDM to its end.")
    plain, patched = model_digest(model, False), model_digest(model, True)
    if trajectory.model not in (plain, patched):
        raise TrajectoryError(f"{NODE}: the trajectory belongs to the model {trajectory.model[:SHOWN]}, 'model' is "
                              f"{plain[:SHOWN]}" + (f" ({patched[:SHOWN]} with its LoRAs)" if patched != plain else "")
                              + ". Load the model that the clip was inverted with, at the same weight_dtype, or invert the "
                                "clip with this one.")
    if record is not None and record.source != record_source(trajectory):
        raise TrajectoryError(f"{NODE}: 'record' belongs to the trajectory {record.source[:SHOWN]}, 'trajectory' is "
                              f"{record_source(trajectory)[:SHOWN]}. Connect the same trajectory to Record Attention.")
    for name, mask in (("change", change), ("stay", stay)):
        if mask is not None and len(mask) not in (1, trajectory.frames):
            raise TrajectoryError(f"{NODE}: '{name}' has {len(mask)} masks, the trajectory has {trajectory.frames} frames. "
                                  "Give one mask for all frames, or one a frame.")
    clone = model.clone()
    before = clone.get_attachment(keys.READ_OUT)
    gate = Gate() if before is None else before.gate
    read_out = ReadOut()
    if trajectory.model == plain:
        bypass_patches(clone, gate)
    watch_attention(clone)
    plan = Plan(trajectory, settings, tuple(attention_sites(layout)), record, change, stay, gate, read_out,
                sum(len(p) for p in clone.patches.values()))
    clone.set_attachments(keys.READ_OUT, _Attached(gate, read_out, plan))
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _sample), (WrappersMP.CALC_COND_BATCH, evaluate_matched),
                          (WrappersMP.APPLY_MODEL, _apply)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    after = clone.model_options.get("sampler_post_cfg_function", [])
    clone.model_options["sampler_post_cfg_function"] = [f for f in after if f is not _hold]
    if stay is not None and hold:
        clone.set_model_sampler_post_cfg_function(_hold)
    replaced = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    if replaced:
        log.warning("FramePainter: %s: another node replaces self-attention in %d blocks; those are not matched.", NODE,
                    len(replaced))
    return clone


def read_out_of(model: ModelPatcher) -> tuple[ReadOut, Plan] | None:
    """The differences of a matched model's last run, and its plan; None if the model has no Match Attention."""
    attached = model.get_attachment(keys.READ_OUT)
    return None if attached is None or attached.plan is None else (attached.read_out, attached.plan)


def measure(model: ModelPatcher, positive: list, latent: Tensor, steps: Iterable[int]) -> None:
    """Fill a matched model's read-out from a finished edit, without its run: at each of the given steps the network sees the
    edit with the noise that the source has there.

    Args:
        latent: (T, 4, h, w) the finished edit, as the sampler returns it.
    """
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
