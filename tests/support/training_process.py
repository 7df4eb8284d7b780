"""The training command in processes of their own, on pairs that exist only in memory.

As a script it runs the command once, which `torchrun` can start. With --serve it imports ComfyUI once and forks for every line
on its input, so that a test can start and kill many runs in little time. {"arguments", "environment", "output"} is answered
with the new process's number, {"wait": number} with its exit status when it has ended.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAIRS, HEIGHT, WIDTH = 4, 32, 48


def module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def prepare() -> Any:
    """Import all that a run needs; returns what runs the command."""
    command = module("framepainter_train_command", ROOT / "commands" / "train.py")
    tiny = module("framepainter_tests_tiny", ROOT / "tests" / "support" / "tiny.py")
    load = command.open_pack(Path(os.environ["FRAMEPAINTER_HOST"]))
    run = load("host.training.command")
    import torch.distributed.fsdp  # noqa: F401  else every fork would take seconds to import them
    import torch.distributed.tensor  # noqa: F401

    def once(arguments: list[str]) -> int:
        index = tiny.samples(load, PAIRS, HEIGHT, WIDTH)
        return run.main(command.parser().parse_args(arguments), lambda _: index)

    return once


def serve(once: Any) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                child(once, asked)
        print(answer, flush=True)


def child(once: Any, asked: dict[str, Any]) -> None:
    """Run the command and end, never returning to the loop that the parent goes on with."""
    os.environ.update(asked["environment"])
    sink = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    status = 99
    try:
        status = once(asked["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve(prepare())
    else:
        raise SystemExit(prepare()(sys.argv[1:]))
