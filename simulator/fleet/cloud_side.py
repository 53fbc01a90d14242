"""What a session's engine does in its replica, as :mod:`cloud.session_engine` does it.

Questions that wait together are decided in one piece of work, and behind a correction nothing is
answered until the edge has heard of it.  While nobody asks, the cloud decodes ahead as far as the
edge wishes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from simpy.events import Event

if TYPE_CHECKING:
    from simulator.fleet.replica import Replica


class Doing(IntEnum):
    """What a session's work in the batcher is for."""

    NOTHING = 0
    ANSWER = 1
    BURST = 2
    AHEAD = 3


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


class Question:
    """What the cloud is asked in one message; positions are of the text, prompt included.

    Attributes:
        epoch: corrections that the edge had heard of when it asked.
        agreed: whether its guess is the full model's token; false without a guess.
        burst: tokens that follow a correction.
        lookahead: positions beyond the edge's text that may be decided ahead.
        line: counts the times that the edge went on from another token than the cloud's; from
            ``cut`` on, what the cloud said ahead is then about another text.
        messages: that it comes in: itself, and the context since the one before.
    """

    __slots__ = (
        "agreed", "burst", "cut", "epoch", "guessed", "line", "lookahead", "messages", "position",
    )  # fmt: skip

    def __init__(
        self,
        position: int,
        epoch: int,
        agreed: bool,
        guessed: bool = True,
        burst: int = 0,
        lookahead: int = 0,
        line: int = 0,
        cut: int = 0,
        messages: int = 2,
    ) -> None:
        self.position, self.epoch = position, epoch
        self.agreed, self.guessed = agreed, guessed
        self.burst, self.lookahead = burst, lookahead
        self.line, self.cut = line, cut
        self.messages = messages


class CloudSide:
    """A session in its replica.  Positions are of the text, prompt included.

    Attributes:
        whole: its context are token ids, so passes run all layers.
        end: the text's end, beyond which there is nothing to decide.
        computed: positions that the model has run.
        said_to: everything before it is decided.
        confirmed: how far the edge's own text is known here.
        steady: the edge needs to hear of a burst's last token only.
        rows_left: of its present work; ``rows_now`` of them in the present pass.
    """

    __slots__ = (
        "burst_left", "closed", "computed", "confirmed", "decisions", "doing", "edge", "end",
        "epoch", "line", "lookahead", "pending", "queued_at", "replica", "rows", "rows_left",
        "rows_now", "said_to", "steady", "taken", "urgent", "void", "whole",
    )  # fmt: skip

    def __init__(
        self, replica: Replica, edge: Listener, *, whole: bool, end: int, steady: bool = False
    ) -> None:
        self.replica, self.edge, self.whole, self.end = replica, edge, whole, end
        self.steady = steady
        self.closed = self.urgent = self.void = False
        self.epoch = self.computed = self.said_to = self.confirmed = self.line = 0
        self.burst_left = self.lookahead = self.decisions = 0
        self.rows = self.rows_left = self.rows_now = 0
        self.doing = Doing.NOTHING
        self.queued_at = 0.0
        self.pending: list[tuple[Question, float]] = []
        self.taken: list[tuple[Question, float]] = []

    def heard(self, event: Event) -> None:
        """A question arrives as an event."""
        question = event.value
        assert isinstance(question, Question)
        self.hear(question)

    def hear(self, question: Question) -> None:
        """A question arrives now; one from before a correction is about a text that is no more."""
        if self.closed or question.epoch < self.epoch:
            return
        self.replica.receive(question.messages)
        if question.epoch > self.epoch:  # the edge has gone back by what was said ahead
            self.epoch = question.epoch
            self.pending.clear()
        position = question.position
        self.confirmed = position if position > self.confirmed else self.confirmed
        self.lookahead = question.lookahead
        if question.line != self.line:
            self._begin_line(question)
        now = self.replica.env.now
        self.pending.append((question, now))
        if self.doing is Doing.NOTHING:
            self._begin(now)
        elif self.doing is Doing.AHEAD and not self.urgent:
            self.replica.hurry(self)

    def confirm(self, event: Event) -> None:
        """The edge's text is known up to a position; decoding ahead may go on."""
        position = event.value
        assert isinstance(position, int)
        if self.closed:
            return
        self.replica.receive(1)
        if position > self.confirmed:
            self.confirmed = position
            if self.doing is Doing.NOTHING:
                self._look_ahead(self.replica.env.now)

    def close(self) -> None:
        """The edge has what it wanted, or goes on without; what runs is for nothing."""
        self.closed = True
        if self.doing is Doing.BURST:
            self.replica.interrupt()

    def _begin_line(self, question: Question) -> None:
        self.line = question.line
        if question.cut < self.said_to:
            self.said_to = question.cut
            self.void = self.doing is Doing.AHEAD
        self.computed = min(self.computed, question.cut)

    def _begin(self, now: float) -> None:
        """Answer what is decided already, and decide the rest together."""
        while self.pending and self.pending[0][0].position < self.said_to:
            question, asked = self.pending.pop(0)
            self._answer(question, asked, now)
        if not self.pending:
            if self.doing is Doing.NOTHING:
                self._look_ahead(now)
            return
        self.taken, self.pending = self.pending, []
        last = self.taken[-1][0].position
        self.doing = Doing.ANSWER
        rows = last - self.computed
        self._queue(rows if rows > 0 else 1, len(self.taken), now, urgent=True)

    def _queue(self, rows: int, decisions: int, now: float, *, urgent: bool) -> None:
        self.rows = self.rows_left = rows
        self.decisions, self.urgent, self.queued_at = decisions, urgent, now
        self.replica.push(self)

    def worked(self, now: float) -> None:
        """The pass with the last of its rows has ended."""
        doing, self.doing = self.doing, Doing.NOTHING
        if self.closed:
            return
        if doing is Doing.BURST:
            self._go_on_with_burst(now)
        elif doing is Doing.ANSWER:
            self._reply(now)
        elif not self.void:
            self._said_ahead(now)
        self.void = False
        if self.doing is Doing.NOTHING and not self.closed:
            if self.pending:
                self._begin(now)
            elif self.lookahead:
                self._look_ahead(now)

    def _reply(self, now: float) -> None:
        """Answer one by one; nothing behind a correction is answered."""
        self.computed = self.taken[-1][0].position
        for question, asked in self.taken:
            if question.position >= self.said_to:
                self.said_to = question.position + 1
            self._answer(question, asked, now)
            if not question.agreed:
                return

    def _answer(self, question: Question, asked: float, now: float) -> None:
        position = question.position
        if not question.agreed:  # what arrives until the edge knows is from before it
            self.pending.clear()
            self.computed = min(self.computed, position)
            if question.guessed:
                self.epoch = max(self.epoch, question.epoch + 1)
                if not self.lookahead:
                    self.said_to = position + 1
            if question.burst and position + 1 < self.end:
                self.burst_left = min(question.burst, self.end - position - 1)
                self.doing = Doing.BURST
                self._queue(1, 1, now, urgent=True)
        reply_at = self.replica.send()
        self.edge.reply(self, position, question.agreed, reply_at, reply_at - asked)

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
            self.doing = Doing.BURST
            self._queue(1, 1, now, urgent=True)
        self.edge.burst_token(self, self.computed, self.replica.send(), took)

    def _look_ahead(self, now: float) -> None:
        """Decide what follows what was said, as far as the edge wishes."""
        limit = min(self.confirmed + self.lookahead, self.end - 1)
        if self.lookahead and self.said_to <= limit:
            self.doing = Doing.AHEAD
            self._queue(1, 1, now, urgent=False)

    def _said_ahead(self, now: float) -> None:
        position = self.said_to
        self.computed, self.said_to = position, position + 1
        at = self.replica.send()
        self.edge.said_ahead(self, position, at, now - self.queued_at)
