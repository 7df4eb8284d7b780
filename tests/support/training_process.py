"""The training command in processes of their own, on pairs that exist only in memory.

As a script it runs the command once, which `torchrun` can start. With --serve it imports ComfyUI once and forks for every line
on its input, so that a test can start and kill many runs in little time. {"arguments", "environment", "output"} is answered
with the new process's number, {"wait": number} with its exit status when it has ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import by_path

PAIRS, HEIGHT, WIDTH = 4, 32, 48


def prepare() -> Any:
    """Import all that a run needs; returns what runs the command."""
    command = by_path.module("framepainter_train_command", by_path.ROOT / "commands" / "train.py")
    load = command.open_pack(Path(os.environ["FRAMEPAINTER_HOST"]))
    run, tiny = load("host.training.command"), by_path.module("framepainter_tests_tiny", Path(__file__).with_name("tiny.py"))
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
