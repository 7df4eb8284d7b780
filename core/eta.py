"""The remaining time of long-running work, in one line."""

from __future__ import annotations

import time
from collections.abc import Callable

WARM_UP = 5.0  # seconds before anything is told: the first pieces include loading


class Eta:
    """Measures the speed of work. Pieces that were done before this object was made, for instance by an interrupted run, do not
    count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.first: tuple[float, int] | None = None

    def line(self, done: int, total: int) -> str:
        """Such as "12 of 40, about 3 min left"; without the time until it can be estimated."""
        now = self.clock()
        if self.first is None or done < self.first[1]:
            self.first = (now, done)
        began, before = self.first
        text = f"{done} of {total}"
        if done <= before or now - began < WARM_UP or done >= total:
            return text.ljust(40)
        return f"{text}, about {_span((now - began) / (done - before) * (total - done))} left".ljust(40)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"
