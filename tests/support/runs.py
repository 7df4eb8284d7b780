"""What tests of several trainers ask of a run's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

IDENTITIES = Path(__file__).parents[1] / "data" / "run_of_0.1.0" / "identities.json"  # written by version 0.1.0


def identity(folder: Path) -> dict[str, Any]:
    """What the newest state of a run must agree with to be continued, digests by their length, names by their digest."""
    state = max(folder.glob("state-*")) / "state.json"
    out = json.loads(state.read_text(encoding="utf-8"))
    del out["step"]
    out["trained"] = hashlib.sha256("\n".join(out["trained"]).encode()).hexdigest()
    return {name: len(value) if name in ("data", "start", "model") else value for name, value in out.items()}
