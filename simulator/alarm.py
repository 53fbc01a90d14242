"""One timer of an event loop that goes off on time, not after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

_MOST_EARLY_SECONDS = 0.0005
_WORTH_IT_SECONDS = 0.002  # a nearer alarm is one of a stream: spinning for each would cost a core
_LEARNING_RATE = 0.1


class Alarm:
    """Calls ``ring`` once at the time set last, never before it.

    A sleeping process is woken late, by 0.1 ms on an idle machine and more on a busy one.  So the
    alarm learns how late it is as a rule (at most 0.5 ms), sleeps so much less, and spins away what
    is left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._when = inf
        self._lateness = 0.0

    def set(self, when: float) -> None:
        """Ring at ``when`` (the loop's time; ``inf`` is never) and at no other time."""
        if when == self._when:
            return
        self.cancel()
        if when == inf:
            return
        self._when = when
        if when - self._loop.time() > _WORTH_IT_SECONDS:
            self._handle = self._loop.call_at(when - self._lateness, self._wake_early)
        else:
            self._handle = self._loop.call_at(when, self._go_off)

    def cancel(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._when = inf

    def _wake_early(self) -> None:
        late = self._loop.time() - (self._when - self._lateness)
        self._lateness += _LEARNING_RATE * (late - self._lateness)
        self._lateness = min(self._lateness, _MOST_EARLY_SECONDS)
        self._go_off()

    def _go_off(self) -> None:
        when, self._when, self._handle = self._when, inf, None
        while self._loop.time() < when:
            pass  # at most half a millisecond
        self._ring()
