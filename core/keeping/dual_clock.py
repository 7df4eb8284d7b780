"""Two clocks in one run (Singer et al. 2025, Time-to-Move, section 3): what was moved starts later than the rest.

The whole picture starts from the rough edit, with noise at the level of a first, "weak" step. Inside the moved region the rough
edit with the step's noise is put back at every step until a second, "strong" step; from there on nothing is held. So the region
starts with less noise and keeps its content, while its surroundings may still adapt.
"""

from __future__ import annotations

# As the authors start Stable Video Diffusion: of 50 steps, 16 and 21.
WEAK, STRONG = 0.32, 0.42


def clock_steps(steps: int, weak: float, strong: float) -> tuple[int, int]:
    """Shares of a run -> numbers of the first step that is not held, outside and inside the region; at least one step is left.

    Args:
        steps: of the whole run.
        weak, strong: 0 to 1, weak not above strong.
    """
    first = min(round(weak * steps), steps - 1)
    return first, max(first, min(round(strong * steps), steps))
