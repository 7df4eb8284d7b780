"""Skip-interval attention: a later clip's temporal self-attention also sees clip 0's keys and values (I2VEdit, section 4.3).

The published code stores them, 2.9 GB a step at full size. Here clip 0 is run again beside the later clip, step by step, from
its stored states (52 MB), so that keys and values of one step at a time exist. Queries are the later clip's alone.

Legend: T0 frames of clip 0, T of the later clip; rows are (groups * h * w, T, C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.edm import step_position
from ...core.inversion.schedule import source_step
from ...core.inversion.trajectory import Trajectory, TrajectoryError
from .. import keys
from ..inversion.source import conditioning_of
from . import injection as matching
from .injection_run import SOURCE, MatchRun, ReadOut, evaluate_matched
from .record import Recorder
from .watched import watch_attention

NODE = "Skip-interval attention"
KEY = f"{keys.PREFIX}_skip_interval"


@dataclass(frozen=True)
class PastEdit:
    """Clip 0's finished edit, as far as its keys and values can be made again from it.

    states: (steps, T0, 4, h, w) what the network saw at each sampling step, model space.  positive, negative: its
    CONDITIONING.  source: its source's trajectory.
    """

    states: Tensor
    positive: list
    negative: list
    source: Trajectory

    def __deepcopy__(self, memo: dict) -> PastEdit:
        return self  # older hosts deep-copy options with every clone


class Memory:
    """extend() of one pass: notes keys and values by group and block, or adds the noted ones in front."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.recording = True

    def extend(self, block: str, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        groups = list(options.get("cond_or_uncond", (0,)))
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


class _Remember:
    """CALC_COND_BATCH wrapper: at every new step clip 0 first, then the later clip with what was found."""

    def __init__(self, levels: Callable[[float, bool], int], evaluate: Callable):
        self.step_of, self.evaluate = levels, evaluate
        self.step: int | None = None
        self.memory = Memory()

    def __deepcopy__(self, memo: dict) -> _Remember:
        return self

    def __call__(self, executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list:
        options = model_options.get("transformer_options", {})
        if keys.MEMORY in options:
            return executor(model, conds, x, timestep, model_options)
        step = self.step_of(float(timestep.flatten()[0]), isinstance(options.get(keys.PASS), Recorder))
        if step != self.step:
            mm.throw_exception_if_processing_interrupted()
            self.step, self.memory = None, Memory()
            self.evaluate(executor, model, step, x, conds, _with(model_options, **{keys.PASS: None, keys.MEMORY: self.memory}))
            self.memory.recording = False
            self.step = step
        return executor(model, conds, x, timestep, _with(model_options, **{keys.MEMORY: self.memory}))

    def forget(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """OUTER_SAMPLE wrapper: nothing is kept from one run to the next."""
        self.step, self.memory = None, Memory()
        try:
            return executor(*args, **kwargs)
        finally:
            self.step, self.memory = None, Memory()


def _attach(model: ModelPatcher, wrapper: _Remember) -> ModelPatcher:
    clone = model.clone()
    watch_attention(clone)
    for kind, call in ((WrappersMP.OUTER_SAMPLE, wrapper.forget), (WrappersMP.CALC_COND_BATCH, wrapper)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, call)
    return clone


def _processed(model: Any, positive: list, negative: list | None, state: Tensor) -> list:
    """CONDITIONING as the host's batching takes it."""
    given = {"positive": comfy.sampler_helpers.convert_cond(positive)}
    if negative is not None:
        given["negative"] = comfy.sampler_helpers.convert_cond(negative)
    found = comfy.samplers.process_conds(model, state, given, state.device)
    return [found["positive"], found.get("negative")]


def remember_inversion(model: ModelPatcher, past: Trajectory) -> ModelPatcher:
    """A clone that inverts a later clip with clip 0's source in sight: same inversion steps, same size."""
    conds: list = []
    levels = past.levels

    def step_of(sigma: float, _: bool) -> int:
        return min(range(len(levels)), key=lambda i: abs(levels[i] - sigma))

    def evaluate(executor: Callable, network: Any, step: int, x: Tensor, _: list, options: dict) -> None:
        state = past.states[step].to(x)
        if not conds:
            conds.append(_processed(network, conditioning_of(past.conditioning), None, state)[0])
        executor(network, [conds[0]], state, torch.full((len(state),), levels[step], device=x.device), options)

    return _attach(model, _Remember(step_of, evaluate))


def remember_edit(model: ModelPatcher, past: PastEdit) -> ModelPatcher:
    """A clone that edits a later clip with clip 0's edit in sight, source rows with its source. Apply it after Match Attention.

    Raises:
        TrajectoryError: clip 0 was sampled with another number of steps.
    """
    matched = matching.read_out_of(model)
    sigmas = past.source.sigmas
    if len(past.states) != past.source.steps:
        raise TrajectoryError(f"{NODE}: clip 0 has {len(past.states)} sampling steps, its inversion {past.source.steps}.")
    plan = None
    if matched is not None:
        # The past follows its own source through the later clip's patches, whose gate says where LoRAs act.
        plan = replace(matched[1], trajectory=past.source, record=None, change=None, stay=None, read_out=ReadOut())
    conds: list = []
    runs: list = []

    def step_of(sigma: float, source: bool) -> int:
        if source:
            levels = past.source.levels
            return source_step(min(range(len(levels)), key=lambda i: abs(levels[i] - sigma)), past.source.steps)
        return int(step_position(sigma, sigmas))

    def evaluate(executor: Callable, network: Any, step: int, x: Tensor, given: list, options: dict) -> None:
        state = past.states[step].to(x)
        if not conds:
            conds.extend(_processed(network, past.positive, past.negative, state))
        if plan is not None and not runs:
            runs.append(MatchRun(plan, len(state)))
        run = runs[0] if runs else None
        guided = len(given) > 1 and given[1] is not None
        # In a pass of the source alone `given` has one entry; the edit's own passes are still to come.
        both = [conds[0], conds[1] if guided or len(given) == 1 else None]
        evaluate_matched(executor, network, both, state, torch.full((len(state),), sigmas[step], device=x.device),
                           _with(options, **{keys.RUN: run}))

    return _attach(model, _Remember(step_of, evaluate))
