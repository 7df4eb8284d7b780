"""The settings of a run, presets, and their estimated cost.

Costs are estimates from the formulas here; nothing was measured on a card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

WHAT = ("everything", "matching and encoder", "matching, encoder and LoRA")
SIGNALS = ("sketch", "coarse", "drag", "mixed")
MATCHING = ("cross entropy", "squared error", "off")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run; the defaults are the paper's (section 4.1) where it gives any."""

    what_trains: str = "everything"
    signal: str = "sketch"
    steps: int = 20_000                 # Optimiser steps.
    batch: int = 4                      # Pairs at a time, in each process.
    accumulate: int = 1                 # Such batches a step.
    learning_rate: float = 1e-5
    matching_loss: str = "cross entropy"
    matching_weight: float = 0.1        # Chosen here: the paper's text has lost its number.
    ema: float = 0.0                    # Decay of the averaged weights. 0 = none.
    precision: str = "bf16"             # Precision of the arithmetic; what is trained is kept in fp32.
    checkpointing: bool = True
    save_every: int = 250               # Steps between states.
    preview_every: int = 250            # Steps between preview pictures. 0 = none.
    seed: int = 0
    rank: int = 16                      # Rank of the LoRA.
    semantics: str = "release"          # Or "paper": matching and control on the target frame only.
    pixels: int = 0                     # Largest picture area; larger pictures are scaled down. 0 = as they are.

    def identity(self) -> dict[str, str | int | float]:
        """What a continued run must share besides the optimiser's settings."""
        names = ("what_trains", "signal", "batch", "matching_loss", "matching_weight", "precision", "semantics", "pixels")
        out = {name: getattr(self, name) for name in names}
        return {**out, "rank": self.rank} if self.what_trains.endswith("LoRA") else out


_LARGE, _SMALL = 576 * 1024, 320 * 576
PRESETS: dict[str, RunSettings] = {
    "paper": RunSettings(pixels=_LARGE),
    "24 GB": RunSettings("matching, encoder and LoRA", learning_rate=5e-5, batch=4, ema=0.999, pixels=_LARGE),
    "16 GB": RunSettings("matching, encoder and LoRA", learning_rate=5e-5, batch=2, accumulate=2, ema=0.999, pixels=_LARGE),
    "12 GB": RunSettings("matching and encoder", learning_rate=5e-5, batch=1, accumulate=4, ema=0.999, pixels=_SMALL),
    "small network": RunSettings("everything", learning_rate=5e-4, batch=8, steps=3000, ema=0.999, precision="fp32",
                                 checkpointing=False),
}
PURPOSE = {
    "paper": "as in the paper: everything at 1024 x 576; for a card with 48 GB or more",
    "24 GB": "matching attention, control encoder and LoRA at 1024 x 576",
    "16 GB": "the same with a batch of two pairs",
    "12 GB": "matching attention and control encoder at 576 x 320",
    "small network": "for small networks of your own, on a CPU too",
}


def choose(preset: str, **changes: object) -> RunSettings:
    """A preset with some settings changed; None keeps the preset's value.

    Raises:
        ValueError: no such preset, a value that a list does not offer, or a number that makes no sense; the text names it.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is '{preset}'; choose one of {', '.join(PRESETS)}.")
    out = replace(PRESETS[preset], **{name: value for name, value in changes.items() if value is not None})
    for name, options in (("what_trains", WHAT), ("signal", SIGNALS), ("matching_loss", MATCHING),
                          ("precision", PRECISIONS), ("semantics", ("release", "paper"))):
        value = getattr(out, name)
        if value not in options:
            hint = " fp16 gradients underflow without loss scaling, which this trainer does not do." if value == "fp16" else ""
            raise ValueError(f"{name} is '{value}'; choose one of {', '.join(options)}.{hint}")
    for name in ("steps", "batch", "accumulate", "rank"):
        if getattr(out, name) < 1:
            raise ValueError(f"{name} is {getattr(out, name)}; it must be 1 or more.")
    if not 0 < out.learning_rate <= 1:
        raise ValueError(f"learning_rate is {out.learning_rate}; it must lie between 0 and 1, the paper's is 1e-5.")
    if not 0 <= out.ema < 1:
        raise ValueError(f"ema is {out.ema}; it must be 0 (off) or below 1, such as 0.999.")
    if out.matching_weight < 0:
        raise ValueError(f"matching_weight is {out.matching_weight}; it must be 0 or more.")
    return out


def setting_names() -> list[str]:
    """The names of all settings."""
    return [f.name for f in fields(RunSettings)]


# ---- cost ------------------------------------------------------------------------------------------------------------

FULL_CHANNELS = 320     # Channels of SVD's first level; activations of a narrower network shrink in proportion.
# Bytes a latent position of one frame in bf16, derived by counting the full UNet's activations at 14 frames of 896 x 512:
# all kept 45.6 GB; checkpointed, 3.1 GB of block inputs plus 3.0 GB inside the largest block.
KEPT, CHECKPOINTED = 454e3, 61e3
MATCHING_BUFFERS = 4 * 256e6  # one chunk of attention weights, its scores, their gradients
FLOP_PAIR = 34e12       # One pair of 1024 x 576 frames: forward, backward, and forward again for checkpointing.


class Cost(NamedTuple):
    """Estimated peak memory in bytes, by part, and arithmetic of a whole run in FLOP."""

    weights: float
    gradients_and_moments: float
    activations: float
    flop: float

    @property
    def memory(self) -> float:
        return self.weights + self.gradients_and_moments + self.activations

    def hours(self, flops: float) -> float:
        """Hours of a run, at a card's sustained arithmetic rate in FLOP a second."""
        return self.flop / flops / 3600


def estimate(settings: RunSettings, unet: int, matching: int, encoder: int, lora: int, channels: int, height: int,
             width: int) -> Cost:
    """The estimated cost of a run.

        weights        trained: 4 bytes (fp32), and 2 for autocast's copy in bf16; frozen: 2 in bf16, 4 in fp32
        gradients      4 bytes a trained parameter; AdamW's two moments 8; averages 4 if on
        activations    batch x 2 frames x h w latent positions x 454 kB (61 kB with checkpointing), in bf16, for 320 channels;
                       plus 1 GB for the matching loss where a chunk of attention is that large
        FLOP           34e12 a pair at 1024 x 576 with checkpointing, three quarters of it without

    Args:
        unet, matching, encoder, lora: parameters of the parts.  channels: of the UNet's first level.
        height, width: pixels trained on.
    """
    parts = {"everything": unet + matching + encoder, "matching and encoder": matching + encoder,
             "matching, encoder and LoRA": matching + encoder + lora}
    trained = parts[settings.what_trains]
    frozen = 0 if settings.what_trains == "everything" else unet
    half = settings.precision == "bf16"
    positions = settings.batch * 2 * (height // 8) * (width // 8)
    activations = (positions * (CHECKPOINTED if settings.checkpointing else KEPT) * channels / FULL_CHANNELS
                   * (1 if half else 2))
    if settings.matching_loss != "off":
        tokens = (height // 8) * (width // 8)
        activations += min(MATCHING_BUFFERS, 16.0 * settings.batch * tokens**2 * max(channels // 64, 1))
    size = unet / 1.5246e9 * (height * width) / _LARGE
    flop = settings.steps * settings.batch * settings.accumulate * FLOP_PAIR * size * (1 if settings.checkpointing else 0.75)
    return Cost(trained * (6.0 if half else 4.0) + frozen * (2.0 if half else 4.0),
                trained * (16.0 if settings.ema else 12.0), activations, flop)


FULL_SIZE = {"unet": 1_524_600_000, "matching": 49_600_000, "encoder": 3_530_000, "lora": 12_100_000, "channels": 320}


def preset_cost(name: str) -> Cost:
    """The cost of a preset on Stable Video Diffusion; of "small network" on the pack's own small one at 96 x 96."""
    if name == "small network":
        return estimate(PRESETS[name], 3_000_000, 100_000, 100_000, 0, 64, 96, 96)
    height, width = (320, 576) if PRESETS[name].pixels == _SMALL else (576, 1024)
    return estimate(PRESETS[name], **FULL_SIZE, height=height, width=width)


def parameter_counts(shapes: Mapping[str, Iterable[int]], rank: int) -> tuple[int, int]:
    """(parameters of a UNet, parameters of a LoRA of that rank on its attention projections), from its shapes."""
    total = lora = 0
    for name, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        total += size
        if re.search(r"\.attn[12]\.to_(q|k|v|out\.0)\.weight$", name):
            outer, inner = shape
            lora += (outer + inner) * min(rank, outer, inner)
    return total, lora
