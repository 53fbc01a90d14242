"""The token loop: prefill, exits from shallow to deep, escalate, emit.

This is the whole of Tandem in one screen; every name leads to the file that does the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from edge.exit_policy import ExitPolicy
from shared.clock import Clock, monotonic
from shared.sampling import GREEDY, Sampling

if TYPE_CHECKING:  # the command line knows modes and options before it loads a runtime
    from edge.cloud_session import CloudSession
    from edge.exit_model import ExitModel, ModelState
    from edge.timeline import Timeline
    from shared.messages import Decision

T = TypeVar("T")

# tokens between two looks at the event loop, where uploads and a user's Ctrl-C wait
PREFILL_CHUNK = 128


class Mode(Enum):
    """Who decides: the edge alone, both, or the cloud alone."""

    STANDALONE = "standalone"
    COLLABORATIVE = "collaborative"
    CLOUD_ONLY = "cloud-only"


@dataclass(frozen=True)
class GeneratedToken:
    """A token, its position, where it came from (``exit1``, ``exit2``, … or ``cloud``), the
    natural log-probability there, and for an exit its calibrated confidence."""

    token_id: int
    position: int
    origin: str
    logprob: float
    confidence: float | None = None


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

    def continuation(self, token: GeneratedToken) -> int:
        """The token that the text goes on with after ``token`` was generated."""
        if self.forced_ids is None:
            return token.token_id
        return self.forced_ids[token.position - len(self.prompt_ids)]


@dataclass
class GenerationStatistics:
    """What the token loop counts.

    ``stall_seconds`` is time spent waiting for decisions; ``cloud_seconds`` of it the cloud says
    that it took for them.  ``timeline``, where there is one, is told what happened when.
    """

    stall_seconds: float = 0.0
    cloud_seconds: float = 0.0
    escalations: int = 0
    rollbacks: int = 0
    timeline: Timeline | None = None

    def waited(self, since: float, until: float, decision: Decision) -> None:
        """Count a wait for ``decision``, in seconds of the generation's clock."""
        self.stall_seconds += until - since
        self.cloud_seconds += decision.cloud_microseconds / 1e6
        if self.timeline is not None:
            self.timeline.wait(since, until, decision)


class EdgeGeneration:
    """One generation on the edge.

    Model work runs on ``worker``, one call at a time, so that uploads go on meanwhile.
    ``token_ids`` grows as the text does; where token ids are the context, the cloud session reads
    them from there.
    """

    def __init__(
        self,
        model: ExitModel,
        state: ModelState,
        policy: ExitPolicy,
        worker: Executor,
        token_ids: list[int],
        cloud: CloudSession | None,
        statistics: GenerationStatistics,
        *,
        clock: Clock = monotonic,
    ) -> None:
        self._model, self._state, self._policy = model, state, policy
        self._worker, self._cloud, self._clock = worker, cloud, clock
        self._token_ids, self._statistics = token_ids, statistics

    async def tokens(self, request: GenerationRequest) -> AsyncGenerator[GeneratedToken, None]:
        """Yield tokens as they are decided, up to a stop token or ``max_tokens``."""
        await self._extend(request.prompt_ids)
        for position in range(
            len(request.prompt_ids), len(request.prompt_ids) + request.max_tokens
        ):
            token = await self._decide(request, position)
            yield token
            going_on = request.continuation(token)
            if going_on in request.stop_token_ids:
                return
            if position + 1 < len(request.prompt_ids) + request.max_tokens:
                await self._extend([going_on])

    async def _extend(self, token_ids: Sequence[int]) -> None:
        """Run the first segment on new tokens, in chunks; each is uploaded while the next runs."""
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[start : start + PREFILL_CHUNK]
            await self._run(partial(self._state.extend, chunk))
            self._token_ids.extend(chunk)
            if self._cloud is not None:
                self._cloud.offer(len(self._token_ids))

    async def _decide(self, request: GenerationRequest, position: int) -> GeneratedToken:
        """Ask the exits from shallow to deep, then the cloud; alone, the last exit must do."""
        token = None
        for index, info in enumerate(self._model.exits if request.use_exits else ()):
            logits = await self._run(partial(self._state.read_exit, index))
            judgement = self._policy.judge(
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
                return token
        if self._cloud is None:
            assert token is not None, "without exits there must be a cloud"
            return token
        return await self._escalate(position)

    async def _escalate(self, position: int) -> GeneratedToken:
        """CE-CoLLM's blocking schedule: wait for the cloud's token."""
        assert self._cloud is not None
        asked = self._clock()
        decision = await self._cloud.decide(position)
        self._statistics.waited(asked, self._clock(), decision)
        self._statistics.escalations += 1
        return GeneratedToken(decision.token_id, position, "cloud", decision.logprob)

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

    ``token_ids`` is what the session reads its context from.
    """
    token_ids.extend(request.prompt_ids)
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
