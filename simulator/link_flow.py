"""What a link remembers of the connections that use it: packets on their way, gaps, counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple


class Delivery(NamedTuple):
    """``size`` more payload bytes of ``flow`` are at the receiver at second ``at``."""

    flow: Hashable
    size: int
    at: float


@dataclass
class LinkCounts:
    """What a direction has seen so far.

    Bytes are payload.  ``lost`` left the link and did not arrive, ``dropped`` found the queue full;
    both came again.  A stall is a gap that held a flow's later bytes, or its own, back.
    """

    sent_bytes: int = 0
    delivered_bytes: int = 0
    packets: int = 0
    lost: int = 0
    dropped: int = 0
    retransmitted: int = 0
    stalls: int = 0
    stall_seconds: float = 0.0


class Packet:
    """A segment on its way: ``size`` bytes of payload, ``wire`` with headers.

    ``due`` is when it would have arrived had it not been lost; ``arrival`` and ``retry_at`` are
    ``inf`` while unknown.  ``order`` counts transmissions, so it grows when the packet is sent
    again; ``left`` are the bytes of ``wire`` that the link has yet to carry; ``losses`` are all its
    losses, ``expiries`` those that the timer noticed.
    """

    __slots__ = (
        "arrival",
        "by_timer",
        "due",
        "entered",
        "expiries",
        "flow",
        "left",
        "losses",
        "order",
        "retry_at",
        "size",
        "wire",
    )

    def __init__(self, flow: Flow, order: int, size: int, wire: int, entered: float) -> None:
        self.flow = flow
        self.order = order
        self.size = size
        self.wire = wire
        self.entered = entered
        self.left: float = wire
        self.losses = 0
        self.expiries = 0
        self.by_timer = False
        self.due = 0.0
        self.arrival = inf
        self.retry_at = inf


class Flow:
    """One connection's packets, in order, from sending to delivery."""

    __slots__ = ("calm_until", "gaps", "open", "packets", "released", "under_way")

    def __init__(self) -> None:
        self.packets: deque[Packet] = deque()
        self.gaps: list[Packet] = []  # lost, and nothing sent later has arrived yet
        self.under_way = 0
        self.calm_until = -inf
        self.released = -inf
        self.open = True
