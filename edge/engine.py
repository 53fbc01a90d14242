"""A loaded edge: tokenizer, model and cloud endpoint, from which generations are started."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from edge.cloud_channel import CloudEndpoint
from edge.context_source import ContextCodec, HiddenStateSource, TokenSource
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
from edge.plan import DEFAULT_WINDOW, Plan
from edge.timeline import Timeline
from shared.chat import ChatTemplate, Message
from shared.clock import Clock, monotonic
from shared.errors import BundleError, ConfigurationError
from shared.model_bundle import ModelBundle, Precision
from shared.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from edge.cloud_session import CloudSession
    from shared.messages import Closed

_MAX_TOKENS = 1 << 20


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate: see :class:`~edge.plan.Plan` for threshold to verified, and
    :class:`~edge.generation.GenerationRequest` for the last two."""

    mode: Mode
    threshold: float = DEFAULT_THRESHOLD
    max_tokens: int = 256
    sampling: Sampling = GREEDY
    context: ContextCodec = ContextCodec.FP16
    window: int = DEFAULT_WINDOW
    burst: int = 0
    verified: bool = False
    use_exits: bool = True
    forced_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= _MAX_TOKENS:
            raise ConfigurationError(f"max_tokens {self.max_tokens} is not at least 1")
        if self.mode is not Mode.CLOUD_ONLY:
            _ = self.plan  # refuses what does not hold together
        if self.mode is Mode.STANDALONE and not self.use_exits:
            raise ConfigurationError("standalone mode without exits has nobody to decide")

    @property
    def plan(self) -> Plan:
        """How the answer is made."""
        return Plan(self.threshold, self.window, self.burst, self.context, self.verified)


@dataclass(frozen=True)
class GenerationResult:
    """What a generation gave and cost; seconds count from the call, model loading left out.

    ``cloud_layer_positions`` is the cloud's own count of positions computed, summed over layers,
    and ``cloud_compute_seconds`` what its model took for them, waited for or not; ``None`` where
    the session broke off or was resumed elsewhere, so that nobody knows.
    """

    text: str
    tokens: tuple[GeneratedToken, ...]
    prompt_tokens: int
    options: GenerationOptions
    schedule: str | None
    seconds: float
    first_token_seconds: float
    statistics: GenerationStatistics
    uploaded_bytes: int
    downloaded_bytes: int
    cloud_layer_positions: int | None
    cloud_compute_seconds: float | None

    def as_record(self) -> dict[str, object]:
        """The object that ``tandem generate --json`` prints."""
        return {
            "text": self.text,
            "token_ids": [token.token_id for token in self.tokens],
            "origins": [token.origin for token in self.tokens],
            "prompt_tokens": self.prompt_tokens,
            "mode": self.options.mode.value,
            "schedule": self.schedule,
            "threshold": self.options.threshold,
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
        self._statistics = GenerationStatistics(timeline=timeline)
        self._tokens: list[GeneratedToken] = []
        self._cloud: CloudSession | None = None
        self._started = self._first_token_at = 0.0
        self._ended: float | None = None

    async def run(self) -> AsyncGenerator[GeneratedToken, None]:
        """Yield tokens as they are decided; leaving early ends the session with the cloud."""
        async with AsyncExitStack() as stack:
            stream = await stack.enter_async_context(aclosing(await self._stream(stack)))
            self._started = self._engine.clock()
            try:
                async for token in stream:
                    self._tokens.append(token)
                    if len(self._tokens) == 1:
                        self._first_token_at = self._engine.clock()
                    yield token
            finally:
                self._ended = self._engine.clock()

    def result(self) -> GenerationResult:
        """What :meth:`run` gave, once it has ended."""
        assert self._ended is not None, "run() comes first"
        cloud = self._cloud
        collaborative = self._options.mode is Mode.COLLABORATIVE
        return GenerationResult(
            text=self._engine.decode([token.token_id for token in self._tokens]),
            tokens=tuple(self._tokens),
            prompt_tokens=len(self._request.prompt_ids),
            options=self._options,
            schedule=self._options.plan.schedule.value if collaborative else None,
            seconds=self._ended - self._started,
            first_token_seconds=self._first_token_at - self._started,
            statistics=self._statistics,
            uploaded_bytes=cloud.wire.uploaded if cloud else 0,
            downloaded_bytes=cloud.wire.downloaded if cloud else 0,
            cloud_layer_positions=_layer_positions(cloud),
            cloud_compute_seconds=_compute_seconds(cloud),
        )

    async def _stream(self, stack: AsyncExitStack) -> AsyncGenerator[GeneratedToken, None]:
        """Open what the mode needs; the stack closes it."""
        engine, request, options = self._engine, self._request, self._options
        token_ids: list[int] = []
        if options.mode is Mode.CLOUD_ONLY:
            self._cloud = await stack.enter_async_context(self._session(TokenSource(token_ids)))
            return cloud_only_tokens(
                request, token_ids, self._cloud, self._statistics, clock=engine.clock
            )
        model = engine.load_model()
        state = model.open(len(request.prompt_ids) + request.max_tokens)
        if options.mode is Mode.COLLABORATIVE:
            source = (
                TokenSource(token_ids)
                if options.context is ContextCodec.TOKENS
                else HiddenStateSource(state, model.architecture.hidden_size, options.context)
            )
            self._cloud = await stack.enter_async_context(self._session(source))
        return EdgeGeneration(
            model,
            state,
            options.plan,
            engine.worker,
            token_ids,
            self._cloud,
            self._statistics,
            clock=engine.clock,
        ).tokens(request)

    def _session(self, source: HiddenStateSource | TokenSource) -> CloudSession:
        from edge.cloud_session import CloudSession  # noqa: PLC0415  (gRPC: 10 MB, unless alone)

        engine = self._engine
        assert engine.endpoint is not None
        fingerprint = engine.bundle.manifest.fingerprint
        return CloudSession(
            engine.endpoint,
            fingerprint,
            self._options.sampling,
            source,
            clock=engine.clock,
            timeline=self._statistics.timeline,
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
