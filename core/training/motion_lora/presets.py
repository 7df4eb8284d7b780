"""Settings of motion LoRA runs that go together, and what they should need."""

from __future__ import annotations

from dataclasses import dataclass, replace

PRECISIONS = ("bf16", "fp16", "fp32")
ORDERS = ("release", "corrected")


@dataclass(frozen=True)
class MotionSettings:
    """All settings of a run; the defaults are the released training's."""

    steps: int = 250
    learning_rate: float = 5e-4
    rank: int = 32
    dropout: float = 0.1
    numbers: str = "release"        # Order of motion bucket and augmentation, see core/training/motion_lora/objective.py.
    precision: str = "bf16"         # Precision of the arithmetic; the LoRA is kept in fp32.
    checkpointing: bool = True
    height: int = 0                 # Pixels of training; 0 is the clip's own.
    width: int = 0
    keep_aspect: bool = True        # Black borders instead of squeezing.
    seed: int = 0
    save_every: int = 50
    preview_every: int = 0

    def identity(self) -> dict[str, str | int | float]:
        """What a continued run must share besides the optimiser's settings."""
        return {n: getattr(self, n) for n in ("rank", "dropout", "numbers", "precision", "height", "width", "keep_aspect")}


PRESETS: dict[str, MotionSettings] = {
    "12 GB": MotionSettings(height=512, width=896),
    "8 GB": MotionSettings(height=320, width=576),
    "small network": MotionSettings(precision="fp32", checkpointing=False),
}
PURPOSE = {
    "12 GB": "896 x 512 as released",
    "8 GB": "576 x 320",
    "small network": "the clip's own size, fp32, for small networks and CPUs",
}
# Counted for 14 frames with everything checkpointed and feed-forward in parts, see docs/motion_lora.md: bytes kept between the
# passes, bytes that come on top at the peak, floating-point operations a step.
_COUNTED = {"12 GB": (2.13e9, 2.97e9, 118e12), "8 GB": (0.86e9, 1.27e9, 43.5e12)}
SUSTAINED = 75e12  # FLOP/s that the stated times are for
_WEIGHTS, _LORA = 3.05e9, 17.8e6 * 16  # half precision; fp32 values, gradients and two moments


def choose(preset: str, **changes: object) -> MotionSettings:
    """A preset with changes; None keeps the preset's value.

    Raises:
        ValueError: a value out of range; the text names it.
    """
    settings = replace(PRESETS[preset], **{n: v for n, v in changes.items() if v is not None})
    if (settings.height == 0) != (settings.width == 0):
        raise ValueError(f"width is {settings.width} and height {settings.height}; give both, or 0 for both.")
    for name in ("height", "width"):
        if getattr(settings, name) % 64:
            raise ValueError(f"{name} is {getattr(settings, name)}, not a multiple of 64; use "
                             f"{max(64, round(getattr(settings, name) / 64) * 64)}.")
    return settings


def expected(preset: str) -> str:
    """Memory and time of a preset at 14 frames, estimated from counts."""
    if preset not in _COUNTED:
        return "under 1 GB"
    kept, again, work = _COUNTED[preset]
    memory, seconds = _WEIGHTS + _LORA + kept + again, PRESETS[preset].steps * work / SUSTAINED
    return f"{memory / 1e9:.1f} GB, {seconds / 60:.0f} min at {SUSTAINED / 1e12:.0f} TFLOP/s"
