"""A source's attention features: collected during its passes, and recorded before the edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.attention.injection import temporal_probabilities
from ...core.attention.record import AttentionRecord
from ...core.inversion.trajectory import SHOWN, Trajectory, TrajectoryError
from ..models.identity import made_by, model_digest
from ..models.savings import save
from ..report import Steps, warn
from ..source import conditioning_of, run_source
from .watched import SPATIAL, watch_attention, with_pass


class Recorder:
    """attend() of a source pass: plain attention, noting what `wanted` asks for."""

    def __init__(self, wanted: set[str] | None, spare_memory: bool = False):
        self.wanted, self.spare_memory = wanted, spare_memory
        self.features: dict[str, Tensor] = {}

    def attend(self, block: str, site: str, kind: str, q: Tensor, k: Tensor, v: Tensor, heads: int,
               attention: Callable, options: dict) -> Tensor:
        names = [f"q|{block}", f"k|{block}"] if kind == SPATIAL else [f"p|{block}"]
        if self.wanted is None or names[0] in self.wanted:
            found = [q, k] if kind == SPATIAL else [temporal_probabilities(q, k, heads)]
            if self.spare_memory and mm.get_free_memory(q.device) < 4 * sum(x.nbytes for x in found):
                found = [x.cpu() for x in found]
            self.features.update(zip(names, found, strict=True))
        return attention(q, k, v, heads)


def source_features(model: ModelPatcher, trajectory: Trajectory, steps: Iterable[int],
                    each: Callable[[int, dict[str, Tensor]], bool]) -> None:
    """Run the source network at inversion steps and pass on each step's features, until told to stop.

    Args:
        each: called with step and features; False stops.
    """
    watched = model.clone()
    watch_attention(watched)
    save(watched)
    levels = trajectory.levels

    def look(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback: Any = None,
             disable: Any = None) -> Tensor:
        extra = dict(extra_args or {})
        options = extra.pop("model_options", {})
        for index in steps:
            recorder = Recorder(None, spare_memory=not mm.is_device_cpu(x.device))
            state = trajectory.states[index].to(x)
            model_k(state, sigmas[index].expand(len(x)), model_options=with_pass(options, recorder), **extra)
            if not each(index, recorder.features):
                break
        return x

    run_source(watched, conditioning_of(trajectory.conditioning), torch.zeros_like(trajectory.states[0]), levels, look)


def record_attention(model: ModelPatcher, trajectory: Trajectory, folder: Path | None, kind: torch.dtype,
                     budget: int) -> AttentionRecord:
    """Record a source's attention for the edits to come; the last sampling steps' source first, as long as the budget lasts.

    Args:
        model: the model of the trajectory.  folder: None for memory.  budget: bytes.

    Raises:
        RecordError: the disk is full or may not be written to.
        TrajectoryError: the trajectory is another model's.
    """
    if not made_by(trajectory.model, model, True):
        given = model_digest(model, True, fresh=False)
        raise TrajectoryError(f"the trajectory belongs to the model {trajectory.model[:SHOWN]}, 'model' is {given[:SHOWN]}. "
                              "Connect the model that the clip was inverted with, without the edit's LoRAs.")
    record = AttentionRecord(folder, kind, budget, trajectory.digest())
    steps = Steps(trajectory.steps)
    try:
        def each(step: int, features: dict[str, Tensor]) -> bool:
            kept = record.put(step, features)
            steps.step()
            return kept

        source_features(model, trajectory, range(trajectory.steps), each)
    except BaseException:
        record.close()
        raise
    if len(record.steps) < trajectory.steps:
        warn(f"the budget of {budget / 1000000000.0:.2f} GB holds {len(record.steps)} of {trajectory.steps} steps; for the others "
             "the source runs again.")
    return record
