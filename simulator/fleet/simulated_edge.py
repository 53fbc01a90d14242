"""An edge in virtual time: :mod:`edge.generation`'s token loop, a stretch of tokens at a step.

What the edge does between two words of the cloud depends on nobody else, so it is worked out at
once, up to where it must wait: each question that it asks on the way becomes an event at the cloud.
A correction takes back what was worked out beyond it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

from simpy.events import Event

from edge.drafting import DraftWorth
from edge.link_monitor import MIN_UPLOAD_BYTES, LinkMonitor
from edge.plan import Plan
from edge.steering import CHOOSE_SECONDS, patience_seconds
from simulator.fleet.asked import Asked
from simulator.fleet.cloud_side import CloudSide, Doing, Question
from simulator.fleet.events import call_at
from simulator.fleet.tracks import Track

if TYPE_CHECKING:
    from simulator.fleet.group import Group
    from simulator.fleet.lines import Lines
    from simulator.fleet.replica import Replica

_MONITORED = 9  # samples that the link monitor's medians are of
_CHUNK_ROWS = 16  # token ids of so many positions travel without a question


class SimulatedEdge:
    """One edge of ``group``; ``line`` carries its messages to and from ``replica``."""

    __slots__ = (
        "alone", "alone_tokens", "answer", "asked_at", "bytes_down", "bytes_up", "chosen_at",
        "confirmed", "corrections", "cut", "discarded", "epoch", "first_answer", "first_at",
        "frontier", "group", "line", "lines", "monitor", "opened", "outstanding", "plan",
        "position", "questions", "replica", "rtt", "said", "sent", "session", "streamed",
        "streaming", "tail", "time", "track", "upload", "waiting_since", "watched", "work",
        "worth", "worth_least", "wrong",
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
        self.outstanding: deque[Asked] = deque()
        self.said: dict[int, float] = {}
        self.position = self.sent = self.epoch = self.line = self.cut = self.wrong = 0
        self.questions = self.corrections = self.discarded = self.alone_tokens = 0
        self.bytes_up = self.bytes_down = self.work = self.frontier = 0.0
        self.tail: tuple[float, int] | None = None
        self.streaming = self.alone = False
        self.first_at = self.waiting_since = -1.0
        self.first_answer = True
        self.streamed = self.confirmed = 0

    # ---- an answer begins ----------------------------------------------------------------------

    def ask(self, _event: Event) -> None:
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
        self._finish(begun + track.done[-1])

    def _take_in_prompt(self, now: float) -> None:
        seconds = self.track.prefill_seconds
        self.work += seconds
        self.frontier = now + seconds
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
        rtt = self.rtt
        if self.monitor is not None:
            self.rtt = rtt = self.monitor.conditions().rtt_seconds
        self.worth = DraftWorth(self.plan.least_chance, shared_cores=False, earlier_round_trip=rtt)
        self.worth_least = -1.0
        self.bytes_up += group.sizes.open
        self.bytes_down += group.sizes.opened
        if self.monitor is not None:
            if not self.monitor.alive and not self.plan.plain:
                self._draft_alone(session, self.frontier)
            else:
                self._wait(self.frontier)
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
            self._end_alone(at)
        self.waiting_since = -1.0
        assert self.plan is not None
        if self.position >= self.track.length:
            self._finish(self.frontier)
        elif self.plan.plain:
            self._let_the_cloud_speak(max(at, self.frontier))
        else:
            self._go_on(self.frontier)

    # ---- drafting ------------------------------------------------------------------------------

    def _go_on(self, resume: float) -> None:
        """Draft from the frontier until there is something to wait for."""
        track, plan = self.track, self.plan
        assert plan is not None
        frontier = self.frontier if self.frontier > resume else resume
        steered = self.monitor is not None
        outstanding, length = self.outstanding, track.length
        chance = 1.0  # that all guesses in flight are right
        for earlier in outstanding:
            chance *= earlier.confidence
        while self.position < length:
            if outstanding and (len(outstanding) > plan.window or chance < self._least_chance()):
                break
            if steered and frontier >= self.chosen_at + CHOOSE_SECONDS:
                self.frontier = frontier
                plan = self._steer(frontier)
                track = self.track
                if plan.plain:
                    self._let_the_cloud_speak(frontier)
                    return
            begin = self.position
            asked = begin if plan.verified else track.next_unsure[begin]
            stop = asked + 1 if asked < length else length
            done = track.done
            start, frontier = frontier, frontier + done[stop] - done[begin]
            self.work += frontier - start
            self.position = stop
            if not plan.verified:
                self._accept(track, begin, asked, start)
            if steered or plan.window:
                self._drafted(track, begin, stop, frontier)
            if asked >= length:
                self.tail = (start, begin)
                break
            if self.said and not self._needs_to_ask(asked, frontier):
                continue
            question = self._question(plan, track, asked, begin, start, frontier)
            outstanding.append(question)
            chance *= question.confidence
        self.frontier = frontier
        if not outstanding:
            if self.position >= length:
                self._finish(frontier)
            return
        if steered:
            self._wait(frontier)

    def _accept(self, track: Track, begin: int, asked: int, start: float) -> None:
        """Tokens from ``begin`` up to ``asked`` were accepted."""
        if asked == begin:
            return
        overruled = track.next_overruled[begin]
        if overruled < asked:
            while overruled < asked:
                self.wrong += 1
                self.cut = track.prompt + overruled + 1
                overruled = track.next_overruled[overruled + 1]
            self.line += 1
            self.said.clear()
        if begin == 0:
            self.first_at = start + track.done[1]

    def _least_chance(self) -> float:
        if self.worth_least < 0.0:
            assert self.worth is not None
            self.worth_least = self.worth.least_chance
        return self.worth_least

    def _question(
        self, plan: Plan, track: Track, index: int, begin: int, start: float, frontier: float
    ) -> Asked:
        """Ask for the token at ``index``, drafted at ``frontier``."""
        sizes, session = self.group.sizes, self.session
        assert session is not None
        position = track.prompt + index
        at = frontier if frontier > self.opened else self.opened
        rest = track.length - index - 1
        burst = plan.burst if plan.burst < rest else rest
        lookahead = 0
        if session.whole and plan.may_look_ahead:
            lookahead = self._lookahead(plan, rest)
        contexts = 1 if session.whole or index == 0 else index - begin + 1
        question = Question(
            position,
            self.epoch,
            track.agreed[index],
            True,
            burst,
            lookahead,
            self.line,
            self.cut,
            contexts + 1,
        )
        fresh = position - self.sent
        self.sent = position
        size = fresh * sizes.context[plan.codec] + contexts * sizes.context_message
        asked = Asked(
            index, begin, start, frontier, at, track.confidence[index], question, size, self.wrong
        )
        self.questions += 1
        size += sizes.question
        self.bytes_up += size
        self.lines.send_question(self, session, asked, size)
        return asked

    def _lookahead(self, plan: Plan, rest: int) -> int:
        assert self.worth is not None
        named = plan.lookahead
        if named is None:
            named = self.worth.lookahead(every_token=plan.verified)
        return named if named < rest else rest

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
        if not outstanding or outstanding[0].question.position != position:
            return  # what was said ahead has answered it
        asked = outstanding.popleft()
        waited = at - asked.at
        assert self.worth is not None
        self.worth.answered(waited, took)
        self.worth_least = -1.0
        if self.monitor is not None:
            self._observe(asked, at, waited, took)
        self.first_answer = False
        self._settle(asked, agreed, at)

    def _settle(self, asked: Asked, agreed: bool, at: float) -> None:
        self.waiting_since = -1.0
        if asked.index == 0:
            self.first_at = at
        if self.monitor is not None:
            self.monitor.question(self.track.unsure[asked.index], agreed)
        if agreed:
            if self.position >= self.track.length and not self.outstanding:
                self._finish(at if at > self.frontier else self.frontier)
            elif not self.streaming:
                self._go_on(at)
        else:
            self._correct(asked, at)

    def _correct(self, asked: Asked, at: float) -> None:
        """Go back to the cloud's token; what was drafted beyond is for nothing."""
        restart = self._take_back(at)
        self.corrections += 1
        self.epoch += 1
        self.streaming = False
        self.outstanding.clear()
        self.tail = None
        index, track, group = asked.index, self.track, self.group
        self.discarded += self.position - index - 1
        self.position = index + 1
        self.wrong = asked.wrong
        self.cut = max(asked.question.cut, track.prompt + index + 1)
        self.frontier = restart
        if self.position >= track.length:
            self._finish(at)
            return
        if asked.question.burst:
            self.streaming, self.streamed = True, track.prompt + index + 1
            self.waiting_since = at
            return
        self.sent = track.prompt + index
        self.bytes_up += group.sizes.truncate
        self._go_on(restart)

    def _take_back(self, at: float) -> float:
        """Undo what was worked out beyond ``at``; when the edge begins anew: at the end of the
        token under way."""
        if at >= self.frontier:
            return at
        stretches = [(a.start, a.begin, a.index + 1, a.frontier) for a in self.outstanding]
        if self.tail is not None:
            stretches.append((*self.tail, self.track.length, self.frontier))
        restart, done = at, self.track.done
        for start, begin, stop, frontier in stretches:
            if start >= at:
                self.work -= frontier - start
            elif frontier > at:
                token = bisect_left(done, at - start + done[begin], begin, stop)
                restart = max(at, start + done[token] - done[begin])
                self.work -= frontier - restart
        unsent = [a for a in self.outstanding if a.at > at]
        if unsent:
            self.lines.unsend(unsent[0])
            for question in unsent:
                self.questions -= 1
                self.bytes_up -= question.size + self.group.sizes.question
        return restart

    # ---- the cloud goes on by itself -----------------------------------------------------------

    def _let_the_cloud_speak(self, at: float) -> None:
        """Leave the rest of the answer to the cloud."""
        assert self.plan is not None
        assert self.session is not None
        track, group = self.track, self.group
        position = track.prompt + self.position
        rest = track.length - self.position - 1
        question = Question(position, self.epoch, False, guessed=False, burst=rest)
        size = (position - self.sent) * group.context_bytes(self.plan.codec)
        size += group.sizes.context_message
        self.sent = position
        self.questions += 1
        self.bytes_up += size + group.sizes.question
        asked = Asked(
            self.position,
            self.position,
            at,
            at,
            max(at, self.opened),
            1.0,
            question,
            size,
            self.wrong,
        )
        self.streaming, self.streamed = True, position
        self.waiting_since = at
        self.upload = asked
        self.lines.send_question(self, self.session, asked, size + group.sizes.question)
        if self.monitor is not None:
            self._wait(at)

    def _burst_begins(self, at: float, took: float) -> None:
        """The first of the cloud's own tokens is there."""
        asked = self.upload
        if asked.index == 0:
            self.first_at = at
        if self.monitor is not None:
            self._observe(asked, at, at - asked.at, took)
        self.first_answer = False
        self.position = max(self.position, asked.index + 1)
        self.waiting_since = at
        if asked.index + 1 >= self.track.length:
            self._finish(at)

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
        self._finish(at)

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

    def _needs_to_ask(self, index: int, frontier: float) -> bool:
        """Unless the cloud has said the token at ``index`` already, and it is certain at once."""
        said = self.said.pop(index, None)
        if said is None or said > frontier:
            return True
        track, group = self.track, self.group
        if self.monitor is not None:
            self.monitor.question(track.unsure[index], track.agreed[index])
        if index == 0:
            self.first_at = frontier
        position = track.prompt + index
        size = (position - self.sent) * group.context_bytes(group.tokens)
        size += group.sizes.context_message
        self.sent = position
        self.bytes_up += size
        assert self.session is not None
        if position - self.confirmed >= _CHUNK_ROWS // 4:
            self.confirmed = position
            self.lines.send_confirmation(self, self.session, position, frontier, size)
        return False

    # ---- auto mode -----------------------------------------------------------------------------

    def _steer(self, now: float) -> Plan:
        """Ask the controller again."""
        group = self.group
        assert self.monitor is not None
        assert group.chooser is not None
        assert self.plan is not None
        self.time = self.chosen_at = now
        left = max(1, group.max_tokens - self.position)
        plan = group.chooser.plan(
            self.monitor.conditions(), self.plan, 0, left, within=self.plan.codec
        )
        if plan.threshold != self.plan.threshold:
            self.track = group.track(plan.threshold, self.answer)
        self.plan = plan
        return plan

    def _drafted(self, track: Track, begin: int, stop: int, at: float) -> None:
        """Tell the monitor and the worth of drafts what tokens took, but for the first, which
        takes the prompt along."""
        first = begin if begin else 1
        each = 0.0
        if stop > first:
            each = (track.done[stop] - track.done[first]) / (stop - first)
            assert self.worth is not None
            self.worth.drafted(each)
        if self.monitor is None:
            return
        self.time = at
        if each:
            self.monitor.edge_token(each)
        judged = self.monitor.judged
        for unsure in track.unsure[begin:stop]:
            judged(unsure)

    def _observe(self, asked: Asked, at: float, waited: float, took: float) -> None:
        assert self.monitor is not None
        self.time = at
        group = self.group
        if asked.size >= MIN_UPLOAD_BYTES:
            rtt = self.monitor.conditions().rtt_seconds or 0.0
            self.monitor.upload(round(asked.size), at - took - asked.start - rtt)
        if not self.first_answer:
            assert self.session is not None
            self.monitor.round_trip(waited - took)
            share = 1.0 if self.session.whole else group.recording.model.deep_share
            self.monitor.cloud_pass(took, share)

    def _wait(self, since: float) -> None:
        """Wait for the cloud from ``since`` on; patience has an end (:mod:`.alone`)."""
        self.waiting_since = since
        if not self.watched:
            self.watched = True
            call_at(self.group.env, since + self.group.least_patience, self._watch)

    def _watch(self, _event: Event) -> None:
        """Look whether patience has run out."""
        self.watched = False
        if self.session is None or self.alone:
            return
        assert self.monitor is not None
        now = self.group.env.now
        due = now + self.group.least_patience
        if self.waiting_since >= 0.0 and self.session.doing is not Doing.BURST:
            self.time = max(self.time, now)
            patience = patience_seconds(self.monitor.conditions(), 0)
            due = self.waiting_since + patience
            if due <= now:
                self._go_alone(now)
                return
        self.watched = True
        call_at(self.group.env, due, self._watch)

    def _go_alone(self, now: float) -> None:
        """What was drafted stands, and more follows; meanwhile a new connection is made."""
        assert self.monitor is not None
        assert self.session is not None
        self.monitor.lost()
        old, group, track = self.session, self.group, self.track
        old.close()
        for asked in self.outstanding:
            self.alone_tokens += 1
            self.wrong += not asked.question.agreed
        self.outstanding.clear()
        self.said.clear()
        self.tail = None
        self.epoch = self.line = self.cut = 0
        resume = now if now > self.frontier else self.frontier
        if self.position and self.first_at < 0.0:
            self.first_at = now
        if self.streaming:  # the edge has taken in nothing of this yet
            seconds = (self.position + track.prompt) * group.device.prefill_seconds
            self.work += seconds
            resume += seconds
            self.streaming = False
        self.waiting_since = -1.0
        session = CloudSide(self.replica, self, whole=old.whole, end=old.end, steady=old.steady)
        session.computed = min(old.computed, track.prompt + self.position)
        self.session = session
        self._draft_alone(session, resume)
        self.bytes_up += group.sizes.open
        self.bytes_down += group.sizes.opened
        self.lines.open(self, session, now + group.reconnect_seconds)

    def _draft_alone(self, session: CloudSide, resume: float) -> None:
        """Nobody is asked until the session is open, or to the end."""
        self.alone, self.frontier = True, resume
        done = self.track.done
        end = resume + done[-1] - done[self.position]
        call_at(self.group.env, end, self._end_of_text, session)

    def _end_of_text(self, event: Event) -> None:
        if event.value is self.session and self.alone:
            now = self.group.env.now
            self._stand(self.track.length)
            self._finish(now)

    def _end_alone(self, at: float) -> None:
        """The cloud is back; the token under way is the last one drafted alone."""
        assert self.monitor is not None
        done, begin = self.track.done, self.position
        since = at - self.frontier + done[begin]
        stop = bisect_left(done, since, begin, self.track.length) if since > done[begin] else begin
        self.frontier = max(at, self.frontier + done[stop] - done[begin])
        self._stand(stop)
        self.alone = False
        self.monitor.restored()

    def _stand(self, stop: int) -> None:
        """Tokens up to ``stop`` are certain, whatever the exits made of them."""
        track, begin = self.track, self.position
        if begin == 0 and stop:
            self.first_at = self.frontier + track.done[1]
        self.alone_tokens += sum(track.unsure[begin:stop])
        self.wrong += (stop - begin) - sum(track.agreed[begin:stop])
        self.work += track.done[stop] - track.done[begin]
        self.position = stop

    # ---- the end -------------------------------------------------------------------------------

    def _finish(self, at: float) -> None:
        """The last token is certain at ``at``."""
        if self.session is not None:
            self.session.close()
            self.session = None
            self.bytes_up += self.group.sizes.close
            self.bytes_down += self.group.sizes.closed
        self.waiting_since = -1.0
        self.group.finished(self, at)
