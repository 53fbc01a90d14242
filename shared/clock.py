"""Time as a value that is passed in, so that tests and simulations can turn it by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on a monotonic clock of arbitrary origin."""

    def __call__(self) -> float: ...


monotonic: Clock = time.monotonic


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds`` (not negative)."""
        assert seconds >= 0
        self._now += seconds
