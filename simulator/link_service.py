"""When a packet has left a link: at a rate, or at a trace's opportunities, around its outages."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import floor, inf
from typing import Protocol

from simulator.link_spec import DirectionSpec, Outage
from simulator.packet_trace import OPPORTUNITY_BYTES, Trace

# outages that overlap or keep step with a trace end after so long at the latest
_LONGEST_SILENCE_S = 7_200.0


class OutageCalendar:
    """Half-open intervals in which the link stands still; times are absolute seconds."""

    def __init__(
        self, outages: Sequence[Outage], start: float, once: Sequence[tuple[float, float]] = ()
    ) -> None:
        self._scheduled = [(start + outage.start_s, outage) for outage in outages]
        self._once = list(once)

    def once_after(self, time: float) -> list[tuple[float, float]]:
        """What :meth:`add` was told and is not over at ``time``."""
        return [interval for interval in self._once if interval[1] > time]

    def add(self, begin: float, end: float) -> None:
        """Stand still from ``begin`` (not in the past) to ``end`` too."""
        self._once = [*self.once_after(begin), (begin, end)]

    def __bool__(self) -> bool:
        return bool(self._scheduled or self._once)

    def up_from(self, time: float) -> float:
        """Earliest moment from ``time`` on at which the link works (``inf`` is possible)."""
        give_up = time + _LONGEST_SILENCE_S
        while time < give_up:
            later = max([time, *(end for begin, end in self._around(time) if begin <= time < end)])
            if later == time:
                return time
            time = later
        return time

    def next_break(self, time: float) -> float:
        """Begin of the next outage after ``time``, at which the link works."""
        return min([inf, *(begin for begin, _ in self._around(time) if begin > time)])

    def _around(self, time: float) -> list[tuple[float, float]]:
        """The intervals that could hold ``time`` and, of each source, the next one."""
        found = list(self._once)
        for first, outage in self._scheduled:
            if outage.every_s is None:
                found.append((first, first + outage.duration_s))
                continue
            round_ = max(0, floor((time - first) / outage.every_s))
            for number in (round_, round_ + 1):
                begin = first + number * outage.every_s
                found.append((begin, begin + outage.duration_s))
        return found


class Service(Protocol):
    """The server of a queue.

    ``plan`` changes nothing; ``commit`` or ``settle`` adopts the last plan, whole or up to a time.
    """

    def plan(self, entered: float, size: float) -> float:
        """Second at which a packet of ``size`` bytes, there from ``entered``, has left."""

    def commit(self) -> None:
        """The planned packet has left."""

    def settle(self, now: float) -> float:
        """Bytes of the planned packet, which leaves later, that have left by ``now``."""


def make_service(spec: DirectionSpec, outages: OutageCalendar, start: float) -> Service:
    """The service that ``spec`` asks for, idle at ``start``."""
    if spec.trace is not None:
        return TraceService(spec.trace, outages, start)
    return RateService(spec.rate_mbit, outages, start)


class RateService:
    """One packet after the other at a constant rate; ``None`` takes no time at all."""

    def __init__(self, rate_mbit: float | None, outages: OutageCalendar, start: float) -> None:
        self._seconds_per_byte = 0.0 if rate_mbit is None else 8e-6 / rate_mbit
        self._outages = outages
        self._idle_from = self._begun = self._planned = start

    def plan(self, entered: float, size: float) -> float:
        begin = self._begun = max(entered, self._idle_from)
        work = size * self._seconds_per_byte
        if not self._outages:
            self._planned = begin + work
            return self._planned
        begin = self._outages.up_from(begin)
        while begin < inf:
            stop = self._outages.next_break(begin)
            if begin + work <= stop:
                break
            work -= stop - begin
            begin = self._outages.up_from(stop)
        self._planned = begin + work
        return self._planned

    def commit(self) -> None:
        self._idle_from = self._planned

    def settle(self, now: float) -> float:
        begin, self._idle_from = self._begun, now
        if not self._seconds_per_byte:
            return 0.0
        worked = 0.0
        while (begin := self._outages.up_from(begin)) < now:
            stop = min(now, self._outages.next_break(begin))
            worked += stop - begin
            begin = stop
        return worked / self._seconds_per_byte


class TraceService:
    """Packets leave at a trace's opportunities, 1,500 bytes each, shared by the byte."""

    def __init__(self, trace: Trace, outages: OutageCalendar, start: float) -> None:
        self._times = trace.opportunities_ms
        self._period = self._times[-1]
        self._outages = outages
        self._start = start
        # (number of the opportunity in use, its bytes left): nothing is in use at first
        self._state: tuple[int, float] = (-1, 0)
        self._planned: tuple[int, float] = (-1, 0)
        self._entered = start

    def plan(self, entered: float, size: float) -> float:
        self._entered = entered
        number, left = self._first(entered)
        while size > left:
            size -= left
            number, left = self._next(number + 1), OPPORTUNITY_BYTES
        self._planned = (number, left - size)
        return self._time(number)

    def commit(self) -> None:
        self._state = self._planned

    def settle(self, now: float) -> float:
        carried = 0.0
        number, left = self._first(self._entered)
        while self._time(number) <= now:  # used up, for the packet leaves at a later one
            carried += left
            self._state = (number, 0)
            number, left = self._next(number + 1), OPPORTUNITY_BYTES
        return carried

    def _first(self, entered: float) -> tuple[int, float]:
        """The first opportunity for a packet there from ``entered``, and what it has left."""
        number, left = self._state
        if left == 0 or self._time(number) < entered:
            number, left = self._next(max(number + 1, self._first_from(entered))), OPPORTUNITY_BYTES
        return number, left

    def _time(self, number: int) -> float:
        rounds, index = divmod(number, len(self._times))
        return self._start + (rounds * self._period + self._times[index]) / 1e3

    def _first_from(self, time: float) -> int:
        """Number of the first opportunity at ``time`` or later."""
        elapsed = (time - self._start) * 1e3
        rounds = max(0, floor(elapsed / self._period) - 1)  # rounding may put it a round late
        number = rounds * len(self._times)
        inside = elapsed - rounds * self._period
        while inside > self._period:
            inside -= self._period
            number += len(self._times)
        number += bisect_left(self._times, inside)
        while self._time(number) < time:  # the last bit of a float
            number += 1
        return number

    def _next(self, number: int) -> int:
        """``number``, or the first after it that no outage swallows.

        Outages that come again in step with the trace may swallow all of them; after two hours
        of that the link is taken to be up, so that it stands still for long, but not for ever.
        """
        if not self._outages:
            return number
        give_up = self._time(number) + _LONGEST_SILENCE_S
        while (time := self._time(number)) < give_up:
            works = self._outages.up_from(time)
            if works == time:
                break
            number = max(number + 1, self._first_from(min(works, give_up)))
        return number
