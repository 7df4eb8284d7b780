"""Starts the process that decodes a video, and watches over it. No other file of the pack starts processes.

Why one is started: FFmpeg is large, and a damaged or malicious video can make it crash, hang or fill the memory, which would take
the server along with all its jobs. The process runs child.py beside this file with the host's own Python, reads one video, and
answers through a pipe. It is ended when the video has been read, when it sends nothing for a minute, when it takes more memory
than a video may, and when the server ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from . import wire

PROGRAM = Path(__file__).with_name("child.py")
SILENCE = 60.0  # seconds without a sign of life after which it hangs
MEMORY = 4 << 30  # bytes that it may hold; an 8K video needs 3
ADDRESSES = 24 << 30  # bytes of addresses that it may ask for, of which threads take many without using them
LOOK = 0.25  # seconds between looks at its memory and at the user's cancel
PIPE = 1 << 20  # bytes
AHEAD = 3  # messages, such as frames, that may lie ready


class VideoError(ValueError):
    """A video cannot be used; the text continues after its name."""


class Decoder:
    """A process that reads one video file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        if not sys.executable:
            raise VideoError("cannot be decoded: the path of the Python program, which runs the decoder, is unknown")
        command = [sys.executable, str(PROGRAM), str(ADDRESSES)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - no shell, and no part of the command comes from the file
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, bufsize=0,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        _widen(self._process.stdout.fileno())
        self._messages: queue.Queue = queue.Queue(AHEAD)
        self._reader = threading.Thread(target=_pass_on, args=(self._process, self._messages), daemon=True)
        self._reader.start()
        self.close = weakref.finalize(self, _end, self._process, self._messages)
        try:
            self._process.stdin.write(json.dumps(sys.path).encode() + b"\n")
        except OSError:  # it has ended
            pass

    def ask(self, do: str, check: Callable[[], None], payload: bytes = b"", **request: Any) -> Iterator[tuple[dict, np.ndarray]]:
        """Answers to a request as they come, the one with `end` last.

        Args:
            check: called at each answer and four times a second; what it raises ends the process.

        Raises:
            VideoError: the file cannot be decoded, or the process crashed, hung or took too much memory over it.
        """
        self._send({"do": do, "path": os.path.abspath(self.path), **request}, payload)
        try:
            while True:
                header, data = self._next(check)
                if "error" in header:
                    raise VideoError(header["error"])
                if "beat" not in header:
                    yield header, data
                if "end" in header:
                    return
        except VideoError:
            raise
        except BaseException:  # cancelled, or the user of this iterator has gone: the answers to come are nobody's
            self.close()
            raise

    def _send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        try:
            wire.send(self._process.stdin, header, payload)
        except OSError:  # it has ended; what it ended of is told where its answer is waited for
            pass

    def _next(self, check: Callable[[], None]) -> tuple[dict, np.ndarray]:
        heard = looked = time.monotonic()
        while True:
            try:
                message = self._messages.get(timeout=LOOK)
            except queue.Empty:
                message = ()
            check()
            if message is None:
                raise self._ended()
            now = time.monotonic()
            if message and now - looked < LOOK:
                return message
            looked = now
            if self._memory() > MEMORY:
                self.close()
                raise VideoError(f"takes more than {MEMORY >> 30} GB of memory to decode")
            if message:
                return message
            if now - heard > SILENCE:
                self.close()
                raise VideoError(f"hangs the decoder: nothing came from it for {SILENCE:.0f} s")

    def _memory(self) -> int:
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:  # gone
            return 0

    def _ended(self) -> VideoError:
        code = self._process.wait()
        self.close()
        name = f"exit code {code}"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
        return VideoError(f"crashes the decoder ({name}); the file is damaged or malicious")


def _widen(pipe: int) -> None:
    """Enlarge the pipe beyond the usual 64 KB, if the system can: a frame of 1080p has 6 MB."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    except (ImportError, AttributeError, OSError):  # no Linux; or less is allowed
        pass


def _pass_on(process: subprocess.Popen, messages: queue.Queue) -> None:
    """Thread: messages of the process into the queue, None at its end."""
    try:
        while (message := wire.receive(process.stdout)) is not None:
            messages.put(message)
    except (OSError, ValueError):
        pass
    messages.put(None)


def _end(process: subprocess.Popen, messages: queue.Queue) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    while True:  # the thread may wait for room in the queue
        try:
            if messages.get(timeout=1.0) is None:
                break
        except queue.Empty:
            break
    process.stdout.close()
