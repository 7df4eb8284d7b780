"""Floating-point operations of the network's passes at the real size, counted without a device and without arithmetic.

Weights and activations are fake tensors, which have shapes alone; torch's own counter adds up products and convolutions. Used by
bench/run.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import guided_step
import motion_lora
import random_model

MOTION = "576 x 320"  # of a motion LoRA's clip of 14 frames


def operations(run: Callable[[], Any]) -> float:
    """Floating-point operations of a call, two for a product and its sum."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to the counter
    with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        run()
    return float(counter.get_total_flops())


def fake(size: tuple[int, ...]) -> Any:
    import torch

    return torch.empty(size, dtype=torch.float16)


def guided_steps(load: Callable[[str], Any]) -> dict[str, float]:
    """Operations of a guided step (both halves) of two frames, by variant, as all steps of a run but the first."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.inference_mode():
        parts = guided_step.networks(load, "full", torch.float16, lambda name, shape, salt: fake(shape))
        control = torch.empty(1, *guided_step.PIXELS["full"], 3)
        return {name: _guided(model) for name, model in guided_step.variants(load, *parts, control).items()}


def _guided(model: Any) -> float:
    import torch

    height, width = (side // 8 for side in guided_step.PIXELS["full"])
    model.patch_model(load_weights=False)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0], "sigmas": _Known(10.0),
               "sample_sigmas": torch.empty(1), "original_shape": [4, 8, height, width]}

    def step() -> None:
        model.model.diffusion_model(fake((4, 8, height, width)), timesteps=torch.empty(4),
                                    context=fake((4, 1, random_model.FULL["context_dim"])), y=fake((4, 768)),
                                    transformer_options=dict(options), num_video_frames=2,
                                    image_only_indicator=torch.empty(2, 2))

    try:
        if "input_block_patch_after_skip" in options.get("patches", {}):
            step()  # a run's first step also makes what the later ones use
        return operations(step)
    finally:
        model.cleanup()
        model.unpatch_model(unpatch_weights=False)


def motion_steps(load: Callable[[str], Any]) -> dict[str, float]:
    """Operations of a motion LoRA's training step with checkpointing, over those of the plain network's forward pass."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    motion, savings, lora = (load(m) for m in ("core.training.motion_lora.objective", "host.models.savings", "core.training.lora"))
    with FakeTensorMode(), torch.inference_mode(False), torch.enable_grad():
        made = motion_lora.network(load, MOTION, "parts", lambda _, size: torch.empty(
            size, dtype=torch.bfloat16 if len(size) > 1 else torch.float32))
        made.precision = "bf16"
        clip, (_, frames, height, width) = motion_lora.clip_of(load, MOTION, "cpu"), motion_lora.SHAPES[MOTION]
        drawn = (torch.randn(1, frames, 4, height, width), torch.randn(1, 4, height, width))

        def loss() -> Any:
            return motion.motion_loss(made, clip, torch.ones(1), *drawn, torch.tensor([motion.MICRO_CONDS["release"]]))

        def step(short: bool) -> float:
            made._inside = lambda x: math.inf if short else 0.0
            return operations(lambda: loss().backward())

        with savings.switched(False), torch.no_grad(), lora.without_lora(made.unet):
            forward = operations(loss)
        return {"with memory enough": step(False) / forward, "where memory is short": step(True) / forward}


class _Known:
    """A noise level that the patches can read, which a fake tensor has not."""

    def __init__(self, value: float):
        self.value = value

    def flatten(self) -> _Known:
        return self

    def __getitem__(self, index: object) -> _Known:
        return self

    def __float__(self) -> float:
        return self.value

    def to(self, *_: object) -> Any:
        import torch

        return torch.empty(1)
