"""The training loop: one for every model of this pack.

What is trained, and how a batch becomes a loss, comes from the caller; this module has the order of the steps. All randomness of a
step comes from (seed, step, micro-batch, rank), so a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..atomic import sweep, write_errors
from ..finite import not_finite
from .state import StateError, load_state, save_state, states, trim_log


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run; the defaults are the paper's (section 4.1) where it gives any."""

    steps: int = 20_000                     # Optimiser steps.
    learning_rate: float = 1e-5             # AdamW's.
    warmup: int = 0                         # Steps of linear rise from 0 to learning_rate.
    decay_from: int = 0                     # Step from which it falls along a half cosine, to 0 at the end. 0 = never.
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    accumulate: int = 1                     # Micro-batches a step.
    clip: float = 1.0                       # Largest gradient norm. 0 = no clipping.
    ema: float = 0.0                        # Decay of the averaged weights. 0 = none.
    seed: int = 0
    save_every: int = 250                   # Steps between states. 0 = only at the end.
    tolerate: int = 0                       # Steps in a row that may be skipped because the loss or a gradient is not finite.
    loss_scale: float = 0.0                 # First factor on the loss that keeps fp16 gradients in range. 0 = none.

    def rate(self, step: int) -> float:
        """The learning rate at a step (1-based)."""
        rise = min(1.0, step / max(self.warmup, 1))
        if not self.decay_from or step <= self.decay_from:
            return self.learning_rate * rise
        done = min(1.0, (step - self.decay_from) / max(self.steps - self.decay_from, 1))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done))


class Step(NamedTuple):
    """The report of a finished step: its number (1-based), the losses' means, gradient norm before clipping, seconds.

    left_out: why the step was skipped and changed nothing, or empty. Its losses are then missing.
    """

    step: int
    losses: dict[str, float]
    gradient_norm: float
    seconds: float
    left_out: str = ""


class NonFinite(RuntimeError):
    """A loss, gradient or weight is inf or NaN. The text says where, and from which state one can resume."""


REMEDY = "Lower learning_rate, or train in bf16 or fp32, and resume from the last saved state."
SCALE_UP_EVERY = 200  # good steps after which the loss factor is doubled
LOSS_SCALE = 2.0**14  # the first loss factor of runs in fp16
TOLERATED = 5         # steps in a row that runs on a single video may skip

# (step, micro-batch, generator) -> named losses; "loss" is the one that is differentiated.
BatchLoss = Callable[[int, int, torch.Generator], Mapping[str, Tensor]]


def step_generator(seed: int, step: int, micro: int = 0, rank: int = 0) -> torch.Generator:
    """A CPU generator that depends on nothing but these four numbers."""
    mixed = seed
    for part in (step, micro, rank):  # the constants of splitmix64: neighbouring numbers give unrelated seeds
        mixed = (mixed + 0x9E3779B97F4A7C15 + part) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes share in parts (FSDP), gathered; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(value: Tensor, example: Tensor) -> Tensor:
    """A whole tensor on the example's device, in its type, and in parts over the processes if the example is."""
    if not hasattr(example, "full_tensor"):
        return value.to(example)
    from torch.distributed.tensor import distribute_tensor

    local = value.to(device=example.device, dtype=example.dtype)
    return distribute_tensor(local, example.device_mesh, example.placements)


class Trainer:
    """Optimiser, averages and step counter of one run.

    Args:
        parameters: what is trained, by name; everything else stays as it is.
        settings: see TrainSettings.
        reduce: averages a list of gradients over processes, in place; None for one process.
        rank: this process's number, for its own randomness.
    """

    def __init__(self, parameters: Mapping[str, Parameter], settings: TrainSettings,
                 reduce: Callable[[list[Tensor]], None] | None = None, rank: int = 0):
        self.parameters, self.settings, self.reduce, self.rank = dict(parameters), settings, reduce, rank
        self.optimizer = torch.optim.AdamW(self.parameters.values(), settings.learning_rate, settings.betas,
                                           weight_decay=settings.weight_decay, fused=True)
        self.averages = {n: p.detach().clone().float() for n, p in self.parameters.items()} if settings.ema else {}
        self.step = 0
        self.scale, self.good_steps, self.left_out = settings.loss_scale, 0, 0

    # ---- one step ----

    def advance(self, batch_loss: BatchLoss) -> Step:
        """One optimiser step.

        Raises:
            NonFinite: before anything was changed.
        """
        start = time.perf_counter()
        number = self.step + 1
        sums, norm = self._gradients(batch_loss, number)
        while self.scale > 1 and not math.isfinite(norm) and all(map(math.isfinite, sums.values())):
            self.scale, self.good_steps = self.scale / 2, 0  # fp16 overflowed in the backward pass: the same step, smaller
            sums, norm = self._gradients(batch_loss, number)
        problem = self._problem(number, sums, norm)
        if problem:
            self.left_out += 1
            if self.left_out > self.settings.tolerate:
                raise NonFinite(f"{problem}; the weights are still those of step {self.step - self.left_out + 1}. {REMEDY}")
            self.step = number
            return Step(number, {}, 0.0, time.perf_counter() - start, problem)
        self.left_out = 0
        self.good_steps += 1
        if self.scale and self.good_steps % SCALE_UP_EVERY == 0:
            self.scale *= 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(number)
        self.optimizer.step()
        self._average(number)
        self.step = number
        return Step(number, sums, norm, time.perf_counter() - start)

    def _gradients(self, batch_loss: BatchLoss, number: int) -> tuple[dict[str, float], float]:
        """A step's gradients in place; its losses and the gradients' norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        scale = self.scale or 1.0
        for micro in range(self.settings.accumulate):
            losses = batch_loss(number, micro, step_generator(self.settings.seed, number, micro, self.rank))
            (losses["loss"] * (scale / self.settings.accumulate)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / self.settings.accumulate
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if scale != 1:
            torch._foreach_div_(gradients, scale)
        if self.reduce is not None:
            self.reduce(gradients)
        limit = self.settings.clip or math.inf
        return sums, float(whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)))

    def _problem(self, number: int, losses: Mapping[str, float], norm: float) -> str:
        bad = [f"{name} is {value}" for name, value in {**losses, "the gradient norm": norm}.items()
               if not math.isfinite(value)]
        return f"At step {number} {' and '.join(bad)}" if bad else ""

    @torch.no_grad()
    def _average(self, number: int) -> None:
        # Early on the average follows more closely, else it would remember the initial weights for 1/(1-ema) steps.
        decay = min(self.settings.ema, (1 + number) / (10 + number))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach().float(), 1 - decay)

    # ---- state ----

    @property
    def updates(self) -> int:
        """Steps of the whole run that changed the weights; the others were skipped."""
        return max((int(s["step"]) for s in self.optimizer.state.values() if "step" in s), default=0)

    def check_finite(self) -> None:
        """Refuse weights that must not be kept.

        Raises:
            NonFinite: a weight is inf or NaN.
        """
        bad = [name for name, p in self.parameters.items() if not_finite({name: whole(p)})]  # gathered one at a time
        if bad:
            raise NonFinite(f"At step {self.step} {len(bad)} trained weights are not finite, {bad[0]} the first. {REMEDY}")

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a continued run needs, by name. Of sharded parameters too, so every process must call it."""
        out = {f"parameter/{n}": whole(p) for n, p in self.parameters.items()}
        out |= {f"average/{n}": whole(t) for n, t in self.averages.items()}
        if self.scale:
            out["scale"] = torch.tensor([self.scale, self.good_steps], dtype=torch.float64)
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"optimizer/{key}/{name}"] = whole(torch.as_tensor(value))
        return out

    def misfits(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of saved tensors that are missing, of another shape, or AdamW's and unknown; none if a run can resume from them."""
        wanted = {f"parameter/{n}": p.shape for n, p in self.parameters.items()}
        wanted |= {f"average/{n}": t.shape for n, t in self.averages.items()}
        for name, parameter in self.parameters.items():
            moments = {f"optimizer/{key}/{name}": shape for key, shape in _moments(parameter).items()}
            if moments.keys() & tensors.keys():  # a parameter without a gradient so far has none
                wanted |= moments
        if "scale" in tensors:
            wanted["scale"] = torch.Size([2])
        wrong = {name for name, shape in wanted.items()
                 if name not in tensors or tensors[name].shape != shape or not tensors[name].is_floating_point()}
        return sorted(wrong | {name for name in tensors if name.startswith("optimizer/") and name not in wanted})

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue from saved tensors."""
        for name, parameter in self.parameters.items():
            parameter.copy_(like(tensors[f"parameter/{name}"], parameter))
            if name in self.averages:
                self.averages[name].copy_(like(tensors[f"average/{name}"], self.averages[name]))
            moments = {key.split("/", 2)[1]: value for key, value in tensors.items()
                       if key.startswith("optimizer/") and key.split("/", 2)[2] == name}
            # AdamW keeps its own step count on the CPU, its moments where the parameter is.
            self.optimizer.state[parameter] = {
                key: value.clone() if key == "step" else like(value, parameter).clone() for key, value in moments.items()}
        self.step = step
        if "scale" in tensors:
            self.scale, self.good_steps = (float(v) for v in tensors["scale"])


# What two runs must share to be the same run; the rest (length, how often to save) may change on the way.
_BINDING = ("learning_rate", "warmup", "decay_from", "betas", "weight_decay", "accumulate", "clip", "ema", "seed")


def _binding(trainer: Trainer, identity: Mapping[str, Any] | None) -> dict:
    values = asdict(trainer.settings)
    kept = {name: values[name] for name in _BINDING}
    kept["betas"] = list(kept["betas"])
    if trainer.settings.decay_from:  # then the length says how fast the rate falls
        kept["steps"] = trainer.settings.steps
    return {**kept, **(identity or {}), "trained": sorted(trainer.parameters)}


def train(trainer: Trainer, batch_loss: BatchLoss, folder: Path, report: Callable[[Step], None] | None = None,
          check_stop: Callable[[], None] | None = None, identity: Mapping[str, Any] | None = None) -> list[Step]:
    """Run a trainer to its end, from the newest state in the folder if there is one.

    Args:
        folder: for states and stats.jsonl.
        report: called with every step.
        check_stop: called before every step; whatever it raises ends the run, after a state has been saved.
        identity: what else identifies this run (data, network, batch), as JSON; a state with another identity is refused.

    Returns:
        The steps that this call made.

    Raises:
        NonFinite: too many steps in a row were skipped, or all of them; the text names the folder.
        StateError, WriteError: see there.
    """
    try:
        return _train(trainer, batch_loss, folder, report, check_stop, _binding(trainer, identity))
    except NonFinite as error:
        raise NonFinite(f"{error} States: '{folder}'.") from None


def _train(trainer: Trainer, batch_loss: BatchLoss, folder: Path, report: Callable[[Step], None] | None,
           check_stop: Callable[[], None] | None, binding: dict) -> list[Step]:
    log = folder / "stats.jsonl"
    _resume(trainer, folder, binding)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if trainer.rank == 0:
        sweep(folder)
        trim_log(log, trainer.step)
    tried, made = trainer.step, []

    def save() -> None:
        nonlocal tried
        if trainer.step > tried and trainer.updates:  # a state of skipped steps alone would bar the way to another attempt
            tried = trainer.step
            trainer.check_finite()
            tensors = trainer.tensors()  # in all processes: shared parameters are gathered
            if trainer.rank == 0:
                save_state(folder, trainer.step, tensors, binding)

    try:
        while trainer.step < trainer.settings.steps:
            if check_stop is not None:
                check_stop()
            made.append(trainer.advance(batch_loss))
            if trainer.rank == 0:
                with write_errors(log), log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(made[-1]._asdict()) + "\n")
            if report is not None:
                report(made[-1])
            if trainer.settings.save_every and trainer.step % trainer.settings.save_every == 0:
                save()
    finally:
        save()
    if trainer.step and not trainer.updates:
        raise NonFinite(f"All {trainer.step} steps were skipped, as the loss or a gradient was not finite; nothing was learned. "
                        "Lower learning_rate, or train in bf16 or fp32.")
    return made


def _moments(parameter: Tensor) -> dict[str, torch.Size]:
    """What AdamW keeps of a parameter, and the shapes."""
    return {"step": torch.Size([]), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}


def _resume(trainer: Trainer, folder: Path, binding: dict) -> None:
    """Restore the newest state in which a step has changed the weights; earlier versions saved others, too."""
    for path in reversed(states(folder)):
        tensors, info = load_state(path, binding)
        if any(name.startswith("optimizer/") for name in tensors):
            wrong = trainer.misfits(tensors)
            if wrong or not isinstance(info.get("step"), int):
                what = f"{wrong[0]} is missing or does not fit" if wrong else f"its step is {info.get('step')!r}"
                raise StateError(f"'{path}' is damaged: {what}. Delete this folder to continue from the state before it.")
            trainer.restore(tensors, info["step"])
            return
