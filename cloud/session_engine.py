"""What the cloud computes for one open session: escalations first, catch-up when idle.

Escalations that wait together are decided in one pass, which takes the context before them along:
catching up and verifying an edge's drafts are the same pass.  After a correction (the edge went on
from another token) everything is ignored up to the edge's Truncate.  While nobody asks, the cloud
decodes ahead of the edge's context, as far as the edge wishes.

The stream's reader hands over what the edge asks; :meth:`SessionEngine.run` works it off, one piece
of the model's time after another, and sends decisions.  All state lives in the session's entry of
the context store, so another stream can go on where this one ended.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cloud.batcher import Batcher, Work
from cloud.context_manager import ContextStore
from cloud.fair_queue import CATCH_UP_FROM, CATCH_UP_ROWS
from cloud.held_session import HeldSession
from cloud.metrics import TenantMetrics
from cloud.quotas import TenantRate
from shared.clock import Clock
from shared.errors import (
    BudgetExceededError,
    ContextGapError,
    InvalidMessageError,
    NoRoomError,
)
from shared.messages import Ahead, CloudMessage, ContextKind, Decision, Escalate
from shared.model_bundle import Manifest
from shared.sampling import Choice

T = TypeVar("T")
_LOOK_SECONDS = 0.5  # a quota may grow while somebody waits for it


@dataclass(frozen=True)
class _Question:
    """An escalation: which step asked for which position, and when (seconds)."""

    step: int
    position: int
    burst: int
    guess: int | None
    asked: float

    @property
    def always_bursts(self) -> bool:
        """Whether the cloud goes on by itself whatever it decides."""
        return self.burst > 0 and self.guess is None

    def corrected_by(self, choice: Choice) -> bool:
        """Whether the edge went on from another token."""
        return self.guess is not None and self.guess != choice.token_id


class SessionEngine:
    """Computes for one stream; ``send`` is awaited for every decision.

    ``credits``: escalations that may be unanswered at once.
    """

    def __init__(
        self,
        session: HeldSession,
        store: ContextStore,
        batcher: Batcher,
        manifest: Manifest,
        send: Callable[[CloudMessage], Awaitable[None]],
        usage: TenantMetrics,
        rate: TenantRate,
        clock: Clock,
        *,
        credits: int,
    ) -> None:
        self._session, self._store, self._batcher = session, store, batcher
        self._arch, self._cut = manifest.architecture, manifest.cut
        self._stop_tokens = frozenset(manifest.tokenizer.stop_token_ids)
        self._send, self._usage, self._rate, self._clock = send, usage, rate, clock
        self._pending: deque[_Question] = deque()
        self._credits = credits
        self._unanswered: list[tuple[int, int]] = []  # step and position of what took a credit
        self._changed = asyncio.Event()
        self._busy = False
        self._bursting = False
        self._interrupted = False
        self._astray = False  # a correction was sent, and what arrives is from before it
        self._lookahead = 0
        self._short_of_room = False  # for what nobody asked for
        self._heeded_step = 0
        self._catching_up: Work | None = None

    # ---- what the reader calls, in the order of the messages -----------------------------------

    async def add_context(
        self,
        step: int,
        position: int,
        count: int,
        unpack: Callable[[], Awaitable[npt.NDArray[Any]]],
    ) -> None:
        """Store ``count`` positions of context (after a burst that runs, which adds to it as well);
        ``unpack`` is called only where it joins what is held and adds to it.  What is beyond the
        tenant's rate of rows waits, and with it whatever the edge sends after it."""
        # what was asked before it may tell that it is about a text that is no more
        await self._until(
            lambda: (
                self._astray or not (self._burst_ahead() or (self._session.own and self._pending))
            )
        )
        if self._astray:
            return
        self._store.check_joins(self._session, position)
        if (new := position + count - self._session.confirmed) > 0:
            while not self._astray and (seconds := self._rate.seconds_to_rows()):  # noqa: ASYNC110
                await asyncio.sleep(min(seconds, _LOOK_SECONDS))
            self._rate.add_rows(min(new, count))
            rows = await unpack()
            if self._session.own:  # which may have to give way
                await self._pause()

            def store() -> None:
                if not self._astray:  # what ran meanwhile may have been a correction
                    self._store.append(self._session, position, rows)

            await self._store.room.take(self._session, store)
        if not self._astray:
            self._heeded_step = step
        self._interrupted = False
        self._changed.set()

    async def escalate(self, step: int, asks: Escalate) -> None:
        """Queue an escalation; raises where its context is not held, it cannot be decided, or too
        many are unanswered."""
        asked, position = self._clock(), asks.position
        if (asks.burst or asks.lookahead) and self._session.kind is not ContextKind.TOKEN_IDS:
            raise InvalidMessageError("a burst and a lookahead need token ids as context")
        await self._until(lambda: self._astray or not self._burst_ahead())
        if self._astray:
            return
        if len(self._unanswered) >= self._credits:
            raise InvalidMessageError(
                f"more than {self._credits} escalations are unanswered, which is what the cloud "
                "gave credit for"
            )
        if position > (held := self._session.confirmed):
            raise ContextGapError(
                f"position {position} cannot be decided, the cloud holds 0 to {held}"
            )
        self._rate.ask()
        self._usage.escalations.inc()
        self._unanswered.append((step, position))
        self._pending.append(_Question(step, position, asks.burst, asks.guess, asked))
        self._lookahead, self._heeded_step = asks.lookahead, step
        self._session.working, self._short_of_room = True, False
        if self._catching_up is not None:
            self._catching_up.urgent = True
        self._changed.set()

    async def truncate(self, step: int, position: int) -> None:
        """Forget the edge's context from ``position`` on; unanswered escalations are withdrawn."""
        self._pending.clear()
        await self._pause()
        if position < self._session.confirmed:
            self._store.truncate(self._session, position)
        self._store.rest(self._session)
        self._unanswered.clear()
        self._heeded_step = step
        self._interrupted = self._astray = False
        self._changed.set()

    async def stop(self) -> None:
        """Withdraw every escalation and wait until nothing runs."""
        self._pending.clear()
        await self._pause()

    async def finish(self) -> None:
        """Wait until every escalation is answered."""
        self._lookahead = 0
        await self._until(lambda: not self._pending and not self._busy)

    def _burst_ahead(self) -> bool:
        return self._bursting or any(question.always_bursts for question in self._pending)

    async def _pause(self) -> None:
        """Wait until nothing runs (a burst stops), and let nothing begin."""
        self._interrupted = True
        if self._catching_up is not None:
            self._catching_up.urgent = True
        await self._until(lambda: not self._busy)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._changed.clear()
            await self._changed.wait()

    # ---- the work --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer and catch up until cancelled."""
        while True:
            await self._until(self._has_work)
            self._busy = self._session.working = True
            try:
                if self._pending:
                    questions = self._take_questions()
                    self._bursting = questions[-1].always_bursts
                    await self._answer(questions)
                elif self._is_behind():
                    await self._catch_up()
                else:
                    await self._look_ahead()
            finally:
                self._busy = self._bursting = False
                if not self._pending:
                    self._store.rest(self._session)
                self._changed.set()

    def _has_work(self) -> bool:
        if self._interrupted:
            return False
        return bool(self._pending) or self._is_behind() or self._may_look_ahead()

    def _is_behind(self) -> bool:
        if self._astray or self._short_of_room:
            return False
        return self._session.held - self._session.computed >= CATCH_UP_FROM

    def _may_look_ahead(self) -> bool:
        if not self._lookahead or not self._rate.has_left:
            return False
        session = self._session
        said = session.decisions.get(session.held)
        if said is not None and said.token_id in self._stop_tokens:
            return False
        limit = min(session.confirmed + self._lookahead, self._arch.max_positions)
        return 1 <= session.held + (said is not None) <= limit

    def _take_questions(self) -> list[_Question]:
        """The questions at the front that one piece of work can answer together."""
        taken: list[_Question] = []
        while self._pending and not (taken and taken[-1].always_bursts):
            taken.append(self._pending.popleft())
        return taken

    async def _answer(self, questions: Sequence[_Question]) -> None:
        """Decide together, answer one by one; nothing behind a correction is answered."""
        session = self._session
        positions = sorted({question.position for question in questions})
        await self._decide(
            [p for p in positions if p not in session.decisions], continues=self._bursting
        )
        for question in questions:
            choice = session.decisions[question.position]
            corrected = question.corrected_by(choice)
            if corrected:
                self._usage.corrections.inc()
                self._astray = True
                self._pending.clear()
                if self._lookahead and question.position < session.confirmed:  # it begins here
                    self._store.truncate(session, question.position)
                self._changed.set()
            await self._reply(question.step, question.position, choice, question.asked)
            if question.burst and (corrected or question.always_bursts):
                await self._burst(question, choice)
            if corrected:
                return

    async def _burst(self, question: _Question, choice: Choice) -> None:
        """Go on from the answer to ``question``; what the edge had not heard of gives way."""
        session, position = self._session, question.position
        self._store.truncate(session, session.confirmed)
        for left in reversed(range(question.burst)):
            if self._interrupted or choice.token_id in self._stop_tokens:
                return
            if position == self._arch.max_positions:
                return
            if not await self._keep(position, choice.token_id):
                return
            position, asked = position + 1, self._clock()
            if position not in session.decisions:
                await self._decide([position], continues=left > 0)
            choice = session.decisions[position]
            self._rate.add_burst_token()
            self._usage.burst_tokens.inc()
            await self._reply(question.step, position, choice, asked)

    async def _keep(self, position: int, token_id: int) -> bool:
        """Make a decided token context; ``False`` where the edge went on otherwise.  After a
        correction, what is held from before it gives way."""
        session = self._session
        if session.held > position and session.context[position : position + 1][0] != token_id:
            if not self._astray:
                return False
            self._store.truncate(session, position)
        if session.held == position:
            token = np.array([token_id], np.int32)
            await self._take_room(lambda: self._store.append(session, position, token))
        return True

    async def _look_ahead(self) -> None:
        """Decide what nobody asked for yet: what follows the context, or what was decided there."""
        session, began = self._session, self._clock()
        if self._store.room.crowded:
            self._lookahead = 0
            return
        try:
            if (said := session.decisions.get(session.held)) is not None:
                self._store.append_own(session, said.token_id)
            position = session.held
            if position not in session.decisions:
                await self._decide([position], urgent=False)
        except (BudgetExceededError, InvalidMessageError):  # nobody asked: it goes without
            self._lookahead = 0
            return
        self._rate.add_burst_token()
        self._usage.lookahead_tokens.inc()
        decision = _decision(position, session.decisions[position], self._clock() - began)
        base = min(position, session.confirmed)
        await self._send(CloudMessage(self._heeded_step, Ahead(decision, base)))

    async def _catch_up(self) -> None:
        """Run context ahead of the question, in pieces small enough to wait for."""
        session = self._session
        stop = min(session.held, session.computed + CATCH_UP_ROWS)
        try:
            await self._compute(stop, (), urgent=False)
        except NoRoomError:
            self._short_of_room = True

    async def _decide(
        self, positions: Sequence[int], *, urgent: bool = True, continues: bool = False
    ) -> None:
        """Decide rising ``positions``, in pieces of what fits into a pass."""
        session = self._session
        if not positions:
            return
        known = session.final_state is not None and session.final_state[0] == positions[0] - 1
        if positions[0] <= session.computed and not (known and positions[0] == session.computed):
            # computed ahead of the question: the row before it runs again
            assert session.cache is not None
            session.cache.length = positions[0] - 1
        while True:
            stop = min(positions[-1], session.computed + self._batcher.max_rows)
            asked = tuple(p for p in positions if session.computed <= p <= stop)
            await self._compute(stop, asked, urgent=urgent, continues=continues)
            positions = [p for p in positions if p > stop]
            if not positions:
                return

    async def _compute(
        self, stop: int, decide: tuple[int, ...], *, urgent: bool, continues: bool = False
    ) -> None:
        """One piece of work: context from what is computed to ``stop``, deciding ``decide``;
        ``continues`` where a burst goes on behind it."""
        session = self._session
        if urgent:
            cache = await self._take_room(lambda: self._store.cache_for(session, stop))
        else:
            cache = self._store.cache_for(session, stop, asked=False)
        start = cache.length
        state = session.final_state
        work = Work(
            cache,
            start,
            session.context[start:stop],
            decide,
            state[1] if state is not None and state[0] == start - 1 else None,
            session.sampling,
            urgent or bool(self._pending),
            session.key.tenant,
            continues=continues,
        )
        self._catching_up = None if urgent else work
        try:
            outcome = await self._batcher.run(work)
        finally:
            self._catching_up = None
        if not all(math.isfinite(choice.logprob) for choice in outcome.choices):
            raise InvalidMessageError("the context is so large that no probabilities come of it")
        session.decisions.update(zip(decide, outcome.choices, strict=True))
        if outcome.final_state is not None:
            session.final_state = (stop - 1, outcome.final_state)
        layers = self._arch.layers - cache.first_layer
        session.layer_positions += layers * (stop - start)
        session.compute_seconds += outcome.seconds
        self._usage.compute_seconds.inc(outcome.seconds)

    async def _take_room(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns; while there is no room for it, others may take the cache."""
        session = self._session

        def take() -> T:
            session.working = False
            taken = attempt()
            session.working = True
            return taken

        return await self._store.room.take(session, take)

    async def _reply(self, step: int, position: int, choice: Choice, asked: float) -> None:
        seconds = max(0.0, self._clock() - asked)
        self._usage.decision_seconds.observe(seconds)
        if (step, position) in self._unanswered:  # before the edge can know: it may ask at once
            self._unanswered.remove((step, position))
        await self._send(CloudMessage(step, _decision(position, choice, seconds)))


def _decision(position: int, choice: Choice, seconds: float) -> Decision:
    microseconds = min(round(max(0.0, seconds) * 1e6), 2**32 - 1)
    return Decision(position, choice.token_id, choice.logprob, microseconds)
