"""Two frames under a kernel of three: the library's convolution, to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("bias", [True, False])
def test_is_the_library_s_convolution(pack, bias: bool):
    two = pack("core.models.two_frames")
    generator = torch.Generator().manual_seed(0)
    x, weight, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 5, 2, 8, 9), (7, 5, 3, 1, 1), (7,)))
    b = b if bias else None
    wanted = F.conv3d(x, weight, b, padding=two.PADDING)
    assert two.fits(x, weight) and not two.fits(x[:, :, :1], weight) and not two.fits(x[..., :2, :2], weight)
    assert torch.allclose(two.two_frame_convolution(x, weight, b), wanted, rtol=1e-13, atol=1e-13)
