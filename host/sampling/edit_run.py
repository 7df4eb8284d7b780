"""One sampling run with edited prompts: the source beside the edits, what each step does, and the blend.

The source is not part of the sampler's latent. Its state at a noise level comes from the stored trajectory of its inversion, or
is carried along here by Euler steps, which are DDIM steps in the form in which ComfyUI holds states.

Legend: N steps of the whole schedule, E edits, F frames, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from comfy.model_management import get_free_memory
from torch import Tensor

from ...core.attention.edit import Edit
from ...core.attention.prompt import (
    MAP_SCALE,
    CrossEdit,
    Interval,
    WordMaps,
    blend_masks,
    cross_edit,
    first_blending_step,
    in_interval,
    local_blend,
    token_weights,
    word_tokens,
)
from ...core.edm import scale_input
from ...core.inversion.null_text import guided
from ...core.inversion.trajectory import Trajectory
from ...core.keeping.paste import latent_cells
from ..attention.prompt import PromptPass

Branch = Literal["stored trajectory", "null-text", "fast", "guided"]
BRANCHES: tuple[Branch, ...] = ("stored trajectory", "null-text", "fast", "guided")
TOLERANCE = 1e-4  # relative, of noise levels; two schedulers' float arithmetic differs by 1e-6
HEADROOM = 1.5  # on the host's estimate of memory, as it uses it itself


@dataclass(frozen=True)
class Settings:
    """Numbers of the method, the published ones.

    cross, temporal: shares of the steps in which cross-attention is edited and temporal attention is the source's.
    branch: where the source comes from. "stored trajectory": its inversion. "null-text": guided with optimised embeddings.
        "fast": its conditional prediction. "guided": like the edits.
    blend: keep the edit to where the marked words look, or to a mask.
    threshold, away_threshold: of the masks of words to edit and of words to leave out.
    start: share of the steps before the first blending.
    map_scale: words are mapped in layers at 1 / this of the latent's size.
    """

    cross: Interval = (0.0, 0.2)
    temporal: Interval = (0.0, 0.5)
    branch: Branch = "stored trajectory"
    blend: bool = True
    threshold: float = 0.3
    away_threshold: float = 0.3
    start: float = 0.2
    map_scale: int = MAP_SCALE


@dataclass
class ReadOut:
    """Where words looked in a model's last run, and where its edits were allowed to act at the end of it."""

    maps: WordMaps | None = None
    masks: Tensor | None = None  # (E, F, h, w)


@dataclass(frozen=True)
class Plan:
    """Everything that a run with edited prompts follows. Shared by clones and never changed.

    text: (1, 77, C) embedding of the source prompt.  trajectory: of its inversion, None to start from any noise.
    unconditional: (1, K, C) of each step, for null-text.  mask: (1 or F, H, W), above 0 where the edit may act.
    sites: layers whose words are mapped.  chunk: tokens worked on at a time.
    """

    edits: tuple[Edit, ...]
    text: Tensor
    settings: Settings
    trajectory: Trajectory | None
    unconditional: tuple[Tensor, ...]
    mask: Tensor | None
    sites: frozenset[str]
    chunk: int
    read_out: ReadOut = field(default_factory=ReadOut)

    def __deepcopy__(self, memo: dict) -> Plan:
        return self  # older hosts deep-copy options with every clone

    @property
    def marked(self) -> bool:
        """Whether words say where the edits may act, or where not."""
        return any(any(edit.chosen(what)) for edit in self.edits for what in ("blend", "away"))


class EditRun:
    """State of one sampling run. Its end is the run's end."""

    def __init__(self, plan: Plan, rows: int, schedule: list[float], warn: Callable[[str], None]):
        """rows: E * F.  schedule: the sampler's levels, a stretch of the whole schedule.  warn: shows a warning."""
        self.plan, self.schedule, self.warn = plan, schedule, warn
        self.levels = schedule if plan.trajectory is None else list(plan.trajectory.sigmas)
        self.frames = rows // len(plan.edits)
        self.step, self.source, self.masks = 0, None, None
        self._anchor: tuple[float, Tensor, Tensor] | None = None  # level, state and direction of a source carried along
        self._pass: PromptPass | None = None
        self._mapped: set[int] = set()
        self._edits: dict[tuple, CrossEdit] = {}
        words = [plan.edits[0].source.positions, *(edit.edited.positions for edit in plan.edits)]
        self.maps = WordMaps([word_tokens(found) for found in words], self.frames, len(plan.sites))
        weights = [token_weights(self.steps, plan.settings.cross, edit.steps) for edit in plan.edits]
        self._weights = torch.stack(weights, 1)  # (N + 1, E, 77)

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    def locate(self, sigma: float) -> tuple[int, bool]:
        """The step that a noise level belongs to, and whether it is that step's own; between two levels, the noisier one's."""
        for step, level in enumerate(self.levels[:-1]):
            if abs(level - sigma) <= TOLERANCE * level:
                return step, True
        return max(0, sum(level >= sigma for level in self.levels[:-1]) - 1), False

    # ---- the source --------------------------------------------------------------------------------------------------

    def state(self, sigma: float, like: Tensor) -> Tensor:
        """The source (F, 4, h, w) at a noise level, as the sampler holds it.

        Args:
            like: the sampler's state; what the source starts from if there is no trajectory.
        """
        if self.plan.settings.branch == "stored trajectory":
            return self.trajectory_state(sigma, like)
        if self._anchor is None:
            return like[:self.frames].clone()
        level, state, direction = self._anchor
        return state + direction * (sigma - level)

    def trajectory_state(self, sigma: float, like: Tensor) -> Tensor:
        """The state of the source's inversion; between two levels on the line that an Euler step takes."""
        states, last = self.plan.trajectory.states, self.levels[-1]
        if sigma < last * (1.0 - TOLERANCE):  # a last level that was forced to 0
            return scale_input(states[0], last).to(like)
        if sigma <= last * (1.0 + TOLERANCE):
            return states[0].to(like)
        step, own = self.locate(sigma)
        here, following = (states[self.steps - s].to(like) for s in (step, step + 1))
        share = 0.0 if own else (self.levels[step] - sigma) / (self.levels[step] - self.levels[step + 1])
        return torch.lerp(here, following, share)

    def _carry(self, sigma: float, scale: float) -> None:
        """Go on with a source that is carried along, from its predictions at a step's own level."""
        conditional, *unconditional = self._pass.predicted
        denoised = guided(conditional, unconditional[0], scale) if unconditional else conditional
        self._anchor = sigma, self._pass.state, (self._pass.state - denoised) / sigma

    def _texts(self, negative: Tensor | None) -> list[Tensor]:
        branch = self.plan.settings.branch
        if negative is None or branch not in ("null-text", "guided"):
            return [self.plan.text]
        return [self.plan.text, negative if branch == "guided" else self.plan.unconditional[self.step]]

    @property
    def started(self) -> bool:
        """Whether anything has been evaluated."""
        return self._pass is not None

    # ---- a step ------------------------------------------------------------------------------------------------------

    def begin(self, x: Tensor, sigma: float, negative: Tensor | None) -> PromptPass:
        """What an evaluation does.

        Args:
            x: (E*F, 4, h, w).  negative: (1, K, C) the edits' unconditional embedding, None if they are not guided.
        """
        self.step, _ = self.locate(sigma)
        settings = self.plan.settings
        edit = self._edit(x.device)
        maps = None if self.step in self._mapped else self.maps  # some samplers look twice in a step
        self._mapped.add(self.step)
        self._pass = PromptPass(len(self.plan.edits), self.state(sigma, x), self._texts(negative), edit if edit.acts else None,
                                in_interval(self.step, self.steps, settings.temporal), maps, set(self.plan.sites),
                                self.plan.chunk)
        return self._pass

    def _edit(self, device: torch.device) -> CrossEdit:
        weights = self._weights[self.step]
        key = tuple(weights.flatten().tolist())  # most steps are alike
        if key not in self._edits:
            found = [edit.alignment for edit in self.plan.edits]
            self._edits[key] = cross_edit(torch.stack([a.mapper for a in found]), torch.stack([a.alphas for a in found]),
                                          torch.stack([edit.factors for edit in self.plan.edits]), weights).to(device)
        return self._edits[key]

    def finish(self, denoised: Tensor, x: Tensor, sigma: float, scale: float) -> Tensor:
        """The edits' prediction after guidance, changed so that an Euler step lands on the blended state.

        Args:
            denoised, x: (E*F, 4, h, w).  scale: of guidance.
        """
        step, own = self.locate(sigma)
        if not own or self._pass is None or not self._pass.predicted:
            return denoised
        if self.plan.settings.branch != "stored trajectory":
            self._carry(sigma, scale)
        following = next((level for level in self.schedule if level < sigma * (1.0 - TOLERANCE)), 0.0)
        self.source = self.state(following, x)
        self.masks = self._masks(step, x)
        if self.masks is None:
            return denoised
        share = following / sigma
        edits = (len(self.plan.edits), -1)
        x, denoised = x.unflatten(0, edits), denoised.unflatten(0, edits)
        landing = (self.source - share * x) / (1.0 - share)
        mask = self.masks.unsqueeze(-3).to(denoised)
        return torch.lerp(landing, denoised, mask).flatten(0, 1)

    # ---- where the edits may act -------------------------------------------------------------------------------------

    def _masks(self, step: int, x: Tensor) -> Tensor | None:
        """(E, F, h, w) in [0, 1] after a step, None for everywhere."""
        plan, settings = self.plan, self.plan.settings
        if not settings.blend or step < first_blending_step(self.steps, settings.start):
            return None
        size = tuple(x.shape[-2:])
        out = self.word_masks(size).to(x) if plan.marked else None
        if plan.mask is not None:
            area = latent_cells(plan.mask, *size)[:, 0].to(x)
            out = area.expand(len(plan.edits), self.frames, -1, -1) if out is None else out * area
        return out

    def word_masks(self, size: tuple[int, int]) -> Tensor:
        """(E, F, h, w) bool: where the marked words of each edit or of the source look; everywhere if all of them are marked as
        those where the edit may not act."""
        settings, out = self.plan.settings, []
        for prompt, edit in enumerate(self.plan.edits, 1):
            blend, away = ([self.maps.of(p, words) for p, words in zip((0, prompt), edit.chosen(what), strict=True)]
                           for what in ("blend", "away"))
            away = torch.stack(away) if any(edit.chosen("away")) else None
            blend = torch.stack(blend) if any(edit.chosen("blend")) else torch.ones_like(blend[0]).expand(2, -1, -1, -1)
            out.append(blend_masks(blend, size, settings.threshold, away, settings.away_threshold)[1])
        return torch.stack(out)

    def outside_exact(self, samples: Tensor, source: Tensor) -> Tensor:
        """Finished samples with the source's own bits where the edits may not act.

        Args:
            samples: (E*F, 4, h, w).  source: (F, 4, h, w), in the same form.
        """
        if self.masks is None:
            return samples
        edits = samples.unflatten(0, (len(self.plan.edits), -1))
        return local_blend(source, edits, (self.masks > 0).to(samples)).flatten(0, 1)

    def together(self, model: Any, conds: list, x: Tensor) -> bool:
        """Whether conditional and unconditional rows fit into one pass with the source's."""
        videos = len(self._pass.texts) + sum(len(c) * len(self.plan.edits) for c in conds if c is not None)
        return model.memory_required([videos * self.frames, *x.shape[1:]]) * HEADROOM < get_free_memory(x.device)

    def close(self) -> None:
        """Leave the read-out, and nothing on the device."""
        self.maps.sums = [None if found is None else found.cpu() for found in self.maps.sums]
        self.plan.read_out.maps = self.maps
        self.plan.read_out.masks = None if self.masks is None else self.masks.cpu()
        self.source, self._anchor, self._pass = None, None, None
        self._edits.clear()
