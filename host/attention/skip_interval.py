"""Skip-interval attention: a later clip's temporal self-attention also sees clip 0's keys and values (I2VEdit, section 4.1).

The published code stores them, 2.9 GB a step at full size. Here clip 0 is run again beside the later clip, step by step, from
its stored states (52 MB), so that keys and values of one step at a time exist. Queries are the later clip's alone.

What is attached to a model (`_PastInversion`, `_PastEdit`) is never changed. One sampling run has one `_Run`, which the outer
wrapper puts into the run's own copy of the options, and always removes and closes at the end.

Legend: T0 frames of clip 0, T of the later clip; rows are (groups * h * w, T, C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.attention.injection import Masks
from ...core.edm import step_position
from ...core.inversion.schedule import source_step
from ...core.inversion.trajectory import Trajectory, TrajectoryError
from .. import keys
from ..models.savings import save
from ..source import conditioning_of
from . import injection
from .bypass import Gate, bypass_past, bypass_patches
from .injection_run import SOURCE, InjectionRun, Plan, ReadOut, evaluate, groups_of
from .record import Recorder
from .watched import watch_attention

NODE = "Skip-interval attention"
KEY = f"{keys.PREFIX}_skip_interval"


class OwnNetwork(NamedTuple):
    """The network that clip 0 was edited with.

    inverted_with: the model that both clips were inverted with.  edited_with: the same with clip 0's motion LoRA.
    """

    inverted_with: ModelPatcher
    edited_with: ModelPatcher


@dataclass(frozen=True)
class PastEdit:
    """Clip 0's finished edit: everything from which its keys and values can be computed again.

    states: (steps, T0, 4, h, w) the network's input at each sampling step, in model space.  positive, negative: its
    CONDITIONING.  source: its source's trajectory.  network: the one that it was edited with, as published; None computes its keys
    and values with the later clip's LoRA.
    """

    states: Tensor
    positive: list
    negative: list
    source: Trajectory
    network: OwnNetwork | None = None


class Memory:
    """extend() of one pass: notes keys and values by group and block, or adds the noted ones in front."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.recording = True

    def extend(self, block: str, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        groups = groups_of(options)
        if isinstance(options.get(keys.PASS), Recorder):  # a pass of the source alone, beside an edit
            groups = [SOURCE] * len(groups)
        parts = zip(groups, k.chunk(len(groups)), v.chunk(len(groups)), strict=True)
        if self.recording:
            for group, own_k, own_v in parts:
                self.found[group, block] = own_k.detach(), own_v.detach()
            return k, v
        joined = []
        for group, own_k, own_v in parts:
            if (group, block) not in self.found:
                raise TrajectoryError(f"{NODE}: clip 0 was run without the rows of group {group}; use the same guidance for all "
                                      "clips.")
            past_k, past_v = self.found[group, block]
            joined.append((torch.cat([past_k.to(own_k), own_k], 1), torch.cat([past_v.to(own_v), own_v], 1)))
        return torch.cat([j[0] for j in joined]), torch.cat([j[1] for j in joined])


def _with(model_options: dict, **changes: Any) -> dict:
    """A copy of the options; a value of None takes the entry out."""
    out = comfy.model_patcher.create_model_options_clone(model_options)
    options = out.setdefault("transformer_options", {})
    for name, value in changes.items():
        options.pop(name, None)
        if value is not None:
            options[name] = value
    return out


# ---- one run ---------------------------------------------------------------------------------------------------------


class _Run:
    """What one sampling run keeps: clip 0's conditioning on the device, and its keys and values at the step at hand."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.memory = Memory()
        self.conds: list = []

    def step_of(self, sigma: float, source: bool) -> int:
        """Clip 0's step for a noise level; source: in a pass of the source alone, beside an edit."""
        raise NotImplementedError

    def look(self, executor: Callable, network: Any, step: int, x: Tensor, given: list, options: dict) -> None:
        """Run clip 0 at a step with options that store its keys and values.

        Args:
            x: the later clip's state, for device and type.  given: the later clip's conditionings.
        """
        raise NotImplementedError

    def close(self) -> None:
        self.step, self.memory = None, Memory()
        self.conds.clear()


def _nearest(levels: list[float], sigma: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(levels[i] - sigma))


class _InversionRun(_Run):
    def __init__(self, past: Trajectory):
        super().__init__()
        self.past, self.levels = past, past.levels

    def step_of(self, sigma: float, source: bool) -> int:
        return _nearest(self.levels, sigma)

    def look(self, executor: Callable, network: Any, step: int, x: Tensor, given: list, options: dict) -> None:
        state = self.past.states[step].to(x)
        if not self.conds:
            self.conds += _processed(network, conditioning_of(self.past.conditioning), None, state)
        executor(network, self.conds[:1], state, torch.full((len(state),), self.levels[step], device=x.device), options)


class _EditRun(_Run):
    def __init__(self, past: PastEdit, plan: Plan | None, gate: Gate):
        super().__init__()
        self.past, self.source_levels, self.gate = past, past.source.levels, gate
        self.injection = None if plan is None else InjectionRun(replace(plan, read_out=ReadOut()), past.states.shape[1])

    def step_of(self, sigma: float, source: bool) -> int:
        if source:
            return source_step(_nearest(self.source_levels, sigma), self.past.source.steps)
        return int(step_position(sigma, self.past.source.sigmas))

    def look(self, executor: Callable, network: Any, step: int, x: Tensor, given: list, options: dict) -> None:
        state = self.past.states[step].to(x)
        if not self.conds:
            self.conds += _processed(network, self.past.positive, self.past.negative, state)
        guided = len(given) > 1 and given[1] is not None
        # In a pass of the source alone `given` has one entry; the edit's own passes are still to come.
        both = [self.conds[0], self.conds[1] if guided or len(given) == 1 else None]
        level = torch.full((len(state),), self.past.source.sigmas[step], device=x.device)
        self.gate.past = True
        try:
            evaluate(executor, network, both, state, level, _with(options, **{keys.RUN: self.injection}))
        finally:
            self.gate.past = False

    def close(self) -> None:
        super().close()
        if self.injection is not None:
            self.injection.close()


def _processed(model: Any, positive: list, negative: list | None, state: Tensor) -> list:
    """CONDITIONING as the host's batching takes it."""
    given = {"positive": comfy.sampler_helpers.convert_cond(positive)}
    if negative is not None:
        given["negative"] = comfy.sampler_helpers.convert_cond(negative)
    found = comfy.samplers.process_conds(model, state, given, state.device)
    return [found["positive"], found.get("negative")]


# ---- wrappers --------------------------------------------------------------------------------------------------------


def _sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """OUTER_SAMPLE wrapper: a run begins, and is closed whatever happens."""
    guider = executor.class_obj
    past = guider.model_patcher.get_attachment(keys.PAST)
    if past is None:
        return executor(*args, **kwargs)
    options = guider.model_options.setdefault("transformer_options", {})
    run = options[keys.PAST_RUN] = past.begin()
    try:
        return executor(*args, **kwargs)
    finally:
        options.pop(keys.PAST_RUN, None)
        run.close()


def _evaluate(executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list:
    """CALC_COND_BATCH wrapper: at every new step clip 0 first, then the later clip with what was found."""
    options = model_options.get("transformer_options", {})
    run: _Run | None = options.get(keys.PAST_RUN)
    if run is None or keys.MEMORY in options:
        return executor(model, conds, x, timestep, model_options)
    step = run.step_of(float(timestep.flatten()[0]), isinstance(options.get(keys.PASS), Recorder))
    if step != run.step:
        mm.throw_exception_if_processing_interrupted()
        run.step, run.memory = None, Memory()
        run.look(executor, model, step, x, conds, _with(model_options, **{keys.PASS: None, keys.MEMORY: run.memory}))
        run.memory.recording = False
        run.step = step
    return executor(model, conds, x, timestep, _with(model_options, **{keys.MEMORY: run.memory}))


# ---- attaching -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PastInversion:
    trajectory: Trajectory

    def begin(self) -> _Run:
        return _InversionRun(self.trajectory)


@dataclass(frozen=True)
class _PastEdit:
    edit: PastEdit
    plan: Plan | None  # of Match Attention, for clip 0
    gate: Gate

    def begin(self) -> _Run:
        return _EditRun(self.edit, self.plan, self.gate)


def _attach(model: ModelPatcher, past: _PastInversion | _PastEdit) -> ModelPatcher:
    clone = model.clone()
    watch_attention(clone)
    save(clone)
    clone.set_attachments(keys.PAST, past)
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _sample), (WrappersMP.CALC_COND_BATCH, _evaluate)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def remember_inversion(model: ModelPatcher, past: Trajectory) -> ModelPatcher:
    """A clone that inverts a later clip beside clip 0's source, with the same inversion steps and the same size."""
    return _attach(model, _PastInversion(past))


def remember_edit(model: ModelPatcher, past: PastEdit) -> ModelPatcher:
    """A clone that edits a later clip beside clip 0's edit, and source rows beside clip 0's source. Apply it after Match Attention.

    Raises:
        TrajectoryError: clip 0 was sampled with another number of steps.
    """
    if len(past.states) != past.source.steps:
        raise TrajectoryError(f"{NODE}: clip 0 has {len(past.states)} sampling steps, its inversion {past.source.steps}.")
    found, plan, gate = injection.read_out_of(model), None, Gate()
    if found is not None:
        # The past follows its own source through the later clip's patches, whose gate says where LoRAs act.
        plan = replace(found[1], trajectory=past.source, record=None, masks=Masks())
        gate = plan.gate
    clone = _attach(model, _PastEdit(past, plan, gate))
    if past.network is not None:
        if found is None:
            bypass_patches(clone, gate, past.network.inverted_with)
        bypass_past(clone, past.network.edited_with, gate, past.network.inverted_with)
    return clone
