"""Using torch's global random generators and restoring their state afterwards, because some of torch's operations accept no
generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Set the global generators of the CPU and of a device to a seed, and restore them at the end of the block.

    `torch.manual_seed` inside `torch.random.fork_rng` would leave the generators of all other devices changed.
    """
    generators = [torch.default_generator, *_of(torch.device(device))]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def unmoved() -> Iterator[None]:
    """Work that may draw from torch's global generator of the CPU, which afterwards is as it was: networks draw weights when they
    are built, and the host's samplers seed this generator."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _of(device: torch.device) -> list[torch.Generator]:
    if device.type == "mps":
        return [torch.mps._get_default_mps_generator()]
    if device.type not in ("cuda", "xpu"):
        return []
    module = torch.get_device_module(device)
    module.init()
    return [module.default_generators[module.current_device() if device.index is None else device.index]]
