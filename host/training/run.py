"""The training run of every trainer of the pack; a trainer provides an objective and a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...core.callbacks import Callbacks
from ...core.training import loop, parallel
from ...core.training.parallel import Processes


@contextmanager
def differentiable():
    """Outside of the host's inference mode, with gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@dataclass(frozen=True)
class RunCallbacks(Callbacks):
    """Callbacks of a training run.

    progress: of preparing what is trained on.
    check_stop: before every step; what it raises ends the run after the state was saved.
    stepped: a step that was made.
    preview: (step, picture (H, W, 3) in [0, 1]); without it no previews are made.
    """

    stepped: Callable[[loop.Step], None] = lambda step: None
    preview: Callable[[int, Tensor], None] | None = None


SILENT = RunCallbacks()


@dataclass(frozen=True)
class Task:
    """What a run trains, and on which data.

    network: of ordinary tensors that nobody else touches, on the CPU; what requires gradients is trained.
    objective: (the network to call, device) -> the loss of a batch.
    settings: of the optimiser.
    identity: what else makes it this run and no other (data, network), as JSON.
    weights: the network's weights by the names that states and results have; None are its own names.
    comes_out: whether a weight that is not trained is part of the result.
    preview: device -> a picture of what the network has learned, (H, W, 3) in [0, 1].
    preview_every: steps between previews; there is one at the end, too. 0 is none.
    blocks: of the network, whose weights several processes gather together.
    """

    network: nn.Module
    objective: Callable[[nn.Module, torch.device], loop.BatchLoss]
    settings: loop.TrainSettings
    identity: Mapping[str, Any]
    weights: Callable[[], Mapping[str, Tensor]] | None = None
    comes_out: Callable[[str], bool] = lambda name: False
    preview: Callable[[torch.device], Tensor] | None = None
    preview_every: int = 0
    blocks: Iterable[nn.Module] = ()

    def named_weights(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters() if self.weights is None else self.weights())

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_weights().items() if p.requires_grad}


class RunResult(NamedTuple):
    """A run at its end.

    tensors: the weights by name, on the CPU; averages in place of what was trained, where there are any.
    steps: of the whole run.  skipped: those of this call whose loss or gradient was not finite.
    """

    tensors: dict[str, Tensor]
    steps: int
    skipped: int = 0


@differentiable()
def run(task: Task, folder: Path, callbacks: RunCallbacks = SILENT, places: Processes = Processes(),  # noqa: B008
        sharded: bool = False) -> RunResult:
    """Train to the end, from the newest state in the folder if there is one.

    Args:
        folder: of the run: states and stats.jsonl.
        places: this process's place among those that train together.
        sharded: weights in parts over the processes (FSDP) instead of all in each (DDP).

    Raises:
        StateError, NonFinite, WriteError: see `loop.train`.
    """
    device = free_device()
    network = task.network.to(device)
    call = parallel.distribute(network, places, task.blocks, sharded)
    trainer = loop.Trainer(task.trained(), task.settings, rank=places.rank)
    loss = parallel.shared(task.objective(call, device), call, task.settings.accumulate, task.settings.seed, places)
    previews = task.preview is not None and callbacks.preview is not None and task.preview_every and places.count == 1

    def stepped(step: loop.Step) -> None:
        callbacks.stepped(step)
        if previews and (step.step % task.preview_every == 0 or step.step == task.settings.steps):
            callbacks.preview(step.step, task.preview(device))
            free_device()  # the VAE has done its work again

    made = loop.train(trainer, loss, folder, stepped, callbacks.check_stop, task.identity)
    tensors = {n: w for n, w in task.named_weights().items() if w.requires_grad or task.comes_out(n)} | trainer.averages
    return RunResult({n: loop.whole(w).detach().cpu().clone() for n, w in tensors.items()}, trainer.step,
                     sum(bool(step.left_out) for step in made))


def free_device() -> torch.device:
    """Take the host's models off the device that training needs; returns the device."""
    device = torch.device(mm.get_torch_device())
    if device.type != "cpu":
        mm.unload_all_models()
        mm.soft_empty_cache()
    return device


# ---- what objectives share -------------------------------------------------------------------------------------------


def first_middle_last(vae: Any, model: ModelPatcher, *clips: Tensor) -> Tensor:
    """A preview of clips (F, 4, h, w), in the network's scale: three frames of each in a row, below each other; (H, W, 3)."""
    rows = [torch.cat(list(decoded(vae, model, z[[0, len(z) // 2, len(z) - 1]])), 1) for z in clips]
    return torch.cat(rows, 0).clamp(0, 1).clone()


def decoded(vae: Any, model: ModelPatcher, latents: Tensor) -> Tensor:
    """(B, 4, h, w) in the network's scale -> (B, H, W, 3) on the CPU."""
    with torch.inference_mode():
        return vae.decode(model.model.process_latent_out(latents.float().cpu())).float().cpu()
