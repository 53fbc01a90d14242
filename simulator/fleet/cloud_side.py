"""What a session's engine does in its replica, as :mod:`cloud.session_engine` does it.

Questions that wait together are decided in one piece of work, and behind a correction nothing is
answered until the edge has heard of it.  While nobody asks, the cloud runs context that is there
ahead of its question, in pieces, and decodes ahead as far as the edge wishes.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from cloud.fair_queue import CATCH_UP_FROM, CATCH_UP_ROWS
from simulator.fleet.question import Question

if TYPE_CHECKING:
    from simulator.fleet.replica import Replica


class Doing(IntEnum):
    """What a session's work in the batcher is for."""

    NOTHING = 0
    ANSWER = 1
    BURST = 2
    AHEAD = 3
    CATCH_UP = 4


# an enumeration's members are slow to look up
_NOTHING, _ANSWER, _BURST, _AHEAD, _CATCH_UP = Doing


class Listener(Protocol):
    """The edge of a session; times are those at which the cloud sends."""

    def reply(
        self, session: CloudSide, position: int, agreed: bool, at: float, took: float
    ) -> None:
        """The answer to a question, which the cloud took ``took`` seconds for."""
        ...

    def burst_token(self, session: CloudSide, position: int, at: float, took: float) -> None:
        """A token of a burst; the last, where the edge is ``steady``."""
        ...

    def burst_tokens(self, session: CloudSide, count: int) -> None:
        """So many tokens of a burst were sent, and more follow."""
        ...

    def said_ahead(self, session: CloudSide, position: int, at: float, took: float) -> None:
        """A token that nobody asked for yet."""
        ...


class CloudSide:
    """A session in its replica.  Positions are of the text, prompt included.

    Attributes:
        whole: its context are token ids, so passes run all layers.
        end: the text's end, beyond which there is nothing to decide.
        computed: positions that the model has run.
        said_to: everything before it is decided.
        confirmed: how far the edge's own text is known here.
        steady: the edge needs to hear of a burst's last token only.
        caught_up: the row before ``computed`` is the last that ran, and what it decides is known
            without running it again.
        inbox: questions on their way, as they will arrive, where that is known beforehand.
        rows_left: of its present work; ``rows_now`` of them in the present pass.
    """

    __slots__ = (
        "burst_left", "caught_up", "closed", "computed", "confirmed", "decisions", "doing", "edge",
        "end", "epoch", "inbox", "line", "lookahead", "pending", "queued_at", "replica", "rows",
        "rows_left", "rows_now", "said_to", "steady", "taken", "urgent", "void", "whole",
    )  # fmt: skip

    def __init__(
        self, replica: Replica, edge: Listener, *, whole: bool, end: int, steady: bool = False
    ) -> None:
        self.replica, self.edge, self.whole, self.end = replica, edge, whole, end
        self.steady = steady
        self.closed = self.urgent = self.void = self.caught_up = False
        self.epoch = self.computed = self.said_to = self.confirmed = self.line = 0
        self.burst_left = self.lookahead = self.decisions = 0
        self.rows = self.rows_left = self.rows_now = 0
        self.doing = _NOTHING
        self.queued_at = 0.0
        self.inbox: deque[Question] = deque()
        self.pending: list[Question] = []
        self.taken: list[Question] = []

    def arrive(self, question: Question) -> None:
        """The first question of the inbox is there; another has been overtaken by a correction."""
        inbox = self.inbox
        if not inbox or inbox[0] is not question:
            return
        del inbox[0]
        if inbox:
            self._take_in(question, inbox)
        else:
            self.hear(question)

    def _take_in(self, question: Question, inbox: deque[Question]) -> None:
        """Hear ``question``, and at once what comes until the pass under way ends, where it can do
        no more than wait; the next is an event."""
        replica = self.replica
        if self.doing is not _NOTHING and self.urgent and replica.running:
            self.hear(question)
            until = replica.ends_at
            while inbox and inbox[0].arrival < until:
                question = inbox.popleft()
                if question.epoch < self.epoch:
                    continue
                replica.receive(question.messages)
                self._note(question)
            if inbox:
                self._await(inbox[0])
            return
        self._await(inbox[0])
        self.hear(question)

    def _await(self, question: Question) -> None:
        self.replica.call_at(question.arrival, self.arrive, question)

    def hear(self, question: Question) -> None:
        """A question arrives now; one from before a correction is about a text that is no more."""
        if self.closed or question.epoch < self.epoch:
            return
        replica = self.replica
        question.arrival = now = replica.env.now
        replica.receive(question.messages)
        self._note(question)
        if self.doing is _NOTHING:
            if question.guessed:
                self._begin(now)
            else:  # its context, a prompt, came in a message before it
                self._idle(now)
        elif not self.urgent:
            replica.hurry(self)

    def _note(self, question: Question) -> None:
        if question.epoch > self.epoch:  # the edge has gone back by what was said ahead
            self.epoch = question.epoch
            self.pending.clear()
        if question.position > self.confirmed:  # noqa: PLR1730  (max takes three times as long)
            self.confirmed = question.position
        self.lookahead = question.lookahead
        if question.line != self.line:
            self._begin_line(question)
        self.pending.append(question)

    def confirm(self, position: int) -> None:
        """The edge's text is known up to a position: context to run, or decoding ahead may go
        on."""
        if self.closed:
            return
        self.replica.receive(1)
        if position > self.confirmed:
            self.confirmed = position
            if self.doing is _NOTHING:
                self._idle(self.replica.env.now)

    def close(self) -> None:
        """The edge has what it wanted, or goes on without; what runs is for nothing."""
        self.closed = True
        self.inbox.clear()
        if self.doing is _BURST:
            self.replica.interrupt()

    def _begin_line(self, question: Question) -> None:
        self.line = question.line
        if question.cut < self.said_to:
            self.said_to = question.cut
            self.void = self.doing is _AHEAD or self.doing is _CATCH_UP
        self.computed = min(self.computed, question.cut)

    def _idle(self, now: float) -> None:
        """Run what is there, answer what is asked, or decide what will be."""
        behind = self.confirmed - self.computed
        if behind >= CATCH_UP_FROM:
            self.doing = _CATCH_UP
            rows = behind if behind < CATCH_UP_ROWS else CATCH_UP_ROWS
            self._queue(rows, 0, now, bool(self.pending))
        elif self.pending:
            self._begin(now)
        else:
            self._look_ahead(now)

    def _begin(self, now: float) -> None:
        """Answer what is decided already, and decide the rest together."""
        pending = self.pending
        while pending and pending[0].position < self.said_to:
            self._answer(pending.pop(0), now)
        if not pending:
            if self.doing is _NOTHING:
                self._look_ahead(now)
            return
        self.taken, self.pending = pending, []
        self.doing = _ANSWER
        rows = pending[-1].position - self.computed
        if rows < 0 or not (rows or self.caught_up):
            rows = 1  # the row before runs again
        self._queue(rows, len(pending), now, True)

    def _queue(self, rows: int, decisions: int, now: float, urgent: bool) -> None:
        self.caught_up = False
        self.rows = self.rows_left = rows
        self.decisions, self.urgent, self.queued_at = decisions, urgent, now
        self.replica.push(self)

    def worked(self, now: float) -> None:
        """The pass with the last of its rows has ended."""
        doing, self.doing = self.doing, _NOTHING
        if self.closed:
            return
        if doing is _BURST:
            self._go_on_with_burst(now)
        elif doing is _ANSWER:
            self._reply(now)
        elif self.void:
            pass
        elif doing is _CATCH_UP:
            self.computed += self.rows
            self.caught_up = True
        else:
            self._said_ahead(now)
        self.void = False
        if self.doing is _NOTHING and not self.closed:
            if self.pending:
                self._begin(now)
            elif self.lookahead or doing is _CATCH_UP:
                self._idle(now)

    def _reply(self, now: float) -> None:
        """Answer one by one; nothing behind a correction is answered."""
        taken = self.taken
        self.computed = taken[-1].position
        for question in taken:
            if question.position >= self.said_to:
                self.said_to = question.position + 1
            self._answer(question, now)
            if not question.agreed:
                return

    def _answer(self, question: Question, now: float) -> None:
        if not question.agreed:
            self._correct(question, now)
        at = self.replica.send()
        self.edge.reply(self, question.position, question.agreed, at, at - question.arrival)

    def _correct(self, question: Question, now: float) -> None:
        """What arrives until the edge knows of it is from before it."""
        position = question.position
        self.pending.clear()
        self.computed = min(self.computed, position)
        if question.guessed:
            self.epoch = max(self.epoch, question.epoch + 1)
            inbox = self.inbox
            if inbox and inbox[-1].epoch < self.epoch:
                inbox.clear()
            if not self.lookahead:
                self.said_to = position + 1
        if question.burst and position + 1 < self.end:
            self.burst_left = min(question.burst, self.end - position - 1)
            self.doing = _BURST
            self._queue(1, 1, now, True)

    def go_through(self, passes: int, queued_at: float) -> None:
        """So many passes of a burst have ended, each with a token; another, that was queued at
        ``queued_at``, ends now."""
        self.queued_at = queued_at
        self.computed += passes
        self.burst_left -= passes
        self.edge.burst_tokens(self, passes)

    def _go_on_with_burst(self, now: float) -> None:
        took = now - self.queued_at
        self.computed += 1
        self.said_to = self.computed + 1
        self.burst_left -= 1
        if self.burst_left:
            self.doing = _BURST
            self._queue(1, 1, now, True)
        self.edge.burst_token(self, self.computed, self.replica.send(), took)

    def _look_ahead(self, now: float) -> None:
        """Decide what follows what was said, as far as the edge wishes."""
        limit = min(self.confirmed + self.lookahead, self.end - 1)
        if self.lookahead and self.said_to <= limit:
            self.doing = _AHEAD
            self._queue(1, 1, now, False)

    def _said_ahead(self, now: float) -> None:
        position = self.said_to
        self.computed, self.said_to = position, position + 1
        at = self.replica.send()
        self.edge.said_ahead(self, position, at, now - self.queued_at)
