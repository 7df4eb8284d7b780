from __future__ import annotations

import pytest
import torch
from framepainter_tests.networks import Edit


@pytest.fixture(scope="module")
def edit(pack, checkpoint) -> Edit:
    """The small checkpoint, loaded in fp32, and a 64 x 96 pixel edit. Its middle block has 2 tokens for 2 frames."""
    with torch.inference_mode():
        loaded = pack("host.weights.loading").load(checkpoint, None, None, torch.float32)
        picture = torch.rand(1, 50, 75, 3, generator=torch.Generator().manual_seed(1))
        made = pack("host.conditioning").edit_conditioning(loaded.clip_vision, loaded.vae, picture, 64, 96, 6, 128, 0.02,
                                                           0)
    return Edit(loaded, made.positive, made.negative, made.latent["samples"])


@pytest.fixture(scope="session")
def strokes() -> torch.Tensor:
    """A control frame (1, 64, 96, 3)."""
    control = torch.zeros(1, 64, 96, 3)
    control[:, 20:44, 30:33] = 1.0
    control[:, 42:45, 30:70] = 1.0
    return control
