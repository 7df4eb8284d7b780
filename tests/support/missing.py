"""What a test needs and does not find."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the test; fail it on a build server, where what is missing would hide what is broken."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
