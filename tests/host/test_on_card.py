"""What only a card can show; without one there is nothing to test. In a process of its own, as this suite stays on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from framepainter_tests.examples import ROOT


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no card here")
def test_kernel_savings_offloading_autocast_and_compilation_on_a_card():
    command = [sys.executable, str(ROOT / "bench" / "on_card.py"), "--host", os.environ["FRAMEPAINTER_HOST"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
