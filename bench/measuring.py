"""Peak memory and time, as the benches take them."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class PeakMemory:
    """Peak memory while it is entered: the allocator's own count on CUDA, sampled resident memory on a CPU."""

    def __enter__(self) -> PeakMemory:
        import psutil
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        process = psutil.Process()
        self.before = self.top = process.memory_info().rss
        self.done = threading.Event()

        def watch() -> None:
            while not self.done.wait(0.001):
                self.top = max(self.top, process.memory_info().rss)

        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.done.set()
            self.thread.join()
            self.bytes = self.top - self.before


def return_memory_at_once(wanted: bool) -> None:
    """Make glibc give every larger block back when it is freed, so that resident memory shows what is in use.

    Wanted while memory is measured; not while time is, as it costs a page fault for every block.
    """
    if platform.system() == "Linux":
        import ctypes

        m_trim_threshold, m_mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        for option in (m_mmap_threshold, m_trim_threshold):
            libc.mallopt(option, 1 << 16 if wanted else 1 << 28)


def synchronize() -> None:
    """Wait for the card, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any]) -> float:
    """Of one call: of processors, as others on the machine do not count, or by the clock where a card works."""
    import torch

    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    synchronize()
    start = clock()
    run()
    synchronize()
    return clock() - start


def machine(words: str | None) -> str:
    """The machine in words."""
    import torch

    what = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    return words or f"{what}, {platform.system()}"


@contextmanager
def parts_counted(modules: Sequence[Any], live: Any) -> Iterator[None]:
    """While it is entered, what a streamed network does with one part at a time counts as work inside for `live`.

    Args:
        modules: that call `by_parts`.  live: a counter of bytes alive with a context `inside`.
    """
    by_parts = modules[0].by_parts

    def counted(count: int, size: int, work: Callable, *more: Any) -> Any:
        def inside(which: slice) -> Any:
            with live.inside():
                return work(which)

        return by_parts(count, size, inside, *more)

    for module in modules:
        module.by_parts = counted
    try:
        yield
    finally:
        for module in modules:
            module.by_parts = by_parts
