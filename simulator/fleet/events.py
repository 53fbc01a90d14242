"""The one way in which anything happens later: a callback at a time, as a SimPy event.

Nothing here is a SimPy process: a generator's resumption costs more than the work that it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simpy import Environment
from simpy.events import Event

Handler = Callable[[Event], Any]


class Call(Event):
    """A timeout with its one callback; made as :class:`simpy.Timeout` is, in half the time."""

    def __init__(self, env: Environment, delay: float, handler: Handler, value: Any) -> None:
        self.env = env
        self.callbacks = [handler]
        self._value = value
        self._ok = True
        self._defused = False
        env.schedule(self, delay=delay)


def call_at(env: Environment, at: float, handler: Handler, value: Any = None) -> None:
    """Call ``handler`` with an event that carries ``value`` at second ``at``, now at the
    earliest."""
    delay = at - env.now
    # a sum of floats may fall short of now by the last bit
    Call(env, delay if delay > 0.0 else 0.0, handler, value)
