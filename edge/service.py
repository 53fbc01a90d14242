"""The daemon's heart: a loaded engine, a short queue, controls that change while it runs.

HTTP, page, MQTT and terminal are shells around :class:`EdgeService`; none of them knows another.
All methods run on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from edge.answer import Answer, AnswerRequest, FinishReason
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.conversations import Conversations
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from edge.generation_run import Generation
from shared.background import in_background
from shared.clock import Clock, monotonic
from shared.errors import BusyError, ConfigurationError, DrainingError, TandemError
from shared.model_bundle import ModelBundle, Precision
from shared.sampling import GREEDY, Sampling

_RECENT = 20  # answers that the live figures are about
_PROBE_SECONDS = 5.0

_LOG = logging.getLogger("tandem.edge")


@dataclass(frozen=True)
class ServiceStatus:
    """The daemon at this moment, as page, MQTT and metrics show it; ``None`` is not known.

    Attributes:
        link: ``none`` (no cloud is configured), ``up``, ``lost`` or ``unknown`` (not asked yet).
        rtt_seconds: round trip to the cloud, of late.
        tokens_per_second, device_share: of the last 20 answers; the share of their tokens that
            the device decided.
        plan: how the last answer was made, where edge and cloud worked together.
        answers, failures, cancellations, tokens, uploaded_bytes, downloaded_bytes: since the start;
            ``origins`` are tokens by origin.
    """

    model: str
    controls: Controls
    draining: bool
    active: int
    waiting: int
    link: str
    rtt_seconds: float | None
    tokens_per_second: float | None
    device_share: float | None
    plan: str | None
    answers: int
    failures: int
    cancellations: int
    tokens: int
    origins: Mapping[str, int]
    uploaded_bytes: int
    downloaded_bytes: int
    uptime_seconds: float


class Outcome(Enum):
    """How an answer ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class AnswerRecord:
    """An answer that has ended; ``result`` is ``None`` where it never began."""

    request: AnswerRequest
    outcome: Outcome
    finish_reason: FinishReason | None
    result: GenerationResult | None
    error: BaseException | None


class EdgeService:
    """An ``async with`` block around the daemon's life.

    At most ``parallel`` answers are made at once and ``queue_limit`` more wait.  Of the last
    ``kept_conversations`` what was taken in is kept for their next turns, ``kept_tokens`` in all.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        controls: Controls,
        *,
        precision: Precision = "int8",
        threads: int | None = None,
        endpoint: CloudEndpoint | None = None,
        parallel: int = 1,
        queue_limit: int = 16,
        kept_conversations: int = 4,
        kept_tokens: int = 4096,
        clock: Clock = monotonic,
    ) -> None:
        assert parallel >= 1
        assert queue_limit >= 0
        self._precision, self._threads, self._endpoint = precision, threads, endpoint
        self._clock, self._started = clock, clock()
        self._queue_limit, self._waiting, self._active = queue_limit, 0, 0
        self._turns = asyncio.Semaphore(parallel)
        self._parallel = parallel
        self._reloading = asyncio.Lock()
        self._kept = kept_conversations, kept_tokens
        self._draining = False
        self._controls = controls
        self._engine = self._load(bundle)
        self._options(controls, self._engine)
        self._lifetime = AsyncExitStack()
        self._ended = asyncio.Event()  # an answer has, or its wait
        self._lives: set[asyncio.Timeout] = set()
        self._watchers: set[asyncio.Event] = set()
        self._observers: list[Callable[[AnswerRecord], None]] = []
        self._recent: deque[GenerationResult] = deque(maxlen=_RECENT)
        self._origins: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._link_known = False

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(None, self._engine.load_model)
        await self._connect()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._lifetime.aclose()
        self._engine.close()

    # ---- answers -----------------------------------------------------------------------------

    @property
    def engine(self) -> EdgeEngine:
        """The engine at this moment; a reload replaces it."""
        return self._engine

    @asynccontextmanager
    async def answer(self, request: AnswerRequest) -> AsyncIterator[Answer]:
        """One answer, once it is its turn.  Leaving the block early cancels it, here and in the
        cloud.

        Raises:
            BusyError: as many answers wait as may.
            DrainingError: the daemon takes no new work, or ended before the answer.
            ConfigurationError: the request cannot be met, such as a prompt that is too long.
        """
        self._generation(request)  # what cannot be met need not wait
        async with self._life(), self._turn():
            answer = Answer(self._engine, self._generation(request), request.stop)
            error: BaseException | None = None
            try:
                yield answer
            except BaseException as raised:
                error = raised
                raise
            finally:
                self._record(request, answer, error)

    def _generation(self, request: AnswerRequest) -> Generation:
        engine, controls = self._engine, self._controls.asked(request.changes)
        room = engine.bundle.manifest.architecture.max_positions - len(request.prompt_ids)
        limit = request.max_tokens
        if limit is None and room > 0:  # otherwise the engine says what is wrong
            limit = room
        options = self._options(controls, engine, request.sampling, limit)
        return engine.generation(request.prompt_ids, options)

    @asynccontextmanager
    async def _life(self) -> AsyncIterator[None]:
        """An answer's time, which the end of a drain cuts short."""
        life = asyncio.timeout(None)
        self._lives.add(life)
        try:
            async with life:
                yield
        except TimeoutError:
            if not life.expired():
                raise
            raise DrainingError("the daemon shut down before the answer's end") from None
        finally:
            self._lives.discard(life)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._draining:
            raise DrainingError("the daemon is shutting down and takes no new work")
        if self._turns.locked() and self._waiting >= self._queue_limit:
            raise BusyError(
                "as many answers are being made and wait as may "
                f"({self._active} and {self._waiting}): try again in a moment"
            )
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
            self._ended.set()
        self._active += 1
        self._notify()
        try:
            yield
        finally:
            self._active -= 1
            self._turns.release()
            self._ended.set()
            self._notify()

    def _record(self, request: AnswerRequest, answer: Answer, error: BaseException | None) -> None:
        """Count an answer that has ended, and tell who observes."""
        outcome = Outcome.FINISHED
        if isinstance(error, TandemError):
            outcome = Outcome.FAILED
        elif answer.finish_reason is None:
            outcome = Outcome.CANCELLED if error is None or _left(error) else Outcome.FAILED
        result = answer.result() if answer.started else None
        self._counts[outcome.value] += 1
        if result is not None:
            self._counts["tokens"] += len(result.tokens)
            self._counts["up"] += result.uploaded_bytes
            self._counts["down"] += result.downloaded_bytes
            self._origins.update(token.origin for token in result.tokens)
            if result.tokens:
                self._recent.append(result)
            self._link_known |= result.downloaded_bytes > 0
        record = AnswerRecord(request, outcome, answer.finish_reason, result, error)
        for observer in self._observers:
            observer(record)

    def observe(self, observer: Callable[[AnswerRecord], None]) -> None:
        """Tell ``observer`` of every answer that ends."""
        self._observers.append(observer)

    # ---- what can be changed -----------------------------------------------------------------

    @property
    def controls(self) -> Controls:
        """How answers are made unless a request says otherwise."""
        return self._controls

    def set_controls(self, controls: Controls) -> None:
        """From the next answer on; raises :class:`ConfigurationError` for what cannot be."""
        self._options(controls, self._engine)
        self._controls = controls
        self._notify()

    def _options(
        self,
        controls: Controls,
        engine: EdgeEngine,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
    ) -> GenerationOptions:
        """For one generation; raises :class:`ConfigurationError` for controls that cannot be."""
        if self._endpoint is None and controls.mode is not Mode.STANDALONE:
            raise ConfigurationError(
                f"{controls.mode.value} mode needs a cloud: start the daemon with --cloud HOST:PORT"
            )
        return controls.options(engine.bundle, sampling, max_tokens)

    async def reload(self, folder: Path | None = None) -> None:
        """Take up the bundle in ``folder`` (the one in use, if none is named) between two answers;
        where it cannot be loaded, the old one stays.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            ConfigurationError: the controls in force ask for what it does not have.
        """
        async with self._reloading:  # two would wait for each other's turns
            await self._reload(folder or self._engine.bundle.folder)
        self._notify()

    async def _reload(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        engine = self._load(await loop.run_in_executor(None, ModelBundle.load, path))
        try:
            self._options(self._controls, engine)
            await loop.run_in_executor(None, engine.load_model)
        except BaseException:
            engine.close()
            raise
        turns = 0
        try:
            for _ in range(self._parallel):  # after the answers that are being made
                await self._turns.acquire()
                turns += 1
            self._options(self._controls, engine)  # they may have changed meanwhile
            old, self._engine = self._engine, engine
            await self._lifetime.aclose()
            old.close()
            await self._connect()
        finally:
            for _ in range(turns):
                self._turns.release()
            if self._engine is not engine:
                engine.close()
        _LOG.info("bundle loaded", extra={"fields": {"bundle": str(path)}})

    async def drain(self, seconds: float | None = None) -> bool:
        """Take no new answers and wait for those there are; whether all ended in time (seconds).
        Those that did not have then ended with a :class:`DrainingError`."""
        self._draining = True
        self._notify()
        try:
            async with asyncio.timeout(seconds):
                await self._all_ended()
        except TimeoutError:
            for life in self._lives:
                if not life.expired():
                    life.reschedule(0.0)
            await self._all_ended()
            return False
        return True

    async def _all_ended(self) -> None:
        while self._active or self._waiting:
            self._ended.clear()
            await self._ended.wait()

    # ---- what can be seen --------------------------------------------------------------------

    def status(self) -> ServiceStatus:
        """The daemon at this moment."""
        recent = self._recent
        tokens = [token for result in recent for token in result.tokens]
        seconds = sum(result.seconds for result in recent)
        own = sum(token.origin != "cloud" for token in tokens)
        last = recent[-1] if recent else None
        monitor = self._engine.monitor
        link = "none"
        if self._endpoint is not None:
            link = "lost" if not monitor.alive else "up" if self._link_known else "unknown"
        return ServiceStatus(
            model=self._engine.bundle.manifest.name,
            controls=self._controls,
            draining=self._draining,
            active=self._active,
            waiting=self._waiting,
            link=link,
            rtt_seconds=monitor.conditions().rtt_seconds,
            tokens_per_second=len(tokens) / seconds if seconds else None,
            device_share=own / len(tokens) if tokens else None,
            plan=str(last.plan) if last and last.statistics.escalations else None,
            answers=self._counts[Outcome.FINISHED.value],
            failures=self._counts[Outcome.FAILED.value],
            cancellations=self._counts[Outcome.CANCELLED.value],
            tokens=self._counts["tokens"],
            origins=dict(self._origins),
            uploaded_bytes=self._counts["up"],
            downloaded_bytes=self._counts["down"],
            uptime_seconds=self._clock() - self._started,
        )

    async def changes(self, least_seconds: float = 0.25) -> AsyncGenerator[ServiceStatus, None]:
        """The status now and after every change, at most one in ``least_seconds``."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield self.status()
                await changed.wait()
                await asyncio.sleep(least_seconds)
        finally:
            self._watchers.discard(changed)

    def _notify(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    # ---- engine and link ---------------------------------------------------------------------

    def _load(self, bundle: ModelBundle) -> EdgeEngine:
        engine = EdgeEngine(
            bundle,
            self._precision,
            threads=self._threads,
            endpoint=self._endpoint,
            clock=self._clock,
        )
        if all(self._kept):
            engine.conversations = Conversations(*self._kept)
        return engine

    async def _connect(self) -> None:
        """Keep the connection to the cloud, and look now and then whether it is there."""
        self._lifetime = AsyncExitStack()
        if self._endpoint is None:
            return
        await self._lifetime.enter_async_context(self._engine.connected())
        await self._lifetime.enter_async_context(self._probing())

    @asynccontextmanager
    async def _probing(self) -> AsyncIterator[None]:
        from edge.link_probe import LinkProbe  # noqa: PLC0415  (gRPC: 10 MB, unless alone)

        assert self._engine.channels is not None
        probe = LinkProbe(self._engine.channels, self._engine.monitor, self._clock)

        async def look() -> None:
            while True:
                if not self._active:  # answers measure better, and know sooner
                    before = (self._link_known, self._engine.monitor.alive)
                    await probe.look()
                    self._link_known = True
                    if before != (True, self._engine.monitor.alive):
                        self._tell_link()
                await asyncio.sleep(_PROBE_SECONDS)

        async with in_background(look(), "link probe"):
            yield

    def _tell_link(self) -> None:
        """The link is up or down, and was not, or nobody knew."""
        assert self._endpoint is not None
        address = self._endpoint.address
        if self._engine.monitor.alive:
            _LOG.info("the cloud is there", extra={"fields": {"cloud": address}})
        else:
            _LOG.warning(
                f"the cloud at {address} does not answer: is `tandem cloud serve` running there? "
                "(`tandem doctor` looks closer; it is tried again all the time)"
            )
        self._notify()


def _left(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError | GeneratorExit)
