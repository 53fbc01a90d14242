"""An edge in virtual time: :mod:`edge.generation`'s token loop, a stretch of tokens at a step.

What the edge does between two words of the cloud depends on nobody else, so it is worked out at
once, up to where it must wait: each question that it asks on the way becomes an event at the cloud.
A correction takes back what was worked out beyond it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edge.drafting import DraftWorth
from edge.link_monitor import LinkMonitor
from edge.plan import Plan
from simulator.fleet import alone, steered
from simulator.fleet.cloud_side import CloudSide
from simulator.fleet.drafting import draft, take_back
from simulator.fleet.question import Question

if TYPE_CHECKING:
    from simulator.fleet.group import Group
    from simulator.fleet.lines import Lines
    from simulator.fleet.replica import Replica

_MONITORED = 9  # samples that the link monitor's medians are of


class SimulatedEdge:
    """One edge of ``group``; ``line`` carries its messages to and from ``replica``."""

    __slots__ = (
        "alone", "alone_tokens", "answer", "asked_at", "bytes_down", "bytes_up", "chosen_at",
        "confirmed", "context_size", "corrections", "cut", "discarded", "epoch", "first_answer",
        "first_at", "frontier", "group", "line", "lines", "monitor", "opened", "outstanding",
        "plan", "position", "prefilled_at", "prompt_at", "prompt_bytes", "questions", "replica",
        "rtt", "said", "sent", "session", "streamed", "streaming", "tail", "time", "track",
        "upload", "waiting_since", "watched", "work", "worth", "worth_least", "wrong",
    )  # fmt: skip

    def __init__(self, group: Group, lines: Lines, replica: Replica) -> None:
        self.group, self.lines, self.replica = group, lines, replica
        self.time = 0.0
        self.monitor = LinkMonitor(self._clock) if group.chooser is not None else None
        self.plan: Plan | None = group.policy.plan
        self.session: CloudSide | None = None
        self.worth: DraftWorth | None = None
        self.watched = False
        self.rtt: float | None = None
        self._rest()

    def _clock(self) -> float:
        return self.time

    def _rest(self) -> None:
        """Between two answers."""
        self.outstanding: deque[Question] = deque()
        self.said: dict[int, float] = {}
        self.position = self.sent = self.epoch = self.line = self.cut = self.wrong = 0
        self.questions = self.corrections = self.discarded = self.alone_tokens = 0
        self.bytes_up = self.bytes_down = self.work = self.frontier = 0.0
        self.prefilled_at = self.prompt_at = self.prompt_bytes = 0.0
        self.tail: tuple[float, int] | None = None
        self.streaming = self.alone = False
        self.first_at = self.waiting_since = -1.0
        self.first_answer = True
        self.streamed = self.confirmed = 0

    # ---- an answer begins ----------------------------------------------------------------------

    def ask(self, _value: object = None) -> None:
        """The user asks."""
        group = self.group
        now = group.env.now
        self._rest()
        self.asked_at = self.time = self.frontier = now
        self.answer = group.draw()
        if group.policy.standalone:
            self._answer_alone(now)
            return
        if self.monitor is not None:
            assert group.chooser is not None
            prompt = group.recording.answers[self.answer].prompt_tokens
            self.plan = group.chooser.plan(
                self.monitor.conditions(), self.plan, prompt, group.max_tokens
            )
            self.chosen_at = now
        assert self.plan is not None
        self.track = group.track(self.plan.threshold, self.answer)
        if not self.plan.plain:
            self._take_in_prompt(now)
        self._open(now)

    def _answer_alone(self, now: float) -> None:
        track = self.track = self.group.track(None, self.answer)
        begun = now + track.prefill_seconds
        self.first_at = begun + track.done[1]
        self.work = track.prefill_seconds + track.done[-1]
        self.position = track.length
        self.wrong = track.length - track.right
        self.alone_tokens = track.length
        self.finish(begun + track.done[-1])

    def _take_in_prompt(self, now: float) -> None:
        seconds = self.track.prefill_seconds
        self.work += seconds
        self.frontier = self.prefilled_at = now + seconds
        if self.monitor is not None:
            self.time = self.frontier
            self.monitor.edge_prefill(self.track.prompt, seconds + self.track.done[1])

    def _open(self, now: float) -> None:
        """Open a session; the answer takes a round trip."""
        assert self.plan is not None
        track, group = self.track, self.group
        session = CloudSide(
            self.replica,
            self,
            whole=self.plan.codec is group.tokens,
            end=track.prompt + track.length,
            steady=self.lines.plain,
        )
        self.session = session
        self.context_size = group.context_bytes(self.plan.codec)
        rtt = self.rtt
        if self.monitor is not None:
            self.rtt = rtt = self.monitor.rtt_seconds
        self.worth = DraftWorth(self.plan.least_chance, shared_cores=False, earlier_round_trip=rtt)
        self.worth_least = -1.0
        self.bytes_up += group.sizes.open
        self.bytes_down += group.sizes.opened
        if self.monitor is not None:
            if not self.monitor.alive and not self.plan.plain:
                alone.draft_alone(self, session, self.frontier)
            else:
                alone.wait(self, self.frontier)
        self.lines.open(self, session, now)

    def session_opened(self, session: CloudSide, at: float, since: float) -> None:
        """The cloud has taken the session; what is asked travels from now on."""
        if session is not self.session:
            return
        self.opened = at
        if self.monitor is not None:
            self.time = at
            self.monitor.round_trip(at - since)
        if self.alone:
            alone.end_alone(self, at)
        self.waiting_since = -1.0
        assert self.plan is not None
        if self.position >= self.track.length:
            self.finish(self.frontier)
        elif self.plan.plain:
            self.let_the_cloud_speak(max(at, self.frontier))
        else:
            self._send_prompt(at)
            draft(self, self.frontier)

    def _send_prompt(self, at: float) -> None:
        """What was taken in before the first token goes up before the first question."""
        track, group = self.track, self.group
        if self.sent >= track.prompt:
            return
        assert self.session is not None
        self.prompt_at = max(at, self.prefilled_at)
        size = (track.prompt - self.sent) * self.context_size + group.sizes.context_message
        self.sent = track.prompt
        self.prompt_bytes = size
        self.bytes_up += size
        self.lines.send_confirmation(self, self.session, track.prompt, self.prompt_at, size)

    # ---- the cloud's words ---------------------------------------------------------------------

    def reply(
        self, session: CloudSide, position: int, agreed: bool, at: float, took: float
    ) -> None:
        """The cloud sends the answer to a question."""
        if session is self.session:
            self.bytes_down += self.group.sizes.decision
            self.lines.send_reply(self, session, position, agreed, at, took)

    def heard(
        self, session: CloudSide, position: int, agreed: bool, at: float, took: float
    ) -> None:
        """The answer to a question is there at ``at``."""
        if session is not self.session:
            return
        if self.streaming and position == self.streamed:
            self._burst_begins(at, took)
            return
        outstanding = self.outstanding
        if not outstanding or outstanding[0].position != position:
            return  # what was said ahead has answered it
        asked = outstanding.popleft()
        waited = at - asked.at
        assert self.worth is not None
        self.worth.answered(waited, took)
        self.worth_least = -1.0
        if self.monitor is not None:
            steered.observe(self, asked, at, waited, took)
        self.first_answer = False
        self._settle(asked, agreed, at)

    def _settle(self, asked: Question, agreed: bool, at: float) -> None:
        self.waiting_since = -1.0
        if asked.index == 0:
            self.first_at = at
        if self.monitor is not None:
            self.monitor.question(self.track.unsure[asked.index], agreed)
        if agreed:
            if self.position >= self.track.length and not self.outstanding:
                self.finish(at if at > self.frontier else self.frontier)
            elif not self.streaming:
                draft(self, at)
        else:
            self._correct(asked, at)

    def _correct(self, asked: Question, at: float) -> None:
        """Go back to the cloud's token; what was drafted beyond is for nothing."""
        index, track, group = asked.index, self.track, self.group
        restart, begun = take_back(self, at)
        self.corrections += 1
        self.epoch += 1
        self.streaming = False
        self.outstanding.clear()
        self.tail = None
        self.discarded += begun - index - 1
        self.position = index + 1
        self.wrong = asked.wrong
        self.cut = max(asked.cut, track.prompt + index + 1)
        self.frontier = restart
        if self.position >= track.length:
            self.finish(at)
            return
        if asked.burst:
            self.streaming, self.streamed = True, track.prompt + index + 1
            self.waiting_since = at
            return
        self.sent = track.prompt + index
        self.bytes_up += group.sizes.truncate
        draft(self, restart)

    # ---- the cloud goes on by itself -----------------------------------------------------------

    def let_the_cloud_speak(self, at: float) -> None:
        """Leave the rest of the answer to the cloud."""
        assert self.plan is not None
        assert self.session is not None
        track, group = self.track, self.group
        position = track.prompt + self.position
        rest = track.length - self.position - 1
        size = (position - self.sent) * self.context_size + group.sizes.context_message
        self.sent = position
        self.questions += 1
        self.bytes_up += size + group.sizes.question
        asked = Question(
            position,
            self.epoch,
            False,
            guessed=False,
            burst=rest,
            index=self.position,
            begin=self.position,
            start=at,
            frontier=at,
            at=max(at, self.opened),
            size=size,
            wrong=self.wrong,
        )
        self.streaming, self.streamed = True, position
        self.waiting_since = at
        self.upload = asked
        self.lines.send_question(self, self.session, asked, size + group.sizes.question)
        if self.monitor is not None:
            alone.wait(self, at)

    def _burst_begins(self, at: float, took: float) -> None:
        """The first of the cloud's own tokens is there."""
        asked = self.upload
        if asked.index == 0:
            self.first_at = at
        if self.monitor is not None:
            steered.observe(self, asked, at, at - asked.at, took)
        self.first_answer = False
        self.position = max(self.position, asked.index + 1)
        self.waiting_since = at
        if asked.index + 1 >= self.track.length:
            self.finish(at)

    def burst_tokens(self, session: CloudSide, count: int) -> None:
        """The cloud sends so many tokens of a burst, of which only the bytes matter here."""
        if session is self.session:
            self.bytes_down += count * self.group.sizes.decision
            self.position += count

    def burst_token(self, session: CloudSide, position: int, at: float, took: float) -> None:
        """The cloud sends a token of a burst; of those in the middle only the bytes matter, where
        the way has a closed form."""
        if session is not self.session:
            return
        self.bytes_down += self.group.sizes.decision
        self.position = position + 1 - self.track.prompt
        last = position + 1 >= session.end
        if last or not self.lines.plain:
            self.lines.send_burst(self, session, position, at, took)
        else:
            self.waiting_since = at

    def burst_heard(self, session: CloudSide, position: int, at: float, took: float) -> None:
        """A token of a burst is there."""
        if session is not self.session:
            return
        self.waiting_since = at
        if position + 1 < session.end:
            return
        if self.monitor is not None:
            self.time = at
            for _ in range(min(_MONITORED, session.end - self.streamed)):
                self.monitor.cloud_token(took)
        self.position = self.track.length
        self.finish(at)

    def said_ahead(self, session: CloudSide, position: int, at: float, took: float) -> None:
        """The cloud sends a token that nobody asked for yet."""
        if session is self.session:
            self.bytes_down += self.group.sizes.ahead
            self.lines.send_ahead(self, session, position, at, took)

    def heard_ahead(
        self, session: CloudSide, line: int, position: int, at: float, took: float
    ) -> None:
        """A token that nobody asked for yet is there; it may answer the oldest question."""
        if session is not self.session or line != self.line:
            return
        if self.monitor is not None:
            self.time = at
            self.monitor.cloud_token(took)
        index = position - self.track.prompt
        if self.outstanding and self.outstanding[0].index == index:
            self._settle(self.outstanding.popleft(), self.track.agreed[index], at)
        elif index >= self.position:
            self.said[index] = at

    # ---- the end -------------------------------------------------------------------------------

    def finish(self, at: float) -> None:
        """The last token is certain at ``at``."""
        if self.session is not None:
            self.session.close()
            self.session = None
            self.bytes_up += self.group.sizes.close
            self.bytes_down += self.group.sizes.closed
        self.waiting_since = -1.0
        self.group.finished(self, at)
