"""The gRPC side of a session: one bidirectional stream, its errors and its end.

A stream opens a session of the context store, hands messages to that session's engine in the order
they come, and sends what the engine decides.  Messages are read as bytes and parsed here, so that
bytes which are no message end their session like any other bad message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from cloud.auth import Authenticator
from cloud.batcher import Batcher
from cloud.context_manager import ContextStore
from cloud.held_session import HeldSession, SessionKey
from cloud.metrics import UNKNOWN_TENANT, CloudMetrics
from cloud.quotas import TenantQuotas, TenantRates
from cloud.row_decoder import RowDecoder
from cloud.session_engine import SessionEngine
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.clock import Clock, monotonic
from shared.errors import (
    AuthenticationError,
    BudgetExceededError,
    CloudInternalError,
    CloudShuttingDownError,
    ContextGapError,
    FingerprintMismatchError,
    InvalidMessageError,
    ProtocolVersionError,
    SessionTakenOverError,
    TandemError,
)
from shared.logs import about
from shared.messages import (
    Close,
    Closed,
    CloudMessage,
    Context,
    EdgeMessage,
    Escalate,
    Open,
    Opened,
    Truncate,
    cloud_message_to_proto,
    edge_message_from_bytes,
    error_reply,
)
from shared.model_bundle import Manifest

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Collaboration"].full_name
SESSION_METHOD = f"/{SERVICE_NAME}/Session"
OPEN_SECONDS = 10.0
TAKEOVER_SECONDS = 30.0
# for what is open when the drain's time is up: longer than a pass, whatever edges do
DRAIN_GRACE_SECONDS = 5.0
_LAST_WORDS_SECONDS = 5.0

_LOG = logging.getLogger("tandem.cloud")

# the first class that an error is an instance of names its status, so subclasses come first
_STATUS: tuple[tuple[type[TandemError], grpc.StatusCode], ...] = (
    (ProtocolVersionError, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidMessageError, grpc.StatusCode.INVALID_ARGUMENT),
    (FingerprintMismatchError, grpc.StatusCode.FAILED_PRECONDITION),
    (ContextGapError, grpc.StatusCode.FAILED_PRECONDITION),
    (BudgetExceededError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SessionTakenOverError, grpc.StatusCode.ABORTED),
    (CloudShuttingDownError, grpc.StatusCode.UNAVAILABLE),
    (AuthenticationError, grpc.StatusCode.UNAUTHENTICATED),
)


class _EdgeLeftError(Exception):
    """The edge takes no message: its connection is gone, or it has read nothing for too long."""


class _Stream:
    """One RPC: typed messages in and out, and the wish of others that it end.

    ``patience`` is how many seconds a message may wait for the edge to take it.
    """

    def __init__(
        self,
        requests: AsyncIterator[bytes],
        context: Any,
        metrics: CloudMetrics,
        patience: float,
    ) -> None:
        self.context = context
        self.usage = metrics.tenant(UNKNOWN_TENANT)
        self._errors = metrics.errors
        self.ended = asyncio.Event()
        self.last_step = 0
        self._requests, self._patience = requests, patience
        self._writing: asyncio.Future[None] | None = None
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive(self) -> EdgeMessage | None:
        """The next message, ``None`` after the last."""
        try:
            data = await anext(self._requests)
        except StopAsyncIteration:
            return None
        self.usage.received_bytes.inc(len(data))
        message = edge_message_from_bytes(data)
        self.last_step = message.step
        return message

    async def send(self, message: CloudMessage, patience: float | None = None) -> None:
        """Send a message; it may wait for ``patience`` seconds, or as long as any other."""
        patience = self._patience if patience is None else patience
        data = cloud_message_to_proto(message).SerializeToString()
        self.usage.sent_bytes.inc(len(data))
        try:
            async with asyncio.timeout(patience):
                # gRPC takes one write at a time, and goes on with one whose sender was cancelled
                if self._writing is not None:
                    await asyncio.shield(self._writing)
                self._writing = asyncio.ensure_future(self.context.write(data))
                self._writing.add_done_callback(_ignore_failure)
                await asyncio.shield(self._writing)
        except TimeoutError:
            raise _EdgeLeftError(f"no answer was read in {patience:g} s") from None
        except grpc.aio.BaseError:
            raise _EdgeLeftError("the connection is gone") from None

    def give_up(self) -> None:
        """Wait no longer for the edge to take what was written."""
        if self._writing is not None:
            self._writing.cancel()

    def end(self, error: TandemError) -> None:
        """Make the stream end with ``error``."""
        if not self._end.done():
            self._end.set_exception(error)
            self._end.exception()  # the stream may end before it looks

    async def watch(self) -> None:
        """Wait until the stream is told to end, and raise what it is to end with."""
        await self._end

    async def fail(self, error: TandemError) -> None:
        """Say why in a message (where the edge takes one), then in gRPC's words, which wait behind
        what was not read; raises, as ``abort`` does, unless the connection ends before."""
        reply = error_reply(error)
        self._errors.labels(reply.code.name).inc()
        with contextlib.suppress(_EdgeLeftError):
            await self.send(CloudMessage(self.last_step, reply), _LAST_WORDS_SECONDS)
        status = next((s for kind, s in _STATUS if isinstance(error, kind)), None)
        try:
            await self.context.abort(
                status or grpc.StatusCode.INTERNAL, f"{reply.code.name}: {reply.message}"
            )
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError:
            _LOG.debug("edge left", extra=about(reason="it did not wait for the error's status"))


def _ignore_failure(writing: asyncio.Future[None]) -> None:
    """Whoever still waits for a write is told of its failure; where nobody does, it is no news."""
    if not writing.cancelled():
        writing.exception()


class CollaborationService:
    """Serves ``tandem.v1.Collaboration``."""

    def __init__(
        self,
        manifest: Manifest,
        store: ContextStore,
        batcher: Batcher,
        authenticator: Authenticator,
        decoder: RowDecoder,
        *,
        max_message_bytes: int,
        credits: int,
        quotas: TenantQuotas,
        look_at_quotas: Callable[[], None],
        metrics: CloudMetrics,
        clock: Clock = monotonic,
    ) -> None:
        self._manifest, self._store, self._batcher = manifest, store, batcher
        self._authenticator, self._decoder = authenticator, decoder
        self._max_message_bytes, self._credits = max_message_bytes, credits
        self._metrics, self._clock = metrics, clock
        self._look_at_quotas = look_at_quotas
        self._rates = TenantRates(quotas, metrics, clock=clock)
        self._streams: dict[SessionKey, _Stream] = {}
        self._draining = False
        self._changed = asyncio.Condition()

    def handler(self) -> Any:
        """The generic handler to add to a gRPC server."""
        session = grpc.stream_stream_rpc_method_handler(self._answer)  # bytes in, bytes out
        return grpc.method_handlers_generic_handler(SERVICE_NAME, {"Session": session})

    @property
    def open_streams(self) -> int:
        """Sessions that have a stream at the moment."""
        return len(self._streams)

    async def drain(self, seconds: float) -> None:
        """Take no new stream; give those that are open ``seconds`` to end, then end them, which
        takes ``DRAIN_GRACE_SECONDS`` at most."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: not self._streams)
        except TimeoutError:
            streams = list(self._streams.values())
            for stream in streams:
                stream.end(CloudShuttingDownError("the cloud is shutting down"))
            try:
                async with asyncio.timeout(DRAIN_GRACE_SECONDS):
                    for stream in streams:
                        await stream.ended.wait()
            except TimeoutError:
                _LOG.warning("streams do not end", extra=about(streams=self.open_streams))

    async def _answer(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """A call from gRPC itself.  Its headers go out first, which no edge can hold up: behind a
        first message that is not read, gRPC would send them again with the status, and fail."""
        await context.send_initial_metadata(())
        await self.session(requests, context)

    async def session(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Serve one stream; whatever goes wrong ends this session alone."""
        stream = _Stream(requests, context, self._metrics, self._store.idle_seconds)
        try:
            await self._serve(stream)
        except Exception as error:
            failure = _typed(error)
            if failure is not error:
                _LOG.error("a stream could not be opened", exc_info=error)
            await stream.fail(failure)
        finally:
            stream.give_up()

    async def _serve(self, stream: _Stream) -> None:
        context = stream.context
        tenant = self._authenticator.tenant(context.invocation_metadata(), context.auth_context())
        stream.usage = self._metrics.tenant(tenant)
        step, opening = await _first_message(stream)
        if opening.bundle_fingerprint != self._manifest.fingerprint:
            raise FingerprintMismatchError(
                f"the edge's bundle is {opening.bundle_fingerprint[:12]}, the cloud's "
                f"{self._manifest.fingerprint[:12]}: prepare both from the same model"
            )
        key = SessionKey(tenant, opening.session_id)
        await self._end_older(key)
        if self._draining:
            raise CloudShuttingDownError("the cloud is shutting down")
        self._look_at_quotas()
        session = self._store.open(key, opening.sampling, opening.context_kind)
        self._streams[key] = stream
        stream.usage.opened.inc()
        stream.usage.streams.inc()
        _LOG.info("session opened", extra=about(key, held=session.held))
        try:
            await self._serve_session(stream, session, step)
        except Exception as error:
            if isinstance(_first(error), _EdgeLeftError):
                _LOG.info("edge left", extra=about(key, reason=_first(error)))
                return
            failure = _typed(error)
            if isinstance(failure, InvalidMessageError | CloudInternalError):
                self._store.drop(session)
            ours = isinstance(failure, CloudInternalError)
            _LOG.log(
                logging.ERROR if ours else logging.INFO,
                "session failed",
                exc_info=error if ours else None,
                extra=about(key, code=error_reply(failure).code.name, reason=failure),
            )
            raise failure from None
        finally:
            del self._streams[key]
            stream.usage.streams.dec()
            stream.ended.set()
            self._store.release(session)
            async with self._changed:
                self._changed.notify_all()

    async def _end_older(self, key: SessionKey) -> None:
        """End the stream that a session has, as another goes on with it."""
        try:
            async with asyncio.timeout(TAKEOVER_SECONDS):
                while older := self._streams.get(key):
                    older.end(SessionTakenOverError("another stream goes on with this session"))
                    await older.ended.wait()
        except TimeoutError:
            raise CloudInternalError(
                f"the session's older stream has not ended in {TAKEOVER_SECONDS:.0f} s: try again"
            ) from None

    async def _serve_session(self, stream: _Stream, session: HeldSession, step: int) -> None:
        """Answer the Open of ``step`` and read until the edge closes the session or its side of the
        stream."""
        limits = Opened(
            session.held,
            self._manifest.architecture.max_positions,
            self._max_message_bytes,
            self._credits,
            self._store.store_id,
        )
        engine = SessionEngine(
            session,
            self._store,
            self._batcher,
            self._manifest,
            stream.send,
            stream.usage,
            self._rates.of(session.key.tenant),
            self._clock,
            credits=self._credits,
        )
        async with asyncio.TaskGroup() as group:
            # whatever waits for the edge in here is ended where others want that
            watching = group.create_task(stream.watch(), name=f"watch {session.key}")
            await stream.send(CloudMessage(step, limits))
            running = group.create_task(engine.run(), name=f"engine {session.key}")
            closed = await self._read(stream, session, engine)
            running.cancel()
            await asyncio.wait([running])
            if closed is not None:
                _LOG.info("session closed", extra=about(session.key, positions=session.held))
                self._store.drop(session)
                await stream.send(closed)
            watching.cancel()

    async def _read(
        self, stream: _Stream, session: HeldSession, engine: SessionEngine
    ) -> CloudMessage | None:
        """Hand messages to the engine; return the answer to Close, ``None`` without one."""
        decode = self._decoder.rows
        while message := await self._next(stream, session):
            match message.body:
                case Context(position, payload):
                    count, unpack = message.body.count, partial(decode, session.kind, payload)
                    await engine.add_context(message.step, position, count, unpack)
                case Escalate() as question:
                    await engine.escalate(message.step, question)
                case Truncate(position):
                    await engine.truncate(message.step, position)
                case Close():
                    await engine.stop()
                    microseconds = round(session.compute_seconds * 1e6)
                    return CloudMessage(message.step, Closed(session.layer_positions, microseconds))
                case Open():
                    raise InvalidMessageError("a stream opens one session, once")
        await engine.finish()
        return None

    async def _next(self, stream: _Stream, session: HeldSession) -> EdgeMessage | None:
        """The next message; a stream that says nothing for as long as an idle session is kept
        ends as if the edge had left, and its session becomes one that can be evicted."""
        try:
            async with asyncio.timeout(self._store.idle_seconds):
                return await stream.receive()
        except TimeoutError:
            _LOG.info("session silent", extra=about(session.key, seconds=self._store.idle_seconds))
            return None


async def _first_message(stream: _Stream) -> tuple[int, Open]:
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            message = await stream.receive()
    except TimeoutError:
        raise InvalidMessageError(f"no message within {OPEN_SECONDS:.0f} s") from None
    if message is None or not isinstance(message.body, Open):
        raise InvalidMessageError("the first message of a stream is Open")
    return message.step, message.body


def _first(error: BaseException) -> BaseException:
    """What a group's first error is in the end."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _typed(error: BaseException) -> TandemError:
    """The typed error behind ``error``; anything else is a fault of ours, told to nobody else."""
    error = _first(error)
    if isinstance(error, TandemError):
        return error
    return CloudInternalError("the cloud failed; its log says why")
