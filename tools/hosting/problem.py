"""The exception whose text is meant for the person at the terminal."""

from __future__ import annotations


class Problem(Exception):
    """Something went wrong that the user can act on: one paragraph, with the remedy, no traceback."""
