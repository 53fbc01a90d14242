"""Context on its way to the cloud: how much, and how fast it goes."""

from __future__ import annotations

# between two messages of one stretch of sending; a longer pause had nothing to do with the link
_PAUSE_SECONDS = 0.02


class Backlog:
    """Counts what was sent since the last answer, and times stretches of sending without a pause,
    up to the answer of a question that was asked right behind them."""

    def __init__(self) -> None:
        self.size = 0
        self._began = self._ended = 0.0
        self._stretch = 0
        self._timed: int | None = None  # position of the question behind the stretch

    def sent(self, began: float, ended: float, size: int) -> None:
        """A message of ``size`` bytes was handed over between ``began`` and ``ended`` (seconds)."""
        self.size += size
        if self._timed is not None:
            return
        if began - self._ended > _PAUSE_SECONDS:
            self._began, self._stretch = began, 0
        self._stretch += size
        self._ended = ended

    def asked(self, position: int, now: float) -> None:
        """A question was sent behind it."""
        if self._timed is None and self._stretch and now - self._ended <= _PAUSE_SECONDS:
            self._timed = position

    def answered(self, position: int, now: float) -> tuple[int, float] | None:
        """The answer came at ``now``, less what the cloud took: bytes and seconds from the first
        of them to the answer, where that question closed a stretch."""
        self.size = 0
        if self._timed != position:
            return None
        self._timed = None
        size, self._stretch = self._stretch, 0
        return size, now - self._began
