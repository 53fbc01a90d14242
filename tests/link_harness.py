"""Drives a link direction in virtual time, as a simulation would."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from simulator.link_flow import Delivery
from simulator.link_model import LinkDirection
from simulator.link_spec import DirectionSpec


class Offer(NamedTuple):
    """``size`` bytes of ``flow`` that its sender has at second ``at``."""

    at: float
    flow: Hashable
    size: int


class Taken(NamedTuple):
    """``size`` bytes of ``flow`` that the link took at second ``at``."""

    at: float
    flow: Hashable
    size: int


class Scripted:
    """Loss by script, then none."""

    def __init__(self, *script: bool) -> None:
        self._script: Iterator[bool] = iter(script)

    def strikes(self, _time: float) -> bool:
        return next(self._script, False)


def direction(
    spec: DirectionSpec, *, back_ms: float = 0.0, seed: int = 0, start: float = 0.0
) -> LinkDirection:
    """A direction on its own."""
    return LinkDirection(spec, np.random.default_rng(seed), back_ms=back_ms, start=start)


def carry(
    way: LinkDirection,
    offers: Sequence[Offer],
    looks: Sequence[float] = (),
    *,
    now: float = 0.0,
) -> tuple[list[Taken], list[Delivery]]:
    """Offer, offer again what was not taken, and collect until nothing is left.

    ``looks`` are more moments at which to collect; time begins at ``now``.
    """
    due = sorted(offers, key=lambda offer: offer.at)
    pending: dict[Hashable, int] = {}
    extra = sorted(looks)
    taken: list[Taken] = []
    found: list[Delivery] = []
    while True:
        while due and due[0].at <= now:
            pending[due[0].flow] = pending.get(due[0].flow, 0) + due[0].size
            due.pop(0)
        for flow in list(pending):
            size = way.send(flow, pending[flow], now)
            if size:
                taken.append(Taken(now, flow, size))
                pending[flow] -= size
            if not pending[flow]:
                del pending[flow]
        arrived = way.collect(now)
        found += arrived
        if pending and arrived:
            continue  # a window has opened
        while extra and extra[0] <= now:
            extra.pop(0)
        soonest = min(way.next_time(), due[0].at if due else inf, extra[0] if extra else inf)
        if pending:
            soonest = min(soonest, way.next_room())
        if soonest == inf:
            assert not pending, "something waits for ever"
            return taken, found
        assert soonest >= now
        now = soonest
