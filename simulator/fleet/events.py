"""The one way in which anything happens later: a call at a time.

Nothing here is a SimPy process: a generator's resumption costs more than the work that it does.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from simpy import Environment
from simpy.events import NORMAL, Event, EventPriority

Handler = Callable[[Any], Any]


class Clock(Environment):
    """A SimPy environment whose queue holds bare calls, without an event around each.

    SimPy's own events may be scheduled beside them.
    """

    def call_at(self, at: float, handler: Handler, value: Any = None) -> None:
        """Call ``handler`` with ``value`` at second ``at``, now at the earliest."""
        now = self._now
        heappush(
            self._queue,
            (at if at > now else now, NORMAL, next(self._eid), handler, value),  # type: ignore[misc]
        )

    def schedule(self, event: Event, priority: EventPriority = NORMAL, delay: float = 0.0) -> None:
        """An event as SimPy has them."""
        entry = (self._now + delay, priority, next(self._eid), _happen, event)
        heappush(self._queue, entry)  # type: ignore[misc]

    def step(self) -> None:
        """The next call."""
        if not self._queue:
            super().step()  # raises what SimPy's run stops at
        self._now, _, _, handler, value = heappop(self._queue)  # type: ignore[misc]
        handler(value)

    def run_until(self, until: float) -> None:
        """All calls before second ``until``: SimPy's ``run`` in a tight loop."""
        queue, pop = self._queue, heappop
        while queue and queue[0][0] < until:
            self._now, _, _, handler, value = pop(queue)  # type: ignore[misc]
            handler(value)
        self._now = until


def _happen(event: Event) -> None:
    callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
    for callback in callbacks:
        callback(event)
    if not event.ok and not event.defused:
        assert isinstance(event.value, BaseException)
        raise event.value
