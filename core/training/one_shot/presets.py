"""Settings of one-shot tuning runs that go together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import loop
from .objective import WHAT, What

PRECISIONS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class OneShotSettings:
    """All settings of a run; steps, rate, clipping and seed are the released training's."""

    steps: int = 500
    learning_rate: float = 3e-5
    what_trains: What = "all_trainable"     # See objective.py.
    clip: float = 1.0                       # Largest gradient norm.
    precision: str = "bf16"                 # Precision of the arithmetic; what trains is kept in fp32.
    checkpointing: bool = True
    seed: int = 33
    save_every: int = 100
    preview_every: int = 0                  # Steps between previews; 0 is none.

    @property
    def random_bias(self) -> bool:
        """Whether new temporal layers start with random output biases, as released."""
        return self.what_trains == "as_released"

    def identity(self) -> dict[str, str]:
        """What a continued run must share besides the optimiser's settings."""
        return {"what_trains": self.what_trains, "precision": self.precision}

    def loop(self) -> loop.TrainSettings:
        """AdamW as released: constant rate, betas 0.9 and 0.999, eps 1e-8, decoupled weight decay 0.01."""
        return loop.TrainSettings(
            steps=self.steps, learning_rate=self.learning_rate, betas=(0.9, 0.999), weight_decay=0.01, clip=self.clip,
            seed=self.seed, save_every=self.save_every, tolerate=loop.TOLERATED,
            loss_scale=loop.LOSS_SCALE if self.precision == "fp16" else 0.0)


PRESETS: dict[str, OneShotSettings] = {
    "default": OneShotSettings(),
    "as released": OneShotSettings(what_trains="as_released", precision="fp16"),
    "small network": OneShotSettings(precision="fp32", checkpointing=False),
}


def choose(preset: str, **changes: object) -> OneShotSettings:
    """A preset with changes; None keeps the preset's value.

    Raises:
        ValueError: an unknown choice; the text names it.
    """
    settings = replace(PRESETS[preset], **{n: v for n, v in changes.items() if v is not None})
    for name, allowed in (("what_trains", WHAT), ("precision", PRECISIONS)):
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name} is '{getattr(settings, name)}'; choose one of {', '.join(allowed)}.")
    return settings
