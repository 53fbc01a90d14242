"""One generation of a loaded engine: open what its mode needs, run it, keep what the next needs."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.context_source import ContextCodec, HiddenStateSource, TokenSource
from edge.controller import LEAST_GAIN, LEAST_GAIN_BETWEEN, Choice, Wishes, choose
from edge.conversations import Conversation, shared_beginning
from edge.generation import (
    EdgeGeneration,
    GeneratedToken,
    GenerationRequest,
    GenerationStatistics,
    Mode,
    cloud_only_tokens,
)
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult, compute_seconds, layer_positions
from edge.steering import SessionObserver, Steering
from edge.timeline import Timeline
from shared.errors import ConfigurationError, TandemError

if TYPE_CHECKING:
    from edge.cloud_session import CloudSession, KeptSession
    from edge.engine import EdgeEngine
    from edge.exit_model import ExitModel, ModelState

_LOG = logging.getLogger("tandem.edge")


class Generation:
    """One generation: iterate over :meth:`run`, then read :meth:`result`."""

    def __init__(
        self,
        engine: EdgeEngine,
        prompt_ids: tuple[int, ...],
        options: GenerationOptions,
        timeline: Timeline | None = None,
    ) -> None:
        arch = engine.bundle.manifest.architecture
        room = arch.max_positions - len(prompt_ids)
        if not prompt_ids:
            raise ConfigurationError("the prompt holds no tokens")
        if options.max_tokens > room:
            raise ConfigurationError(
                f"a prompt of {len(prompt_ids)} tokens leaves room for {max(0, room)} more, not "
                f"{options.max_tokens}: lower --max-tokens, or shorten the prompt"
            )
        if options.mode is not Mode.STANDALONE and engine.endpoint is None:
            raise ConfigurationError(
                f"{options.mode.value} mode needs a cloud: name one with --cloud HOST:PORT (start "
                "it with `tandem cloud serve`), or use --mode standalone"
            )
        if (
            options.mode is not Mode.CLOUD_ONLY
            and options.use_exits
            and not (engine.bundle.manifest.exits)
        ):
            raise ConfigurationError("the bundle has no exits: run `tandem prepare --force`")
        self._engine = engine
        self._options = options
        self._request = GenerationRequest(
            prompt_ids,
            options.max_tokens if options.forced_ids is None else len(options.forced_ids),
            engine.stop_token_ids,
            options.sampling,
            options.use_exits,
            options.forced_ids,
        )
        self._plan = options.plan
        self._steering: Steering | None = None
        self._explained = False  # a choice that rests on measurements
        self._statistics = GenerationStatistics(timeline=timeline)
        self._tokens: list[GeneratedToken] = []
        self._cloud: CloudSession | None = None
        self._started = self._first_token_at = 0.0
        self._ended: float | None = None
        self._text = list(prompt_ids)
        self._state: ModelState | None = None
        self._cached_tokens = 0

    async def run(self) -> AsyncGenerator[GeneratedToken, None]:
        """Yield tokens as they are decided; leaving early ends the session with the cloud."""
        conversations = self._engine.conversations
        kept = conversations.take(self._request.prompt_ids) if conversations is not None else None
        async with AsyncExitStack() as stack:
            stream = await stack.enter_async_context(aclosing(await self._stream(stack, kept)))
            self._started = self._engine.clock()
            in_order = True
            try:
                async for token in stream:
                    self._tokens.append(token)
                    if len(self._tokens) == 1:
                        self._first_token_at = self._engine.clock()
                    yield token
            except TandemError:
                in_order = False
                raise
            finally:
                self._ended = self._engine.clock()
                if conversations is not None:
                    conversations.put(self._conversation(in_order))

    def _conversation(self, in_order: bool) -> Conversation:
        """What the next turn goes on from; the cloud keeps its part where all is ``in_order``."""
        session = self._cloud.keep() if self._cloud is not None and in_order else None
        return Conversation(self._text, self._state, session, self._plan.codec)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self._request.prompt_ids)

    @property
    def ended(self) -> bool:
        """Whether :meth:`run` has been begun and has ended."""
        return self._ended is not None

    def result(self) -> GenerationResult:
        """What :meth:`run` gave, once it has ended."""
        assert self._ended is not None, "run() comes first"
        cloud = self._cloud
        return GenerationResult(
            text=self._engine.decode([token.token_id for token in self._tokens]),
            tokens=tuple(self._tokens),
            prompt_tokens=len(self._request.prompt_ids),
            options=self._options,
            plan=self._plan if self._steering is None else self._steering.current,
            seconds=self._ended - self._started,
            first_token_seconds=self._first_token_at - self._started,
            statistics=self._statistics,
            uploaded_bytes=cloud.wire.uploaded if cloud else 0,
            downloaded_bytes=cloud.wire.downloaded if cloud else 0,
            cloud_layer_positions=layer_positions(cloud),
            cloud_compute_seconds=compute_seconds(cloud),
            cached_tokens=self._cached_tokens,
        )

    async def _stream(
        self, stack: AsyncExitStack, kept: Conversation | None
    ) -> AsyncGenerator[GeneratedToken, None]:
        """Open what the mode needs, going on from what was kept; the stack closes it."""
        engine, request, options = self._engine, self._request, self._options
        shared = 0
        if kept is not None:  # the last tokens of a prompt are always looked at
            shared = min(shared_beginning(kept.token_ids, self._text), len(self._text) - 2)
        if options.mode is Mode.CLOUD_ONLY:
            self._plan = replace(self._plan, codec=ContextCodec.TOKENS)
            source: HiddenStateSource | TokenSource = TokenSource(self._text)
            self._cloud = await self._connect(stack, source, kept, shared)
            return cloud_only_tokens(
                request, self._text, self._cloud, self._statistics, clock=engine.clock
            )
        model = engine.load_model()
        self._state = await self._open_state(model, kept, shared)
        if options.mode is Mode.AUTO:
            self._plan = self._choose(options.wishes, LEAST_GAIN_BETWEEN).plan
        if options.mode is not Mode.STANDALONE:
            codec = self._plan.codec
            source = (
                TokenSource(self._text)
                if codec is ContextCodec.TOKENS
                else HiddenStateSource(self._state, model.architecture.hidden_size, codec)
            )
            self._cloud = await self._connect(stack, source, kept, shared)
            if options.mode is Mode.AUTO:
                self._steering = self._new_steering(self._cloud)
        return EdgeGeneration(
            model,
            self._state,
            self._plan,
            engine.worker,
            self._text,
            self._cloud,
            self._statistics,
            steering=self._steering,
            earlier_round_trip=engine.monitor.conditions().rtt_seconds,
            clock=engine.clock,
        ).tokens(request)

    async def _open_state(
        self, model: ExitModel, kept: Conversation | None, shared: int
    ) -> ModelState:
        """The kept state up to where the texts part, or a new one; what shall be kept may grow."""
        if kept is not None and kept.state is not None:
            state = kept.state

            def cut() -> None:
                state.truncate(min(shared, state.prefilled))

            # after what an answer that was broken off may have left the worker to do
            await asyncio.get_running_loop().run_in_executor(self._engine.worker, cut)
            self._cached_tokens = state.positions
            return state
        if self._engine.conversations is not None:
            return model.open(model.architecture.max_positions)
        return model.open(len(self._request.prompt_ids) + self._request.max_tokens)

    async def _connect(
        self,
        stack: AsyncExitStack,
        source: HiddenStateSource | TokenSource,
        kept: Conversation | None,
        shared: int,
    ) -> CloudSession:
        session = None
        if kept is not None and kept.session is not None and kept.codec is self._plan.codec:
            positions = min(kept.session.positions, shared)
            if isinstance(source, HiddenStateSource):  # what the cloud may have lost is sent again
                assert self._state is not None
                positions = min(positions, self._state.positions)
            session = replace(kept.session, positions=positions)
            if self._state is None:
                self._cached_tokens = positions
        return await stack.enter_async_context(self._session(source, session))

    def _choose(self, wishes: Wishes, least_gain: float = LEAST_GAIN) -> Choice:
        """The plan for what is known now."""
        manifest = self._engine.bundle.manifest
        arch = manifest.architecture
        taken_in = 0 if self._state is None else self._state.positions
        choice = choose(
            self._engine.monitor.conditions(),
            manifest.operating_points,
            wishes,
            arch.layers,
            manifest.cut,
            arch.hidden_size,
            self._engine.last_plan,
            prompt_tokens=max(0, len(self._request.prompt_ids) - taken_in),
            answer_tokens=max(1, self._request.max_tokens - len(self._tokens)),
            shared_cores=self._engine.endpoint is not None
            and self._engine.endpoint.on_this_machine,
            least_gain=least_gain,
        )
        measured = choice.seconds_per_token is not None
        if choice.plan != self._engine.last_plan or (measured and not self._explained):
            _LOG.info("%s", choice.reason)
            self._explained = measured
        self._engine.last_plan = choice.plan
        return choice

    def _new_steering(self, cloud: CloudSession) -> Steering:
        # within a session the codec stays what it is
        wishes = replace(self._options.wishes, codec=self._plan.codec)
        return Steering(
            cloud,
            self._engine.monitor,
            lambda: self._choose(wishes),
            self._plan,
            self._engine.clock,
        )

    def _session(
        self, source: HiddenStateSource | TokenSource, kept: KeptSession | None
    ) -> CloudSession:
        from edge.cloud_session import CloudSession  # noqa: PLC0415  (gRPC: 10 MB, unless alone)

        engine, auto = self._engine, self._options.mode is Mode.AUTO
        endpoint = engine.endpoint
        assert endpoint is not None
        if auto:  # it never stops trying: meanwhile the edge goes on alone
            endpoint = replace(endpoint, give_up_seconds=math.inf, connect_seconds=math.inf)
        manifest = engine.bundle.manifest
        run = manifest.architecture.layers - manifest.cut * (source.kind is HiddenStateSource.kind)
        return CloudSession(
            endpoint,
            manifest.fingerprint,
            self._options.sampling,
            source,
            text=self._text,
            clock=engine.clock,
            timeline=self._statistics.timeline,
            observer=SessionObserver(engine.monitor, run / manifest.architecture.layers),
            channels=engine.channels,
            persistent=auto,
            tells_guesses=not self._options.wishes.private,
            kept=kept,
        )
