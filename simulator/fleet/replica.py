"""A replica of the cloud: the batcher's queue and its passes.

As :mod:`cloud.batcher` and :mod:`cloud.fair_queue` have it for one tenant: each pass takes what
waits, oldest first, up to so many rows; short work and long work (prompts) get half of the rows
each while there is both; work that nobody waits for (decoding ahead) goes where nothing is urgent,
and one piece of it in every ninth pass that has urgent work.

While all that runs are bursts, pass follows pass with the same sessions in it.  Such a run of
passes is one event, cut short at the end of the pass under way when something else arrives.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import count
from math import ceil, sqrt

from simpy import Environment
from simpy.events import Event

from cloud.fair_queue import BITE, PATIENCE
from simulator.fleet.cloud_side import CloudSide, Doing
from simulator.fleet.events import call_at
from simulator.fleet.profiles import CloudProfile, PassModel

PAUSE = 0.1  # of a pass, that the batcher waits for bursts to join the next (cloud.batcher)


class Replica:
    """One batcher in virtual time.

    Attributes:
        busy_seconds: in passes that have ended.
        passes: that have ended; ``rows`` and ``sessions`` that were in them, in sum.
        waits: seconds from queueing to the pass, of each piece of work that answers a question.
    """

    def __init__(self, env: Environment, profile: CloudProfile) -> None:
        self.env, self.profile = env, profile
        self.turnaround = profile.turnaround_seconds
        self.busy_seconds = 0.0
        self.passes = self.rows = self.sessions = 0
        self.waits = array("d")
        self._whole, self._deep = _coefficients(profile.whole), _coefficients(profile.deep)
        self._short: deque[CloudSide] = deque()
        self._long: deque[CloudSide] = deque()
        self._later: deque[CloudSide] = deque()
        self._running = False
        self._passed_over = 0
        self._most = profile.max_rows
        self._half = max(1, profile.max_rows // 2)
        self._steady: _Steady | None = None
        self._steadies = count()

    def push(self, session: CloudSide) -> None:
        """Work of ``session`` waits for a pass."""
        if not session.urgent:
            self._later.append(session)
        elif session.rows_left > BITE:
            self._long.append(session)
        else:
            self._short.append(session)
        if not self._running:
            self._start()
        elif self._steady is not None:
            self.interrupt()

    def hurry(self, session: CloudSide) -> None:
        """Somebody waits for work that nobody waited for."""
        session.urgent = True
        if session in self._later:
            self._later.remove(session)
            self._short.append(session)

    def interrupt(self) -> None:
        """End a run of passes with the one under way."""
        steady = self._steady
        if steady is None:
            return
        passes = steady.passes_by(self.env.now)
        if passes < steady.passes:
            steady.passes, steady.number = passes, next(self._steadies)
            call_at(self.env, steady.ends_at(passes), self._end_steady, steady.number)

    def _start(self, pause: float = 0.0) -> None:
        """Begin the next pass after a pause, if anything waits."""
        batch = self._take()
        if not batch:
            return
        now = self.env.now + pause
        seconds = past_growth = 0.0
        base = self._deep[0]
        rows = 0
        steady = not self._short and not self._long
        for session in batch:
            count_rows = session.rows_now
            rows += count_rows
            if session.whole:
                base, row, each, decision, past = self._whole
            else:
                _, row, each, decision, past = self._deep
            seconds += row * count_rows + each + past * session.computed
            if count_rows == session.rows_left:
                seconds += decision * session.decisions
            if session.doing is Doing.BURST:
                steady = steady and session.steady
                past_growth += past
            else:
                steady = False
                if session.doing is Doing.ANSWER and session.rows_left == session.rows:
                    self.waits.append(now - session.queued_at)
        seconds += base
        self._running = True
        if steady:
            passes = min([session.burst_left for session in batch])
            if passes > 1:
                between = min(PAUSE * seconds, self.turnaround)
                self._begin_steady(_Steady(batch, now, seconds, between, past_growth, passes))
                return
        call_at(self.env, now + seconds, self._end, (batch, seconds, rows))

    def _take(self) -> list[CloudSide]:
        """The work of the next pass, each with the rows of it that run (``rows_now``)."""
        room, short = self._most, self._short
        batch: list[CloudSide] = []
        later = self._later
        if not (short or self._long):
            self._passed_over = 0
            while room and later:
                session = later.popleft()
                session.rows_now = 1
                batch.append(session)
                room -= 1
            return batch
        if later:
            self._passed_over += 1
            if self._passed_over > PATIENCE:
                self._passed_over = 0
                session = later.popleft()
                session.rows_now = 1
                batch.append(session)
                room -= 1
        else:
            self._passed_over = 0
        if not self._long:
            _fill(short, room, batch)
            return batch
        # half of the rows for prompts while tokens wait as well
        left = _fill(short, room - min(room, self._half), batch)
        left = _fill(self._long, left + min(room, self._half), batch)
        _fill(short, left, batch)
        return batch

    def _end(self, event: Event) -> None:
        batch, seconds, rows = event.value  # type: ignore[misc]
        self.passes += 1
        self.rows += rows
        self.sessions += len(batch)
        self.busy_seconds += seconds
        self._hand_over(batch, seconds)

    def _hand_over(self, batch: list[CloudSide], seconds: float) -> None:
        """Tell the sessions of a pass that has ended, and begin the next."""
        now = self.env.now
        unfinished: list[CloudSide] = []
        for session in batch:  # nothing starts until all have heard
            session.rows_left -= session.rows_now
            if session.rows_left:
                unfinished.append(session)
            else:
                session.worked(now)
        for session in reversed(unfinished):
            queue = self._long if session.rows_left > BITE else self._short
            queue.appendleft(session)
        # the batcher waits for the sessions whose bursts go on
        bursts = any(session.doing is Doing.BURST for session in batch)
        self._running = False
        self._start(min(PAUSE * seconds, self.turnaround) if bursts else 0.0)

    def _begin_steady(self, steady: _Steady) -> None:
        steady.number = next(self._steadies)
        self._steady = steady
        call_at(self.env, steady.ends_at(steady.passes), self._end_steady, steady.number)

    def _end_steady(self, event: Event) -> None:
        steady = self._steady
        if steady is None or event.value != steady.number:
            return
        self._steady = None
        passes, batch = steady.passes, steady.batch
        self.passes += passes
        self.rows += passes * len(batch)
        self.sessions += passes * len(batch)
        busy = steady.busy_seconds(passes)
        self.busy_seconds += busy
        last = steady.seconds + (passes - 1) * steady.growth + steady.pause
        queued_at = self.env.now - last
        for session in batch:
            session.go_through(passes - 1, queued_at)
        self._hand_over(batch, last)


class _Steady:
    """A run of passes over the same bursts, from ``since`` on; each takes ``growth`` longer than
    the one before, as the text behind the rows grows."""

    __slots__ = ("batch", "growth", "number", "passes", "pause", "seconds", "since")

    def __init__(
        self,
        batch: list[CloudSide],
        since: float,
        seconds: float,
        pause: float,
        growth: float,
        passes: int,
    ) -> None:
        self.batch, self.since, self.seconds = batch, since, seconds
        self.pause, self.growth, self.passes = pause, growth, passes
        self.number = -1

    def busy_seconds(self, passes: int) -> float:
        """In so many of the passes."""
        return passes * self.seconds + self.growth * (passes * (passes - 1) / 2)

    def ends_at(self, passes: int) -> float:
        """When so many of the passes are over; between two there is a pause."""
        return self.since + self.busy_seconds(passes) + (passes - 1) * self.pause

    def passes_by(self, now: float) -> int:
        """Passes that are over or under way at ``now``."""
        each, half = self.seconds + self.pause, self.growth / 2
        elapsed = now - self.since + self.pause
        if half * self.passes < 1e-9 * each:
            passes = ceil(elapsed / each)
        else:  # half p² + (each - half) p = elapsed
            b = each - half
            passes = ceil((sqrt(b * b + 4 * half * elapsed) - b) / (2 * half))
        return max(1, passes)


def _fill(queue: deque[CloudSide], room: int, batch: list[CloudSide]) -> int:
    """Take from the front of ``queue`` what fits, the last in part; the room that is left."""
    while room > 0 and queue:
        session = queue.popleft()
        rows = session.rows_left
        session.rows_now = rows = rows if rows < room else room
        batch.append(session)
        room -= rows
    return room


def _coefficients(model: PassModel) -> tuple[float, float, float, float, float]:
    return (
        model.base_seconds,
        model.row_seconds,
        model.session_seconds,
        model.decision_seconds,
        model.past_seconds,
    )
