"""The token loop: prefill, exits from shallow to deep, escalate, draft on, roll back, emit.

This is the whole of Tandem in one screen; every name leads to the file that does the work.  A
token that an exit is sure of is shown at once.  One that it is not sure of becomes a question to
the cloud, and its best guess a draft, past which the edge goes on while the answer travels: where
the cloud agrees, the draft is shown with all that was drafted behind it; where not, both sides go
back to that position.  What was shown never changes, and the text does not depend on how far the
edge drafts: with a window of 0 it waits at each question, as CE-CoLLM does.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from edge.chunks import chunks
from edge.drafting import DraftWorth
from edge.exit_policy import ExitPolicy
from edge.plan import Plan
from shared.clock import Clock, monotonic
from shared.sampling import GREEDY, Sampling

if TYPE_CHECKING:  # the command line knows modes and options before it loads a runtime
    from edge.cloud_session import CloudSession
    from edge.exit_model import ExitModel, ModelState
    from edge.question import Question
    from edge.steering import Steering
    from edge.timeline import Timeline
    from shared.messages import Decision

T = TypeVar("T")

# tokens between two looks at the event loop, where uploads and a user's Ctrl-C wait
PREFILL_CHUNK = 128


class Mode(Enum):
    """Who decides: the edge alone, both, the cloud alone, or whoever serves the user's aim best."""

    STANDALONE = "standalone"
    COLLABORATIVE = "collaborative"
    CLOUD_ONLY = "cloud-only"
    AUTO = "auto"


@dataclass(frozen=True)
class GeneratedToken:
    """A token, its position, where it came from (``exit1``, ``exit2``, … or ``cloud``), the
    natural log-probability there, and for an exit its calibrated confidence.

    ``alone`` marks what the cloud would have been asked for, had it been there (``auto`` mode).
    """

    token_id: int
    position: int
    origin: str
    logprob: float
    confidence: float | None = None
    alone: bool = False


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompt_ids: tokens of the prompt, one at least.
        stop_token_ids: tokens that end the answer (they are emitted).
        use_exits: ``False`` asks the cloud for every token.
        forced_ids: teacher forcing: what the answer goes on with whatever was generated, so that
            each token can be held against a given text.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop_token_ids: frozenset[int]
    sampling: Sampling = GREEDY
    use_exits: bool = True
    forced_ids: tuple[int, ...] | None = None

    @property
    def end(self) -> int:
        """The first position beyond the longest answer."""
        return len(self.prompt_ids) + self.max_tokens

    def ends_with(self, token: GeneratedToken) -> bool:
        """Whether the answer ends after ``token``."""
        return token.position + 1 >= self.end or self.continuation(token) in self.stop_token_ids

    def continuation(self, token: GeneratedToken) -> int:
        """The token that the text goes on with after ``token`` was generated."""
        if self.forced_ids is None:
            return token.token_id
        return self.forced_ids[token.position - len(self.prompt_ids)]


@dataclass
class GenerationStatistics:
    """What the token loop counts.

    ``stall_seconds`` is time spent waiting for decisions; ``cloud_seconds`` of it the cloud says
    that it took for them.  ``rollbacks`` counts the decisions that differed from a draft,
    ``discarded`` the tokens that were drafted in vain.  ``timeline``, where there is one, is told
    what happened when.
    """

    stall_seconds: float = 0.0
    cloud_seconds: float = 0.0
    escalations: int = 0
    rollbacks: int = 0
    discarded: int = 0
    timeline: Timeline | None = None

    def waited(self, since: float, until: float, decision: Decision) -> None:
        """Count a wait for ``decision``, in seconds of the generation's clock."""
        self.stall_seconds += until - since
        # a decision that was long on its way was worked on before anybody waited
        self.cloud_seconds += min(until - since, decision.cloud_microseconds / 1e6)
        if self.timeline is not None:
            self.timeline.wait(since, until, decision)


@dataclass(frozen=True)
class _Draft:
    """A token that is not shown yet, and the question that it waits for (``None``: it is certain).

    Without a token the cloud decides with no guess of the edge's, or goes on in a burst.
    """

    token: GeneratedToken | None
    question: Question | None = None
    accepted: bool = False


class EdgeGeneration:
    """One generation on the edge.

    Model work runs on ``worker``, one call at a time, so that uploads go on meanwhile.
    ``token_ids`` begins with the prompt and grows as the text does, drafts included; where token
    ids are the context, the cloud session reads them from there.  ``state`` may lag behind it.
    ``steering`` changes the plan on the way, and lets the edge go on without the cloud (``auto``
    mode).
    """

    def __init__(
        self,
        model: ExitModel,
        state: ModelState,
        plan: Plan,
        worker: Executor,
        token_ids: list[int],
        cloud: CloudSession | None,
        statistics: GenerationStatistics,
        *,
        steering: Steering | None = None,
        earlier_round_trip: float | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self._model, self._state, self._plan = model, state, plan
        self._worker, self._cloud, self._clock = worker, cloud, clock
        self._text, self._statistics = token_ids, statistics
        self._steering = steering
        shared = cloud is not None and cloud.shares_this_machine
        self._worth = DraftWorth(
            plan.least_chance, shared_cores=shared, earlier_round_trip=earlier_round_trip
        )
        self._drafts: deque[_Draft] = deque()

    async def tokens(self, request: GenerationRequest) -> AsyncGenerator[GeneratedToken, None]:
        """Yield tokens as they become certain, up to a stop token or ``max_tokens``."""
        while True:
            oldest = self._drafts[0] if self._drafts else None
            if oldest is None or not (self._is_due(oldest) or self._must_wait(request)):
                await self._draft(request)
            elif oldest.question is not None:
                await self._settle(request, oldest, oldest.question)
            else:
                self._drafts.popleft()
                assert oldest.token is not None
                yield oldest.token
                if request.ends_with(oldest.token):
                    return

    def _is_due(self, draft: _Draft) -> bool:
        """Whether it can be shown, or its answer is there."""
        return draft.question is None or draft.question.ready

    def _must_wait(self, request: GenerationRequest) -> bool:
        """Whether drafting on makes no sense: the answer may end here, the cloud must speak first,
        the window is full, or too many guesses would have to be right for it to pay."""
        newest = self._drafts[-1].token
        if newest is None or request.ends_with(newest):
            return True
        asked = [d.token.confidence or 0.0 for d in self._drafts if d.question and d.token]
        return len(asked) > self._plan.window or math.prod(asked) < self._worth.least_chance

    async def _draft(self, request: GenerationRequest) -> None:
        """Take in the text so far and judge the next token at the exits; ask where need be."""
        began = self._clock()
        if self._steering is not None:
            self._plan = self._steering.plan()
            if self._plan.plain and not self._steering.alone:
                self._let_the_cloud_speak(request)
                return
        new_positions = len(self._text) - self._state.positions
        await self._take_in()
        draft = await self._judge(request)
        if self._steering is not None:
            self._steering.judged(unsure=not draft.accepted)
        if self._plan.verified or self._plan.plain or not draft.accepted:
            draft = self._escalate(request, draft)
        self._took(new_positions, self._clock() - began)
        self._append(request, draft)

    def _append(self, request: GenerationRequest, draft: _Draft) -> None:
        self._drafts.append(draft)
        if draft.token is not None:
            self._text.append(request.continuation(draft.token))

    def _took(self, new_positions: int, seconds: float) -> None:
        """Drafting a token after ``new_positions`` of text took so long."""
        if new_positions == 1:  # neither a prompt nor a burst
            self._worth.drafted(seconds)
            if self._steering is not None:
                self._steering.drafted(seconds)
        elif self._steering is not None:
            self._steering.prefilled(new_positions, seconds)

    async def _take_in(self) -> None:
        """Run the first segment on new text, in chunks; each is uploaded while the next runs."""
        for start, stop in chunks(self._state.positions, len(self._text), PREFILL_CHUNK):
            await self._run(partial(self._state.extend, self._text[start:stop]))
            if self._cloud is not None:
                self._cloud.offer(self._state.positions)

    async def _judge(self, request: GenerationRequest) -> _Draft:
        """The next token of the first exit that is sure enough, else of the last one."""
        policy, position = ExitPolicy(self._plan.threshold), len(self._text)
        token = None
        for index, info in enumerate(self._model.exits if request.use_exits else ()):
            logits = await self._run(partial(self._state.read_exit, index))
            judgement = policy.judge(
                info,
                logits,
                self._model.vocabulary_ids(index),
                self._model.architecture.vocabulary_size,
                request.sampling,
                position,
            )
            choice = judgement.choice
            token = GeneratedToken(
                choice.token_id, position, info.name, choice.logprob, judgement.confidence
            )
            if judgement.accepted:
                return _Draft(token, accepted=True)
        return _Draft(token)

    def _escalate(self, request: GenerationRequest, draft: _Draft) -> _Draft:
        """The cloud's word where it has said it ahead, else the draft with a question to it."""
        token = draft.token
        if self._cloud is None:
            assert token is not None, "without exits there must be a cloud"
            return draft
        if self._steering is not None and self._steering.alone:
            assert token is not None
            return replace(draft, token=replace(token, alone=True))
        self._statistics.escalations += 1
        position = len(self._text)
        if request.forced_ids is not None:  # the text goes on as it goes on: nothing to correct
            return replace(draft, question=self._cloud.ask(position))
        if (decision := self._cloud.said_ahead(position)) is not None:
            return _Draft(self._decided(draft, decision))
        plan, rest = self._plan, request.end - position - 1
        burst, lookahead = min(plan.burst, rest), min(self._lookahead(), rest)
        named = token.token_id if token is not None and (burst or plan.window) else None
        question = self._cloud.ask(position, burst=burst, guess=named, lookahead=lookahead)
        return replace(draft, question=question)

    def _let_the_cloud_speak(self, request: GenerationRequest) -> None:
        """Leave the rest of the answer to the cloud; the edge catches up should it fall silent."""
        assert self._cloud is not None
        self._cloud.offer(len(self._text))
        self._append(request, self._escalate(request, _Draft(None)))

    def _lookahead(self) -> int:
        if not self._plan.may_look_ahead:
            return 0
        named = self._plan.lookahead
        every = self._plan.verified
        return self._worth.lookahead(every_token=every) if named is None else named

    def _decided(self, draft: _Draft, decision: Decision) -> GeneratedToken:
        """The cloud's token, or the exit's own where that was sure of the same."""
        guess = draft.token
        if guess is not None:
            agreed = guess.token_id == decision.token_id
            if self._steering is not None:
                self._steering.settled(unsure=not draft.accepted, agreed=agreed)
            if draft.accepted and agreed:
                return guess
        return GeneratedToken(decision.token_id, decision.position, "cloud", decision.logprob)

    async def _settle(self, request: GenerationRequest, draft: _Draft, question: Question) -> None:
        """Take the answer to the oldest question: its draft is certain, or gives way to the
        cloud's token, and all drafts behind it with it."""
        decision = await self._wait_for(question)
        if decision is None:
            self._go_alone(question)
            return
        token, guess = self._decided(draft, decision), draft.token
        if guess is not None and (request.forced_ids or guess.token_id == token.token_id):
            self._drafts[0] = _Draft(token)
            return
        assert self._cloud is not None
        if self._state.positions > token.position:
            self._statistics.rollbacks += 1
            self._statistics.discarded += self._state.positions - token.position
        self._drafts.clear()
        self._state.truncate(min(self._state.positions, token.position))
        self._text[token.position :] = [request.continuation(token)]
        self._drafts.append(_Draft(token))
        if question.unfinished and not request.ends_with(token):  # the cloud goes on from it
            self._cloud.follow()
            self._cloud.offer(len(self._text))
            self._drafts.append(_Draft(None, question))
        elif question.guess is not None:
            self._cloud.truncate(token.position)

    async def _wait_for(self, question: Question) -> Decision | None:
        """The next answer; ``None`` where the edge may go on alone and the cloud is silent."""
        assert self._cloud is not None
        since = self._clock()
        source = self._cloud if self._steering is None else self._steering
        decision = await source.answer(question)
        if decision is None:
            self._statistics.stall_seconds += self._clock() - since
        else:
            self._statistics.waited(since, self._clock(), decision)
            if question.first_seconds and decision.position == question.position:
                self._worth.answered(question.first_seconds, decision.cloud_microseconds / 1e6)
        return decision

    def _go_alone(self, question: Question) -> None:
        """What was drafted stands, marked so; the cloud will hear of it when it is back."""
        assert self._cloud is not None
        self._drafts = deque(
            _Draft(replace(draft.token, alone=draft.question is not None))
            for draft in self._drafts
            if draft.token is not None
        )
        self._cloud.truncate(question.next_position)

    async def _run(self, work: Callable[[], T]) -> T:
        began = self._clock()
        done = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        if (timeline := self._statistics.timeline) is not None:
            timeline.edge_work(began, self._clock(), self._state.positions)
        return done


async def cloud_only_tokens(
    request: GenerationRequest,
    token_ids: list[int],
    cloud: CloudSession,
    statistics: GenerationStatistics,
    *,
    clock: Clock = monotonic,
) -> AsyncGenerator[GeneratedToken, None]:
    """Plain remote serving, the peer to beat: the prompt goes up, tokens stream down.

    ``token_ids``, which begins with the prompt, is what the session reads its context from.
    """
    cloud.offer(len(token_ids))
    statistics.escalations += 1
    waiting_since = clock()
    burst = cloud.decide_burst(len(request.prompt_ids), request.max_tokens - 1)
    async with aclosing(burst) as decisions:
        async for decision in decisions:
            statistics.waited(waiting_since, clock(), decision)
            yield GeneratedToken(decision.token_id, decision.position, "cloud", decision.logprob)
            if decision.token_id in request.stop_token_ids:
                return
            token_ids.append(decision.token_id)
            if decision.position + 1 < len(request.prompt_ids) + request.max_tokens:
                cloud.offer(len(token_ids))
            waiting_since = clock()
