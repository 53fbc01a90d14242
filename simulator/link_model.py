"""A link as TCP feels it: bytes go in at a time, and come out, in order, at later times.

Pure: no clock, no socket, no global.  The caller says what time it is (any seconds that do not go
back), so the same model runs on real sockets (:mod:`simulator.shaped_proxy`) and in virtual time::

    link = Link(spec, seed=1)
    taken = link.up.send("flow", 5_000, now=0.0)     # bytes taken; the rest must wait
    while (now := link.up.next_time()) < math.inf:   # an event may pass without a delivery
        for delivery in link.up.collect(now): ...

What happens to a packet:

* It joins a drop-tail queue that all flows of a direction share, and leaves it at the link's rate
  or at a trace's opportunities; nothing leaves during an outage, and what waits, waits on (as a
  modem's buffer holds it).
* Leaving, it may be lost.  The loss takes the link's time all the same.
* It arrives a propagation delay (and jitter) later, never before one that left earlier.

A lost packet comes again.  If anything that its flow sent after it arrives (new or sent again), the
sender hears of the gap a way back later and sends again at once (fast retransmit, as RACK does it:
RFC 8985); that notices a lost retransmission too.  What nothing follows waits for the timer:
smoothed round trip + 4 · its variation (here the links' mean jitter), but at least 200 ms (RFC 6298
with Linux's floor), from the moment it was lost.  Each time the timer of a packet expires its next
one is twice as long, up to 120 s; a fast retransmission lengthens nothing.  Meanwhile what the flow
sent later waits at the receiver, which is the stall that a user feels.

A new packet that finds the queue full is lost too.  TCP then shrinks its window and grows it back
to where it was in K = cbrt(W · (1 - 0.7) / 0.4) seconds (CUBIC, RFC 9438; W packets fill queue and
path).  Here a flow that lost a packet so is *calm* for K: ``send`` takes only what the queue has
room for and leaves the rest with the caller.  So a bulk flow keeps the link busy and the queue
full and loses about a packet every K seconds, and nobody buffers without bound.  Slow start and
the shape of the window between two losses are not modelled: a flow may use the whole link at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from math import inf

import numpy as np

from simulator.link_flow import Delivery, Flow, LinkCounts, Packet
from simulator.link_noise import Jitter, Loss
from simulator.link_service import OutageCalendar, make_service
from simulator.link_spec import DirectionSpec, LinkSpec

RTO_FLOOR_S = 0.2
RTO_CEILING_S = 120.0
_CUBIC_C = 0.4
_CUBIC_BETA = 0.7


class LinkDirection:
    """One way of a link, shared by all flows that name themselves to :meth:`send`.

    Args:
        spec: what it is like.
        back_ms: delay of the other way, for what the sender hears of it.
        back_jitter_ms: mean jitter of the other way.
        noise: where all chance comes from.
        start: second from which outages and traces count.
    """

    def __init__(
        self,
        spec: DirectionSpec,
        noise: np.random.Generator,
        *,
        back_ms: float = 0.0,
        back_jitter_ms: float = 0.0,
        start: float = 0.0,
    ) -> None:
        self.counts = LinkCounts()
        self._noise = noise
        self._flows: dict[Hashable, Flow] = {}
        self._queue: deque[Packet] = deque()
        self._queued = 0
        self._head_leaves: float | None = None
        self._retries: list[tuple[float, int, Packet]] = []
        self._order = 0
        self._last_arrival = -inf
        self._now = start
        self._adopt(spec, back_ms, back_jitter_ms, start)

    def change(
        self,
        spec: DirectionSpec,
        now: float,
        *,
        noise: np.random.Generator | None = None,
        back_ms: float = 0.0,
        back_jitter_ms: float = 0.0,
    ) -> None:
        """Be like ``spec`` from ``now`` on; its trace and outages begin now.

        What is past the queue arrives as it would have.  Of the packet at the head of the queue
        only what has not left is carried anew.  An :meth:`interrupt` that is not over goes on.

        Args:
            noise: where all chance comes from now on; ``None`` draws on from the present source.
        """
        self._settle(now)
        if noise is not None:
            self._noise = noise
        self._adopt(spec, back_ms, back_jitter_ms, now, self._outages.once_after(now))

    def interrupt(self, now: float, seconds: float) -> None:
        """Stand still for ``seconds`` from ``now`` on."""
        self._settle(now)
        self._outages.add(now, now + seconds)

    def send(self, flow: Hashable, size: int, now: float) -> int:
        """Put up to ``size`` bytes of ``flow`` on the link; return how many were taken."""
        self._advance(now)
        state = self._flows.get(flow)
        if state is None:
            state = self._flows[flow] = Flow()
        taken = 0
        while taken < size:
            payload = min(self._payload, size - taken)
            if state.under_way and state.under_way + payload > self._spec.window_bytes:
                break
            wire = payload + self._spec.header_bytes
            if self._queued + wire > self._spec.queue_bytes:
                self._advance(now)  # a link without a limit is done with it already
            room = not self._queue or self._queued + wire <= self._spec.queue_bytes
            if not room and now < state.calm_until:
                break
            packet = Packet(state, self._order, payload, wire, now)
            self._order += 1
            state.packets.append(packet)
            state.under_way += payload
            taken += payload
            self.counts.packets += 1
            if room:
                self._enqueue(packet)
            else:
                self.counts.dropped += 1
                state.calm_until = now + self._calm_seconds
                # the sender's timer has learnt how long the queue is
                self._lose(packet, now + self._queued * self._mean_seconds_per_byte)
        self.counts.sent_bytes += taken
        return taken

    def collect(self, now: float) -> list[Delivery]:
        """What has come out since the last call, up to and including ``now``, by time."""
        self._advance(now)
        found: list[Delivery] = []
        for name, flow in self._flows.items():
            packets = flow.packets
            while packets and packets[0].arrival <= now:
                packet = packets.popleft()
                flow.under_way -= packet.size
                if packet.losses:
                    self._count_stall(packet, flow)
                flow.released = max(flow.released, packet.arrival)
                self.counts.delivered_bytes += packet.size
                found.append(Delivery(name, packet.size, flow.released))
        if len(self._flows) > 1:
            found.sort(key=lambda delivery: delivery.at)
        return found

    def next_time(self) -> float:
        """When :meth:`collect` could next have something: never too late, ``inf`` for never."""
        soonest = self._next_departure() + self._delay
        if self._retries:
            soonest = min(soonest, self._retries[0][0] + self._delay)
        for flow in self._flows.values():
            if flow.packets and flow.packets[0].arrival < soonest:
                soonest = flow.packets[0].arrival
        return soonest

    def next_room(self) -> float:
        """When the queue next gets shorter; ``inf`` if it is empty."""
        return self._next_departure()

    def under_way(self, flow: Hashable) -> int:
        """Bytes of ``flow`` that were sent and not yet collected."""
        state = self._flows.get(flow)
        return 0 if state is None else state.under_way

    def forget(self, flow: Hashable) -> None:
        """Drop a flow; what it has in the queue passes and is delivered to nobody."""
        state = self._flows.pop(flow, None)
        if state is not None:
            state.open = False

    def _settle(self, now: float) -> None:
        """Note what of the head of the queue has left, for its plan is void from ``now`` on."""
        self._advance(now)
        if self._queue:
            head = self._queue[0]
            head.left = max(0.0, head.left - self._service.settle(now))
            self._head_leaves = None

    def _adopt(
        self,
        spec: DirectionSpec,
        back_ms: float,
        back_jitter_ms: float,
        now: float,
        once: Sequence[tuple[float, float]] = (),
    ) -> None:
        jitter, loss, channel = self._noise.spawn(3)
        self._spec = spec
        self._payload = spec.mtu_bytes - spec.header_bytes
        self._delay = spec.delay_ms / 1e3
        self._back = back_ms / 1e3
        variation = (spec.jitter_ms + back_jitter_ms) / 1e3
        round_trip = self._delay + self._back
        self._timeout = max(RTO_FLOOR_S, round_trip + 5 * variation)
        mbit = spec.trace.mean_mbit if spec.trace is not None else spec.rate_mbit
        self._mean_seconds_per_byte = 8e-6 / mbit if mbit else 0.0
        path_bytes = round_trip / self._mean_seconds_per_byte if mbit else 0.0
        packets = (spec.queue_bytes + path_bytes) / spec.mtu_bytes
        self._calm_seconds = max(round_trip, _regrowth(packets))
        self._outages = OutageCalendar(spec.outages, now, once)
        self._service = make_service(spec, self._outages, now)
        self._jitter = Jitter(spec, jitter)
        self._loss = Loss(spec, now, loss, channel)
        self._head_leaves = None

    def _next_departure(self) -> float:
        if not self._queue:
            return inf
        if self._head_leaves is None:
            head = self._queue[0]
            self._head_leaves = self._service.plan(head.entered, head.left)
        return self._head_leaves

    def _advance(self, now: float) -> None:
        assert now >= self._now, "time goes on"
        self._now = now
        while True:
            departure = self._next_departure()
            retry = self._retries[0][0] if self._retries else inf
            if departure > now and retry > now:
                return
            if departure <= retry:
                self._depart(departure)
            else:
                self._retry()

    def _enqueue(self, packet: Packet) -> None:
        packet.left = packet.wire
        self._queue.append(packet)
        self._queued += packet.wire

    def _depart(self, at: float) -> None:
        """The head of the queue leaves the link, to arrive or to be lost."""
        packet = self._queue.popleft()
        self._queued -= packet.wire
        self._service.commit()
        self._head_leaves = None
        arrival = max(self._last_arrival, at + self._delay + self._jitter.at(at))
        if self._loss.strikes(at):
            self.counts.lost += 1
            self._lose(packet, at)
            return
        self._last_arrival = packet.arrival = arrival
        flow = packet.flow
        if flow.gaps:
            heard = arrival + self._back
            for gap in flow.gaps:
                if gap.order < packet.order and heard < gap.retry_at:
                    self._retry_later(gap, heard, by_timer=False)
            flow.gaps = [gap for gap in flow.gaps if gap.order > packet.order]

    def _lose(self, packet: Packet, at: float) -> None:
        """Lost at ``at``: the timer runs, and what is sent later may show the loss before."""
        if packet.losses == 0:
            packet.due = at + self._delay
        packet.losses += 1
        packet.flow.gaps.append(packet)
        timeout = min(RTO_CEILING_S, self._timeout * 2**packet.expiries)
        self._retry_later(packet, at + timeout, by_timer=True)

    def _retry_later(self, packet: Packet, at: float, *, by_timer: bool) -> None:
        packet.retry_at = at
        packet.by_timer = by_timer
        heapq.heappush(self._retries, (at, packet.order, packet))

    def _retry(self) -> None:
        """Send the next lost packet again.  Its flow has cut its window, so it finds room."""
        at, _, packet = heapq.heappop(self._retries)
        if packet.retry_at != at or not packet.flow.open:
            return  # it was sent again earlier, or nobody waits for it
        packet.retry_at = inf
        packet.expiries += packet.by_timer
        packet.entered = at
        packet.order = self._order
        self._order += 1
        if packet in packet.flow.gaps:
            packet.flow.gaps.remove(packet)
        self.counts.retransmitted += 1
        self._enqueue(packet)

    def _count_stall(self, packet: Packet, flow: Flow) -> None:
        stall = packet.arrival - max(packet.due, flow.released)
        if stall > 0:
            self.counts.stalls += 1
            self.counts.stall_seconds += stall


class Link:
    """Both ways of a link, from one seed."""

    def __init__(self, spec: LinkSpec, *, seed: int = 0, start: float = 0.0) -> None:
        up, down = _noises(seed)
        self.spec = spec
        self.up = LinkDirection(spec.up, up, start=start, **_back(spec.down))
        self.down = LinkDirection(spec.down, down, start=start, **_back(spec.up))

    def change(self, spec: LinkSpec, now: float, *, seed: int | None = None) -> None:
        """Be like ``spec`` from ``now`` on (see :meth:`LinkDirection.change`).

        Args:
            seed: all chance begins anew from it, so the same ``spec`` and ``seed`` make the same
                noise again; ``None`` draws on from the seed before.
        """
        up, down = (None, None) if seed is None else _noises(seed)
        self.spec = spec
        self.up.change(spec.up, now, noise=up, **_back(spec.down))
        self.down.change(spec.down, now, noise=down, **_back(spec.up))

    def interrupt(self, now: float, seconds: float) -> None:
        """Stand still, both ways, for ``seconds`` from ``now`` on."""
        self.up.interrupt(now, seconds)
        self.down.interrupt(now, seconds)


def _noises(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """For up and down: independent of each other, and fixed by ``seed``."""
    up, down = np.random.default_rng(seed).spawn(2)
    return up, down


def _back(other: DirectionSpec) -> dict[str, float]:
    return {"back_ms": other.delay_ms, "back_jitter_ms": other.jitter_ms}


def _regrowth(window: float) -> float:
    """CUBIC's K: seconds until a window of so many packets is back after a loss."""
    return float((window * (1 - _CUBIC_BETA) / _CUBIC_C) ** (1 / 3))
