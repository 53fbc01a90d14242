"""Whether a further draft is worth its while, and how far the cloud should look ahead."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from edge.plan import MOST_LOOKAHEAD

_SAMPLES = 7
# while nothing is measured yet
_FIRST_LEAST_CHANCE = 0.1
_LEAST_PASS_SECONDS = 1e-3


class DraftWorth:
    """A draft is worth its while where the wait that it may save, times the chance that every
    guess before it is right, outweighs the work that is else for nothing::

        chance · w  ≥  (1 - chance) · e

    ``e`` is the edge's time for a token; ``w`` the wait for an answer, as both were of late.  A
    cloud on the same machine works on the same cores, so that drafting slows it down: there only
    the way there and back counts as waiting.

    Between an answer and the next question the cloud has the way there and back for itself, and a
    token of the edge's.  Where that is as long as a pass of its own it may decode ahead, and for it
    not to stop before the edge's words have told it to go on, as far as it gets in twice that time.
    """

    def __init__(
        self,
        least_chance: float | None,
        *,
        shared_cores: bool,
        earlier_round_trip: float | None = None,
    ) -> None:
        self._fixed, self._shared_cores = least_chance, shared_cores
        self._earlier_round_trip = earlier_round_trip
        self._steps: deque[float] = deque(maxlen=_SAMPLES)
        self._waits: deque[float] = deque(maxlen=_SAMPLES)
        self._ways: deque[float] = deque(maxlen=_SAMPLES)
        self._passes: deque[float] = deque(maxlen=_SAMPLES)

    def drafted(self, seconds: float) -> None:
        """A token took the edge so long."""
        self._steps.append(seconds)

    def answered(self, seconds: float, cloud_seconds: float) -> None:
        """An answer took so long, of which the cloud says that it took ``cloud_seconds``."""
        self._waits.append(seconds - (cloud_seconds if self._shared_cores else 0.0))
        self._ways.append(max(0.0, seconds - cloud_seconds))
        self._passes.append(cloud_seconds)

    def lookahead(self, *, every_token: bool) -> int:
        """Tokens that the cloud should decode ahead; the most where it is to decide every token
        anyway."""
        if every_token:
            return MOST_LOOKAHEAD
        if not self._ways or not self._steps:
            return 0
        idle = median(self._ways) + median(self._steps)
        each = max(_LEAST_PASS_SECONDS, median(self._passes))
        return min(MOST_LOOKAHEAD, math.ceil(2 * idle / each)) if idle >= each else 0

    @property
    def least_chance(self) -> float:
        """The chance from which on drafting pays."""
        if self._fixed is not None:
            return self._fixed
        wait = median(self._waits) if self._waits else self._earlier_round_trip
        if wait is None or not self._steps:
            return 1.0 if self._shared_cores else _FIRST_LEAST_CHANCE
        step = median(self._steps)
        # shorter than a token of the edge's, nothing can be won by it
        return step / (step + wait) if wait > step else 1.0
