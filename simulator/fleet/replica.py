"""A replica of the cloud: the batcher's queue and its passes.

As :mod:`cloud.batcher` and :mod:`cloud.fair_queue` have it for one tenant: each pass takes what
waits, oldest first, up to so many rows; short work and long work (prompts) get half of the rows
each while there is both; work that nobody waits for (context ahead of its question, decoding ahead)
goes where nothing is urgent, and one piece of it in every ninth pass that has urgent work.

While all that runs are bursts, pass follows pass with the same sessions in it.  Such a run of
passes is one event, cut short at the end of the pass under way when something else arrives.

The service is a Python process, whose event loop and model take turns: while it handles a message,
the model waits.  Messages that wait to be handled when a pass begins make it longer, and so do
those that come while it runs.  What is sent at the end of a pass leaves one by one.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import count
from math import ceil, sqrt

from cloud.fair_queue import BITE, PATIENCE
from simulator.fleet.cloud_side import CloudSide, Doing
from simulator.fleet.events import Clock
from simulator.fleet.profiles import CloudProfile, PassModel

# of an edge's messages, the context behind a question's own was handled while nothing ran
_AT_ONCE = 2
_, _ANSWER, _BURST, _, _ = Doing


class Replica:
    """One batcher in virtual time.

    Attributes:
        busy_seconds: in passes that have ended.
        passes: that have ended; ``rows`` and ``sessions`` that were in them, in sum.
        waits: seconds from queueing to the pass, of each piece of work that answers a question.
        running: a pass is under way.
        ends_at: when it ends without the messages that make it longer yet; 0 where that may change.
    """

    def __init__(self, env: Clock, profile: CloudProfile) -> None:
        self.env, self.profile = env, profile
        self.call_at = env.call_at
        self.turnaround = profile.turnaround_seconds
        self._message_seconds = profile.message_seconds
        self._loop_free = 0.0  # when the event loop has handled all
        self._late = 0  # messages that make the pass under way longer
        self.ends_at = 0.0
        self._counted_from = 0.0
        self.busy_seconds = 0.0
        self.passes = self.rows = self.sessions = 0
        self.waits = array("d")
        self._whole, self._deep = _coefficients(profile.whole), _coefficients(profile.deep)
        self._whole_rows = profile.whole.rows_seconds(profile.max_rows)
        self._deep_rows = profile.deep.rows_seconds(profile.max_rows)
        self._short: deque[CloudSide] = deque()
        self._long: deque[CloudSide] = deque()
        self._later: deque[CloudSide] = deque()
        self.running = False
        self._passed_over = 0
        self._most = profile.max_rows
        self._half = max(1, profile.max_rows // 2)
        self._steady: _Steady | None = None
        self._steadies = count()

    def count_from_now(self, _value: object = None) -> None:
        """Begin anew to count: a warm-up is over.  Of the pass under way only the rest is busy."""
        self._counted_from = self.env.now
        self.busy_seconds = 0.0
        self.passes = self.rows = self.sessions = 0
        del self.waits[:]

    def push(self, session: CloudSide) -> None:
        """Work of ``session`` waits for a pass."""
        self._queue_of(session).append(session)
        if not self.running:
            self._start()
        elif self._steady is not None:
            self.interrupt()

    def _queue_of(self, session: CloudSide) -> deque[CloudSide]:
        if not session.urgent:
            return self._later
        return self._long if session.rows_left > BITE else self._short

    def receive(self, messages: int) -> None:
        """So many messages of an edge are taken in, the last of them now."""
        if self.running:
            self._late += messages
            return
        now, free = self.env.now, self._loop_free
        count = messages if messages < _AT_ONCE else _AT_ONCE
        self._loop_free = (free if free > now else now) + count * self._message_seconds

    def send(self) -> float:
        """When a message that is ready now is on its way."""
        now, free = self.env.now, self._loop_free
        if self.running:
            self._late += 1
        self._loop_free = free = (free if free > now else now) + self._message_seconds
        return free + self.turnaround

    def hurry(self, session: CloudSide) -> None:
        """Somebody waits for work that nobody waited for."""
        session.urgent = True
        if session in self._later:
            self._later.remove(session)
            self._queue_of(session).append(session)

    def interrupt(self) -> None:
        """End a run of passes with the one under way."""
        steady = self._steady
        if steady is None:
            return
        passes = steady.passes_by(self.env.now)
        if passes < steady.passes:
            steady.passes, steady.number = passes, next(self._steadies)
            self.call_at(steady.ends_at(passes), self._end_steady, steady.number)

    def _start(self) -> None:
        """Begin the next pass, if anything waits."""
        if not (self._short or self._long or self._later):
            self._passed_over = 0
            return
        batch = self._take()
        now = self.env.now
        waiting = max(0.0, self._loop_free - now)  # for messages that are not handled yet
        seconds = past_growth = 0.0
        rows = whole_rows = 0
        alike = not (self._short or self._long or self._later)
        for session in batch:
            count_rows = session.rows_now
            rows += count_rows
            if session.whole:
                whole_rows += count_rows
                each, decision, past = self._whole
            else:
                each, decision, past = self._deep
            seconds += each + past * session.computed
            if count_rows == session.rows_left:
                seconds += decision * session.decisions
            doing = session.doing
            if doing is _BURST:
                alike = alike and session.steady
                past_growth += past
            else:
                alike = False
                if doing is _ANSWER and session.rows_left == session.rows:
                    self.waits.append(now - session.queued_at)
        deep_rows = self._deep_rows
        seconds += self._whole_rows[whole_rows] + deep_rows[rows] - deep_rows[whole_rows]
        self.running = True
        if alike:
            passes = min([session.burst_left for session in batch])
            if passes > 1:
                sent = len(batch) * self._message_seconds  # by the pass before each
                steady = _Steady(batch, now, waiting - sent, seconds + sent, past_growth, passes)
                self.ends_at = 0.0
                self._begin_steady(steady)
                return
        seconds += waiting
        self.ends_at = end = now + seconds
        self.call_at(end, self._end, (batch, seconds, rows))

    def _take(self) -> list[CloudSide]:
        """The work of the next pass, each with the rows of it that run (``rows_now``)."""
        room, short = self._most, self._short
        batch: list[CloudSide] = []
        later = self._later
        if not (short or self._long):
            self._passed_over = 0
            _fill(later, room, batch)
            return batch
        if later:
            self._passed_over += 1
            if self._passed_over > PATIENCE:
                self._passed_over = 0
                session = later.popleft()
                rows = session.rows_left
                session.rows_now = rows = rows if rows < self._half else self._half
                batch.append(session)
                room -= rows
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

    def _end(self, under_way: tuple[list[CloudSide], float, int]) -> None:
        batch, seconds, rows = under_way
        if self._late:
            late = self._late * self._message_seconds
            self._late = 0
            self.ends_at = end = self.env.now + late
            self.call_at(end, self._end, (batch, seconds + late, rows))
            return
        self.passes += 1
        self.rows += rows
        self.sessions += len(batch)
        counted = self.env.now - self._counted_from
        self.busy_seconds += seconds if seconds < counted else counted
        self._hand_over(batch)

    def _hand_over(self, batch: list[CloudSide]) -> None:
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
            self._queue_of(session).appendleft(session)
        self.running = False
        self._late = 0  # what was sent meanwhile makes the next pass longer
        self._start()

    def _begin_steady(self, steady: _Steady) -> None:
        steady.number = next(self._steadies)
        self._steady = steady
        self.call_at(steady.ends_at(steady.passes), self._end_steady, steady.number)

    def _end_steady(self, number: int) -> None:
        steady = self._steady
        if steady is None or number != steady.number:
            return
        if self._late:
            steady.late += self._late * self._message_seconds
            self._late = 0
            end = steady.ends_at(steady.passes)
            self.call_at(end, self._end_steady, steady.number)
            return
        self._steady = None
        passes, batch = steady.passes, steady.batch
        self.passes += passes
        self.rows += passes * len(batch)
        self.sessions += passes * len(batch)
        self.busy_seconds += steady.ends_at(passes) - max(steady.since, self._counted_from)
        queued_at = self.env.now - steady.seconds - (passes - 1) * steady.growth - steady.late
        for session in batch:
            session.go_through(passes - 1, queued_at)
        self._hand_over(batch)


class _Steady:
    """A run of passes over the same bursts, from ``since`` on; each takes ``growth`` longer than
    the one before, as the text behind the rows grows.  The first takes ``first`` longer beside, the
    last ``late``."""

    __slots__ = ("batch", "first", "growth", "late", "number", "passes", "seconds", "since")

    def __init__(
        self,
        batch: list[CloudSide],
        since: float,
        first: float,
        seconds: float,
        growth: float,
        passes: int,
    ) -> None:
        self.batch, self.since, self.first = batch, since, first
        self.seconds, self.growth, self.passes = seconds, growth, passes
        self.late = 0.0
        self.number = -1

    def ends_at(self, passes: int) -> float:
        """When so many of the passes are over."""
        grown = self.growth * (passes * (passes - 1) / 2)
        return self.since + self.first + passes * self.seconds + grown + self.late

    def passes_by(self, now: float) -> int:
        """Passes that are over or under way at ``now``."""
        each, half = self.seconds, self.growth / 2
        elapsed = max(0.0, now - self.since - self.first)
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


def _coefficients(model: PassModel) -> tuple[float, float, float]:
    return model.session_seconds, model.decision_seconds, model.past_seconds
