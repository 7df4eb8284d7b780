"""The program of the process that decodes videos: started by process.py with the host's Python, and by this file's path.

FFmpeg is large, and it reads files from unknown sources. If a file makes it crash, hang or fill the memory, this process ends and
not the server. Neither torch nor anything of the host is imported here, so that the process starts in a fifth of a second.

The first line that comes is the server's sys.path; after it come requests. A request has `do`, which names one of the functions in
`answer`, and `path`. An answer is any number of messages and one with `end`, or one with `error`, a text that continues after the
file's name. A message with `beat` alone says that the process is working.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

BEAT = 0.2  # seconds


def limit_memory(most: int) -> None:
    """Refuse memory beyond a number of bytes, where the system can; elsewhere process.py watches over it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform.startswith("linux"):
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, ValueError, OSError):  # Windows; or a limit that is lower already
        pass


def module(name: str) -> Any:
    """A module beside this file, in a package of that folder: started by its path, this file is in none."""
    if "framepainter_video" not in sys.modules:
        package = types.ModuleType("framepainter_video")
        package.__path__ = [str(Path(__file__).resolve().parent)]
        sys.modules["framepainter_video"] = package
    return importlib.import_module(f"framepainter_video.{name}")


class Answers:
    """Sends answers, and the beat that tells the server that this process is working."""

    def __init__(self, send: Any):
        self.send, self.last, self.lock = send, time.monotonic(), threading.Lock()

    def __call__(self, header: dict[str, Any], payload: Any = b"") -> None:
        with self.lock:
            self.send(header, payload)
        self.last = time.monotonic()

    def beat(self) -> None:
        if time.monotonic() - self.last > BEAT:
            self({"beat": True})


def answer(request: dict[str, Any], payload: Any, answers: Answers) -> None:
    container = module("container")
    do = {"describe": container.describe, "frames": module("frames").read, "sound": module("sound").read}[request["do"]]
    try:
        end = do(request, payload, answers)
    except container.Problem as error:
        answers({"error": str(error)})
    except MemoryError:
        answers({"error": "needs more memory to be decoded than a video may take"})
    except BrokenPipeError:
        raise
    except Exception as error:  # whatever it is, it concerns this file alone
        answers({"error": f"cannot be decoded ({container.short(error)})"})
    else:
        answers({"end": True, **(end or {})})


def main() -> None:
    answers_to = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what a library prints does not get among the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's; it closes the pipe
    requests = os.fdopen(os.dup(0), "rb", 0)
    limit_memory(int(sys.argv[1]))
    sys.path[:] = json.loads(requests.readline() or "[]")  # PyAV is where the server has found it
    wire = module("wire")
    answers = Answers(lambda header, payload: wire.send(answers_to, header, payload))
    try:
        while (message := wire.receive(requests)) is not None:
            answer(*message, answers)
    except BrokenPipeError:  # the server has gone, or wants no more
        pass


if __name__ == "__main__":
    main()
