"""A loaded edge: tokenizer, model and cloud endpoint, from which generations are started."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from edge.cloud_channel import Channels, CloudEndpoint
from edge.context_source import ContextCodec, HiddenStateSource, TokenSource
from edge.controller import (
    LEAST_GAIN,
    LEAST_GAIN_BETWEEN,
    NO_WISHES,
    Choice,
    Wishes,
    choose,
)
from edge.conversations import Conversation, Conversations, shared_beginning
from edge.exit_model import ExitModel
from edge.exit_policy import DEFAULT_THRESHOLD
from edge.generation import (
    EdgeGeneration,
    GeneratedToken,
    GenerationRequest,
    GenerationStatistics,
    Mode,
    cloud_only_tokens,
)
from edge.link_monitor import LinkMonitor
from edge.plan import DEFAULT_WINDOW, Plan
from edge.steering import SessionObserver, Steering
from edge.timeline import Timeline
from shared.chat import ChatTemplate, Message
from shared.clock import Clock, monotonic
from shared.errors import BundleError, ConfigurationError, TandemError
from shared.model_bundle import ModelBundle, Precision
from shared.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from edge.cloud_session import CloudSession, KeptSession
    from edge.exit_model import ModelState
    from shared.messages import Closed

_MAX_TOKENS = 1 << 20

_LOG = logging.getLogger("tandem.edge")


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate: see :class:`~edge.plan.Plan` for threshold to verified, which ``auto`` mode
    chooses by its ``wishes``, and :class:`~edge.generation.GenerationRequest` for use_exits and
    forced_ids."""

    mode: Mode
    threshold: float = DEFAULT_THRESHOLD
    max_tokens: int = 256
    sampling: Sampling = GREEDY
    context: ContextCodec = ContextCodec.FP16
    window: int = DEFAULT_WINDOW
    burst: int = 0
    verified: bool = False
    lookahead: int | None = None
    wishes: Wishes = NO_WISHES
    use_exits: bool = True
    forced_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= _MAX_TOKENS:
            raise ConfigurationError(f"max_tokens {self.max_tokens} is not at least 1")
        _ = self.plan  # refuses what does not hold together
        if self.mode is Mode.STANDALONE and not self.use_exits:
            raise ConfigurationError("standalone mode without exits has nobody to decide")
        if self.mode is Mode.AUTO and not self.use_exits:
            raise ConfigurationError("auto mode goes on alone where it must, so it needs the exits")

    @property
    def plan(self) -> Plan:
        """How the answer is made."""
        return Plan(
            self.threshold,
            self.window,
            self.burst,
            self.context,
            self.verified,
            lookahead=self.lookahead,
        )


@dataclass(frozen=True)
class GenerationResult:
    """What a generation gave and cost; seconds count from the call, model loading left out.
    ``plan`` is the one at the end, where ``auto`` mode changed it.

    ``cloud_layer_positions`` is the cloud's own count of positions computed, summed over layers,
    and ``cloud_compute_seconds`` what its model took for them, waited for or not; ``None`` where
    the session broke off or was resumed elsewhere, so that nobody knows.  ``cached_tokens`` of the
    prompt were kept from an earlier answer, on the edge (in cloud-only mode: in the cloud).
    """

    text: str
    tokens: tuple[GeneratedToken, ...]
    prompt_tokens: int
    options: GenerationOptions
    plan: Plan
    seconds: float
    first_token_seconds: float
    statistics: GenerationStatistics
    uploaded_bytes: int
    downloaded_bytes: int
    cloud_layer_positions: int | None
    cloud_compute_seconds: float | None
    cached_tokens: int = 0

    def as_record(self) -> dict[str, object]:
        """The object that ``tandem generate --json`` prints."""
        escalates = self.options.mode in (Mode.COLLABORATIVE, Mode.AUTO)
        return {
            "text": self.text,
            "token_ids": [token.token_id for token in self.tokens],
            "origins": [token.origin for token in self.tokens],
            "prompt_tokens": self.prompt_tokens,
            "mode": self.options.mode.value,
            "plan": str(self.plan) if escalates else None,
            "schedule": self.plan.schedule.value if escalates else None,
            "threshold": self.plan.threshold,
            "alone": sum(token.alone for token in self.tokens),
            "seconds": round(self.seconds, 6),
            "first_token_seconds": round(self.first_token_seconds, 6),
            "stall_seconds": round(self.statistics.stall_seconds, 6),
            "escalations": self.statistics.escalations,
            "rollbacks": self.statistics.rollbacks,
            "discarded": self.statistics.discarded,
            "uploaded_bytes": self.uploaded_bytes,
            "downloaded_bytes": self.downloaded_bytes,
        }


class EdgeEngine:
    """One bundle on this device.  The model is loaded when a generation first needs it."""

    def __init__(
        self,
        bundle: ModelBundle,
        precision: Precision,
        *,
        threads: int | None = None,
        endpoint: CloudEndpoint | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.bundle = bundle
        self.endpoint = endpoint
        self.clock = clock
        self.tokenizer = _load_tokenizer(bundle)
        self.stop_token_ids = frozenset(bundle.manifest.tokenizer.stop_token_ids)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="edge-model")
        self._precision = precision
        self._threads = threads
        self._template = ChatTemplate(bundle.manifest.tokenizer.chat_template)
        self._model: ExitModel | None = None
        self.monitor = LinkMonitor(clock)
        self.last_plan: Plan | None = None  # of auto mode
        self.channels: Channels | None = None
        self.conversations: Conversations | None = None  # without, every answer begins anew

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep the connection to the cloud for all generations within the block: each answer then
        begins a few round trips sooner.  Without, each makes a connection of its own."""
        assert self.endpoint is not None
        self.channels = Channels(self.endpoint)
        try:
            yield
        finally:
            channels, self.channels = self.channels, None
            await channels.close()

    def load_model(self) -> ExitModel:
        """The model, loaded at the first call."""
        if self._model is None:
            self._model = ExitModel(self.bundle, self._precision, threads=self._threads)
        return self._model

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a conversation, up to where the assistant's words begin."""
        return tuple(self.tokenizer.encode(self._template.render(messages)).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer's tokens, stop tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def generation(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        timeline: Timeline | None = None,
    ) -> Generation:
        """Prepare a generation; raises :class:`ConfigurationError` where it cannot work."""
        return Generation(self, tuple(prompt_ids), options, timeline)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        timeline: Timeline | None = None,
    ) -> GenerationResult:
        """Run a generation to its end; ``timeline`` is told what happens when."""
        generation = self.generation(prompt_ids, options, timeline)
        async for _ in generation.run():
            pass
        return generation.result()

    def close(self) -> None:
        """Stop the worker thread."""
        self.worker.shutdown(wait=True, cancel_futures=True)


def _load_tokenizer(bundle: ModelBundle) -> Tokenizer:
    path = bundle.path(bundle.manifest.tokenizer.file)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise BundleError(f"{path} cannot be read: {error}; run `tandem prepare`") from None


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
            cloud_layer_positions=_layer_positions(cloud),
            cloud_compute_seconds=_compute_seconds(cloud),
            cached_tokens=self._cached_tokens,
        )

    async def _stream(
        self, stack: AsyncExitStack, kept: Conversation | None
    ) -> AsyncGenerator[GeneratedToken, None]:
        """Open what the mode needs, going on from what was kept; the stack closes it."""
        engine, request, options = self._engine, self._request, self._options
        shared = 0
        if kept is not None:  # the last token of a prompt is always looked at
            shared = min(shared_beginning(kept.token_ids, self._text), len(self._text) - 1)
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
                state.truncate(min(shared, state.positions))

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
        choice = choose(
            self._engine.monitor.conditions(),
            manifest.operating_points,
            wishes,
            arch.layers,
            manifest.cut,
            arch.hidden_size,
            self._engine.last_plan,
            prompt_tokens=len(self._request.prompt_ids),
            answer_tokens=self._request.max_tokens,
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
            kept=kept,
        )


def _layer_positions(cloud: CloudSession | None) -> int | None:
    if cloud is None:
        return 0
    account = _account(cloud)
    return account.layer_positions if account else None


def _compute_seconds(cloud: CloudSession | None) -> float | None:
    if cloud is None:
        return 0.0
    account = _account(cloud)
    return account.compute_microseconds / 1e6 if account else None


def _account(cloud: CloudSession) -> Closed | None:
    """The cloud's own account of the session, where it covers all of it."""
    return None if cloud.reconnects else cloud.closed
