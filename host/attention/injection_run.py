"""One sampling run with attention injection: its state, which source features belong to a step, and how they are applied."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as mm
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.attention import row_kernel
from ...core.attention.injection import (
    Injected,
    Masks,
    SourceQK,
    frame_thresholds,
    inject_temporal,
    injected_attention,
    injected_attention_fused,
    stage_bounds,
    temporal_probabilities,
)
from ...core.attention.record import AttentionRecord
from ...core.attention.sites import Site, coarse_sites
from ...core.edm import step_position
from ...core.inversion.schedule import source_step
from ...core.inversion.trajectory import Trajectory, TrajectoryError
from .. import keys
from ..source import conditioning_of
from .bypass import Gate
from .record import Recorder
from .watched import SPATIAL, TEMPORAL, with_pass

NODE = "Match Attention"
SOURCE = 2  # among the groups of a pass, beside the host's 0 (conditional) and 1 (unconditional): rows of the source
SOURCE_ID = uuid.uuid4()  # of that group among the host's ids of conditionings, by which caches of other nodes know rows again
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

    def identity(self) -> tuple:
        """Nothing of it changes a result; see host/models/identity.py."""
        return ()

    def add(self, site: Site, difference: Tensor, weight: Tensor, size: tuple[int, int]) -> None:
        found = self.sites.get(site.path)
        if found is None or found[0].shape != difference.shape:
            self.sites[site.path] = [difference.clone(), weight.clone(), 1, size, site]
        else:
            found[0] += difference
            found[1] += weight
            found[2] += 1


@dataclass(frozen=True)
class Plan:
    """Everything that a run with attention injection follows. Shared by clones and never changed."""

    trajectory: Trajectory
    settings: Settings
    sites: tuple[Site, ...]
    record: AttentionRecord | None
    masks: Masks  # of pixels
    gate: Gate
    read_out: ReadOut
    patched: int  # weight patches that the source has, too

    def __deepcopy__(self, memo: dict) -> Plan:
        return self  # older hosts deep-copy options with every clone


# ---- one pass --------------------------------------------------------------------------------------------------------


def groups_of(options: dict) -> list[int]:
    """What each group of rows of a pass is: 0 conditional, 1 unconditional, SOURCE.

    Other nodes index with the host's `cond_or_uncond`, where the source's rows are conditional ones; ours are told apart beside it.
    """
    return list(options.get(keys.GROUPS, options.get("cond_or_uncond", (0,))))


class InjectionPass:
    """attend() of an edit's pass at one step: the source's attention goes into conditional rows, and into no others."""

    def __init__(self, run: InjectionRun, step: int, features: Mapping[str, Tensor] | None):
        self.run, self.step, self.features = run, step, features  # None: the source's rows are in the same pass

    def attend(self, block: str, site: str, kind: str, q: Tensor, k: Tensor, v: Tensor, heads: int,
               attention: Callable, options: dict) -> Tensor:
        run, groups = self.run, groups_of(options)
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
                injected = _injected(own, SourceQK(*source()), heads, run.thresholds, run.masks(size, q.device), attention)
                run.plan.read_out.add(run.by_path[site], injected.difference, injected.weight, size)
                out.append(injected.out)
            else:
                found = source()
                probabilities = found[0] if self.features is not None else temporal_probabilities(*found, heads)
                change = run.masks(tuple(options["activations_shape"][-2:]), q.device).change
                out.append(inject_temporal(probabilities, own[2], change, lambda own=own: attention(*own, heads)))
        return torch.cat(out)


def _injected(own: tuple[Tensor, ...], source: SourceQK, heads: int, thresholds: list[float], masks: Masks,
              attention: Callable) -> Injected:
    """Spatial injection by the kernel where there is a card for it, else rows at a time in torch."""
    if row_kernel.usable(own[0]):
        try:
            return injected_attention_fused(*own, source, heads, thresholds, attention, row_kernel.total_variation, masks)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's errors have no common type
            row_kernel.give_up(error)
    return injected_attention(*own, source, heads, thresholds, masks)


# ---- one run ---------------------------------------------------------------------------------------------------------


class InjectionRun:
    """State of one sampling run; it is discarded when the run ends."""

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

    def masks(self, size: tuple[int, int], device: torch.device) -> Masks:
        """The user's masks at a token grid, each token the mean of its area."""
        return Masks(*(self.mask(m, size, device) for m in self.plan.masks))

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
        """The source's attention features at a sampling step: from the record if they are there, else by running the source."""
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
        """Whether the source's rows share the pass of the edit's."""
        if self.plan.settings.branches != "auto":
            return self.plan.settings.branches == "together"
        groups = 1 + sum(len(c) for c in conds if c is not None)
        return model.memory_required([groups * len(x), *x.shape[1:]]) * 1.5 < mm.get_free_memory(x.device)

    def close(self) -> None:
        self._conds, self._features = None, None
        self._masks.clear()
        for found in self.plan.read_out.sites.values():
            found[0], found[1] = found[0].cpu(), found[1].cpu()


def evaluate(executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list:
    """CALC_COND_BATCH wrapper: the source first, then the edit with what it found."""
    options = model_options.get("transformer_options", {})
    run: InjectionRun | None = options.get(keys.RUN)
    if run is None or keys.PASS in options:
        return executor(model, conds, x, timestep, model_options)
    mm.throw_exception_if_processing_interrupted()
    step = run.step(timestep)
    if not run.wanted(step):
        return executor(model, conds, x, timestep, model_options)
    recorded = run.plan.record is not None and run.plan.record.get(source_step(step, run.plan.trajectory.steps)) is not None
    if not recorded and run.together(model, conds, x):
        return executor(model, conds, x, timestep, with_pass(model_options, InjectionPass(run, step, None)))

    def replay(recorder: Recorder) -> None:
        state, level = run.paired(step, x)
        gate = run.plan.gate
        gate.share = (0.0, 0.0)
        try:
            executor(model, [run.source_conds(model, x.device)], state, level, with_pass(model_options, recorder))
        finally:
            gate.share = (0.0, 1.0)

    features = run.features(step, replay, x.device)
    return executor(model, conds, x, timestep, with_pass(model_options, InjectionPass(run, step, features)))


def apply(executor: Callable, x: Tensor, t: Tensor, c_concat: Tensor | None = None, c_crossattn: Tensor | None = None,
           control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> Tensor:
    """APPLY_MODEL wrapper: if the source shares the pass, its rows are appended to the edit's and removed from the result."""
    options = transformer_options or {}
    at_work = options.get(keys.PASS)
    groups = list(options.get("cond_or_uncond", (0,)))
    if not isinstance(at_work, InjectionPass) or at_work.features is not None or 0 not in groups:
        at_work_here = isinstance(at_work, InjectionPass) and at_work.features is None
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
    options = {**options, "cond_or_uncond": [*groups, 0], keys.GROUPS: [*groups, SOURCE],
               "uuids": [*options.get("uuids", ()), SOURCE_ID]}
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
