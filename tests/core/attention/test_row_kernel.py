"""The kernel of the rows' total variation, in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
from framepainter_tests.missing import missing

KERNEL = Path(__file__).parents[3] / "core" / "attention" / "row_kernel.py"
# A process of its own: the interpreter is chosen when the kernel is defined.
SCRIPT = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("row_kernel", sys.argv[1])
kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
generator = torch.Generator().manual_seed(0)
for frames, length, heads, width, kind in ((2, 150, 2, 16, torch.float32), (1, 64, 1, 24, torch.float32),
                                           (1, 70, 2, 32, torch.float16)):
    q, k, q0, k0 = (torch.randn(frames, length, heads * width, generator=generator).to(kind) * 2 for _ in range(4))
    q0[:, ::2] = q[:, ::2]
    k0 = k + 0.1 * k0

    def probabilities(q, k):
        q, k = (x.float().unflatten(-1, (heads, width)).transpose(1, 2) for x in (q, k))
        return torch.softmax(q @ k.transpose(-1, -2) / width**0.5, -1)

    expected = (probabilities(q, k) - probabilities(q0, k0)).abs().sum(-1).mean(1) / 2
    found = kernel.total_variation(q, k, q0, k0, heads)
    assert found.shape == (frames, length) and expected.std() > 0.05
    error = float((found - expected).abs().max())
    assert error < (2e-6 if kind == torch.float32 else 2e-3), (length, width, kind, error)
    assert float(kernel.total_variation(q, k, q, k, heads).abs().max()) < 1e-6
print("agrees")
"""


def test_agrees_with_whole_maps():
    if importlib.util.find_spec("triton") is None:
        missing("Triton is not there: it comes with torch on Linux alone, and the kernel runs nowhere else")
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(KERNEL)], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "agrees" in done.stdout, done.stderr[-2000:]


def test_is_left_alone_on_a_cpu(pack):
    kernel = pack("core.attention.row_kernel")
    assert not kernel.usable(torch.zeros(1, 2, 3))


def test_a_kernel_that_fails_is_not_tried_again(pack, monkeypatch, caplog):
    """The torch path takes over, with one warning and the same result."""
    host, kernel = pack("host.attention.injection_run"), pack("core.attention.row_kernel")
    monkeypatch.setattr(kernel, "usable", lambda q: not kernel._failed)
    monkeypatch.setattr(kernel, "_failed", False)
    calls = []

    def broken(*args):
        calls.append(1)
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernel, "total_variation", broken)
    q, k, v, q0, k0 = (torch.randn(2, 9, 8) for _ in range(5))
    for _ in range(2):
        found = host._injected((q, k, v), host.SourceQK(q0, k0), 2, [0.3, 0.3], host.Masks(), None)
        assert torch.equal(found.out, host.injected_attention(q, k, v, host.SourceQK(q0, k0), 2, [0.3, 0.3]).out)
    assert len(calls) == 1 and caplog.text.count("no such instruction") == 1
