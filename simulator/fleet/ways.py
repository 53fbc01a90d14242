"""A link's ways in virtual time: in closed form where it can be, packet by packet where not.

A link of rate, delay and jitter alone is a queue whose every departure is known when a message is
handed over (:class:`PlainWay`): the arithmetic of :mod:`simulator.link_model` for it, at a tenth of
the time.  Its jitter is the link model's own process, read once every 10 ms into a table that all
edges share, each from a place of its own.  Loss, traces and outages go through the link model
itself (:class:`PacketWay`), whose packets are events.

TCP's drop-tail losses are left out of the closed form: a message waits for the rate instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from simulator.fleet.events import Clock
from simulator.link_model import Link, LinkDirection
from simulator.link_noise import Jitter
from simulator.link_spec import DirectionSpec, LinkSpec

Deliver = Callable[[float, Any], None]
_TABLE = 1 << 15
_TABLE_MASK = _TABLE - 1
_PER_SECOND = 100.0


class JitterTable:
    """Extra delays of one direction, ``_TABLE`` steps of 10 ms, begun again at its end."""

    def __init__(self, spec: DirectionSpec, noise: np.random.Generator) -> None:
        jitter = Jitter(spec, noise)
        self.seconds = [jitter.at(index / _PER_SECOND) for index in range(_TABLE)]


class PlainWay:
    """First in, first out at a rate, then a delay and jitter; arrivals keep their order.

    ``busy`` (when the queue is empty) and ``last`` (the latest arrival) may be put back to what
    they were before messages that were not sent after all.
    """

    __slots__ = ("_delay", "_jitter", "_offset", "_seconds_per_byte", "busy", "last")

    def __init__(self, spec: DirectionSpec, jitter: JitterTable | None, offset: int) -> None:
        payload = (spec.mtu_bytes - spec.header_bytes) / spec.mtu_bytes
        rate = spec.rate_mbit
        self._seconds_per_byte = 8e-6 / (rate * payload) if rate is not None else 0.0
        self._delay = spec.delay_ms / 1e3
        self._jitter = None if jitter is None else jitter.seconds
        self._offset = offset
        self.busy = self.last = 0.0

    @property
    def seconds_per_byte(self) -> float:
        """0 without a rate."""
        return self._seconds_per_byte

    def arrival(self, at: float, size: float) -> float:
        """When ``size`` bytes that are handed over at ``at`` are there."""
        left = self.busy
        self.busy = left = (at if at > left else left) + size * self._seconds_per_byte
        return self._there(left)

    def stretch(self, begun: float, ended: float, at: float, size: float, last: float) -> float:
        """When ``size`` bytes are there that came up bit by bit from ``begun`` on, the ``last``
        of them at ``ended``, and what closes them at ``at``.

        Exact where the way keeps up with what comes, or is behind throughout.
        """
        each, left = self._seconds_per_byte, self.busy
        left = (begun if begun > left else left) + size * each
        ended += last * each
        if ended > left:  # noqa: PLR1730  (max takes three times as long)
            left = ended
        if at > left:  # noqa: PLR1730
            left = at
        self.busy = left
        return self._there(left)

    def _there(self, left: float) -> float:
        """The arrival of what leaves at ``left``."""
        there = left + self._delay
        if self._jitter is not None:
            there += self._jitter[(int(left * _PER_SECOND) + self._offset) & _TABLE_MASK]
        if there > self.last:
            self.last = there
            return there
        return self.last


class PacketWay:
    """One direction of :class:`simulator.link_model.Link`; messages are told of when they come."""

    __slots__ = ("_env", "_link", "_next", "_under_way", "_unsent")

    def __init__(self, env: Clock, link: LinkDirection) -> None:
        self._env, self._link = env, link
        self._unsent = 0  # bytes that the link has not taken yet
        self._under_way: deque[tuple[int, Deliver, Any]] = deque()
        self._next = inf

    def send(self, size: float, deliver: Deliver, value: Any) -> None:
        """Hand over a message now; ``deliver`` is called with the time and ``value`` when all of
        it is there."""
        whole = max(1, round(size))
        self._under_way.append((whole, deliver, value))
        self._unsent += whole
        self._go_on()

    def _go_on(self) -> None:
        now, link = self._env.now, self._link
        if self._unsent:
            self._unsent -= link.send(0, self._unsent, now)
        soonest = min(link.next_time(), link.next_room() if self._unsent else inf)
        if soonest < self._next:
            self._next = soonest
            self._env.call_at(max(soonest, now), self._look)

    def _look(self, _value: object) -> None:
        now = self._env.now
        self._next = inf
        arrived = sum(delivery.size for delivery in self._link.collect(now))
        whole: list[tuple[Deliver, Any]] = []
        while arrived and self._under_way:
            size, deliver, value = self._under_way.popleft()
            if arrived < size:
                self._under_way.appendleft((size - arrived, deliver, value))
                break
            arrived -= size
            whole.append((deliver, value))
        for deliver, value in whole:
            deliver(now, value)
        self._go_on()


def is_plain(spec: LinkSpec) -> bool:
    """Whether both ways have a closed form."""
    return all(
        way.trace is None and not way.loss and way.burst_loss is None and not way.outages
        for way in (spec.up, spec.down)
    )


class LinkMaker:
    """Makes the links of one group of edges, all alike but for their chance."""

    def __init__(self, spec: LinkSpec, noise: np.random.Generator) -> None:
        self.spec, self._noise = spec, noise
        self.plain = is_plain(spec)
        up, down = (noise.spawn(1)[0] for _ in range(2))
        self._up = JitterTable(spec.up, up) if self.plain and spec.up.jitter_ms else None
        self._down = JitterTable(spec.down, down) if self.plain and spec.down.jitter_ms else None

    def make_plain(self) -> tuple[PlainWay, PlainWay]:
        """Up and down in closed form."""
        up, down = (int(offset) for offset in self._noise.integers(0, _TABLE, 2))
        return PlainWay(self.spec.up, self._up, up), PlainWay(self.spec.down, self._down, down)

    def make_packets(self, env: Clock) -> tuple[PacketWay, PacketWay]:
        """Up and down packet by packet; outages and traces begin together for all edges."""
        link = Link(self.spec, seed=int(self._noise.integers(0, 1 << 62)), start=env.now)
        return PacketWay(env, link.up), PacketWay(env, link.down)
