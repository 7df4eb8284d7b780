"""Null-text optimisation with one unconditional embedding a step, shared by all frames (Video-P2P, section 3.2; Mokady et al.
2023), as released.

Guided sampling leaves the path on which a video was inverted. At each step, the embedding of the empty prompt is changed until
the guided step leads to the inversion's own latents.

Legend: N steps, F frames, K tokens, C width of the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import atomic
from ..ddim import Schedule, step
from ..parsing import json_value

KIND, FORMAT = "framepainter null text", "1"

# (latents (F, 4, h, w), timestep, embedding (1, K, C)) -> predicted noise
Predict = Callable[[Tensor, int, Tensor], Tensor]

LEARNING_RATE = 0.01
FALL = 100          # the learning rate of step i is LEARNING_RATE * (1 - i / FALL), whatever N is
LOOSER = 2e-5       # what the stop threshold gains with every step


@dataclass(frozen=True)
class NullTextSettings:
    """guidance: scale of sampling.  iterations: at most, in each step.  epsilon: loss below which step 0 stops early."""

    guidance: float = 7.5
    iterations: int = 10
    epsilon: float = 1e-5


@dataclass
class NullText:
    """The optimisation so far; complete with N entries.

    embeddings: (1, K, C) each.  latents: (F, 4, h, w) after each guided step with the kept embedding.  losses: of each step,
    one for each iteration, before its update.  source: digest of the trajectory that they lead along; "" if it is not known.
    """

    embeddings: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    source: str = ""

    @property
    def done(self) -> int:
        """Steps that are done."""
        return len(self.embeddings)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance."""
    return unconditional + scale * (conditional - unconditional)


def optimise(predict: Predict, trajectory: Tensor, schedule: Schedule, text: Tensor, empty: Tensor,
             settings: NullTextSettings = NullTextSettings(), state: NullText | None = None,  # noqa: B008
             after: Callable[[NullText], None] | None = None, check_stop: Callable[[], None] | None = None) -> NullText:
    """Find the embeddings of all steps. Call with gradients enabled.

    Args:
        predict: the network; must be differentiable in the embedding.
        trajectory: (N + 1, F, 4, h, w) latents of the inversion, the clean ones first.
        text: (1, K, C) of the source prompt.  empty: (1, K, C) of the empty prompt, where step 0 starts.
        state: of an interrupted optimisation; it resumes there, with the same result as without the interruption.
        after: called with the state after each step.
        check_stop: called before each iteration; what it raises ends the optimisation.
    """
    state = NullText() if state is None else state
    for i in range(state.done, schedule.steps):
        z = state.latents[-1] if state.latents else trajectory[-1]
        start = state.embeddings[-1] if state.embeddings else empty
        embedding, reached, losses = _one_step(predict, i, z, trajectory[schedule.steps - 1 - i], text, start, schedule, settings,
                                               check_stop)
        state.embeddings.append(embedding)
        state.latents.append(reached)
        state.losses.append(losses)
        if after is not None:
            after(state)
    return state


def _one_step(predict: Predict, i: int, z: Tensor, target: Tensor, text: Tensor, start: Tensor, schedule: Schedule,
              settings: NullTextSettings, check_stop: Callable[[], None] | None) -> tuple[Tensor, Tensor, list[float]]:
    """The embedding of step i, the latents that it leads to, and the losses."""
    timestep, levels = schedule.timesteps[i], schedule.alphas[i:i + 2]
    embedding = start.detach().clone().requires_grad_(True)
    rate = LEARNING_RATE * (1.0 - i / FALL)
    losses: list[float] = []

    def lead(unconditional: Tensor) -> Tensor:
        return step(z, guided(conditional, unconditional, settings.guidance), *levels)

    with torch.no_grad():
        conditional = predict(z, timestep, text)
    if rate > 0:  # beyond step 99 the released rule would climb
        optimizer = torch.optim.Adam([embedding], rate)
        for _ in range(settings.iterations):
            if check_stop is not None:
                check_stop()
            loss = torch.nn.functional.mse_loss(lead(predict(z, timestep, embedding)), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if losses[-1] < settings.epsilon + LOOSER * i:
                break
    embedding = embedding.detach()
    with torch.no_grad():
        return embedding, lead(predict(z, timestep, embedding)), losses


def reconstruction_error(state: NullText, trajectory: Tensor) -> float:
    """Root mean square difference between the clean latents and those that sampling with the embeddings gives."""
    return float((state.latents[-1] - trajectory[0].to(state.latents[-1])).pow(2).mean().sqrt())


# ---- files -----------------------------------------------------------------------------------------------------------


class NullTextError(ValueError):
    """A file of embeddings cannot be used. The text names it."""


def save(path: Path, state: NullText, identity: str) -> Path:
    """Write a state, whole or not at all.

    Args:
        identity: digest of what it was made from.

    Raises:
        WriteError: it cannot be written; nothing is left behind.
    """
    tensors = {name: torch.stack(values).detach().cpu().contiguous()
               for name, values in (("embeddings", state.embeddings), ("latents", state.latents))}
    metadata = {"kind": KIND, "format": FORMAT, "identity": identity, "losses": json.dumps(state.losses)}
    with atomic.replacing(path) as partial:
        save_file(tensors, str(partial), metadata=metadata)
    return path


def load(path: Path, identity: str) -> NullText:
    """Read a state, complete or not.

    Raises:
        FileNotFoundError: no such file.
        NullTextError: no such state, damaged, or made from something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no embeddings '{path}'")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if (metadata.get("kind"), metadata.get("format"), metadata.get("identity")) != (KIND, FORMAT, identity):
                raise NullTextError(f"'{path}' was made from another trajectory, prompt or settings. Delete it.")
            embeddings, latents = (list(file.get_tensor(name)) for name in ("embeddings", "latents"))
        losses = json_value(metadata["losses"])
    except NullTextError:
        raise
    except Exception as error:  # a damaged file raises almost anything
        raise NullTextError(f"'{path}' is damaged and cannot be read ({error}). Delete it.") from error
    if not isinstance(losses, list) or not len(embeddings) == len(latents) == len(losses):
        raise NullTextError(f"'{path}' is damaged: it holds {len(embeddings)} embeddings, {len(latents)} latents and "
                            f"{len(losses)} steps. Delete it.")
    return NullText(embeddings, latents, losses)
