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
import numpy as np
import numpy.typing as npt

from cloud.auth import Authenticator
from cloud.batcher import Batcher
from cloud.context_manager import ContextStore
from cloud.held_session import HeldSession, SessionKey
from cloud.metrics import UNKNOWN_TENANT, CloudMetrics
from cloud.quotas import EscalationRates, TenantQuotas
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
    ContextKind,
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
from shared.tensor_codec import EncodedTensor, decode

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Collaboration"].full_name
SESSION_METHOD = f"/{SERVICE_NAME}/Session"
OPEN_SECONDS = 10.0
# of hidden states in one message: unpacking keeps the event loop from everybody else
MAX_ROWS = 1024

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
        self._write_pending = False
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

    async def send(self, message: CloudMessage) -> None:
        data = cloud_message_to_proto(message).SerializeToString()
        self.usage.sent_bytes.inc(len(data))
        # a write that is given up stays pending in gRPC, which takes no other beside it
        self._write_pending = True
        try:
            async with asyncio.timeout(self._patience):
                await self.context.write(data)
        except TimeoutError:
            raise _EdgeLeftError(f"no answer was read in {self._patience:g} s") from None
        except grpc.aio.BaseError:
            raise _EdgeLeftError("the connection is gone") from None
        self._write_pending = False

    def end(self, error: TandemError) -> None:
        """Make the stream end with ``error``."""
        if not self._end.done():
            self._end.set_exception(error)
            self._end.exception()  # the stream may end before it looks

    async def watch(self) -> None:
        """Wait until the stream is told to end, and raise what it is to end with."""
        await self._end

    async def fail(self, error: TandemError) -> None:
        """Say why in a message (where the edge takes one), then in gRPC's words; raises, as
        ``abort`` does."""
        reply = error_reply(error)
        self._errors.labels(reply.code.name).inc()
        if not self._write_pending:
            with contextlib.suppress(_EdgeLeftError):
                await self.send(CloudMessage(self.last_step, reply))
        status = next((s for kind, s in _STATUS if isinstance(error, kind)), None)
        await self.context.abort(
            status or grpc.StatusCode.INTERNAL, f"{reply.code.name}: {reply.message}"
        )


class CollaborationService:
    """Serves ``tandem.v1.Collaboration``."""

    def __init__(
        self,
        manifest: Manifest,
        store: ContextStore,
        batcher: Batcher,
        authenticator: Authenticator,
        *,
        max_message_bytes: int,
        credits: int,
        quotas: TenantQuotas,
        look_at_quotas: Callable[[], None],
        metrics: CloudMetrics,
        clock: Clock = monotonic,
    ) -> None:
        self._manifest, self._store, self._batcher = manifest, store, batcher
        self._authenticator = authenticator
        self._max_message_bytes, self._credits = max_message_bytes, credits
        self._metrics, self._clock = metrics, clock
        self._look_at_quotas = look_at_quotas
        self._rates = EscalationRates(quotas, metrics, clock=clock)
        self._streams: dict[SessionKey, _Stream] = {}
        self._draining = False
        self._changed = asyncio.Condition()

    def handler(self) -> Any:
        """The generic handler to add to a gRPC server."""
        session = grpc.stream_stream_rpc_method_handler(self.session)  # bytes in, bytes out
        return grpc.method_handlers_generic_handler(SERVICE_NAME, {"Session": session})

    @property
    def open_streams(self) -> int:
        """Sessions that have a stream at the moment."""
        return len(self._streams)

    async def drain(self, seconds: float) -> None:
        """Take no new stream; give those that are open ``seconds`` to end, then end them."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: not self._streams)
        except TimeoutError:
            streams = list(self._streams.values())
            for stream in streams:
                stream.end(CloudShuttingDownError("the cloud is shutting down"))
            for stream in streams:
                await stream.ended.wait()

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
        while older := self._streams.get(key):
            older.end(SessionTakenOverError("another stream goes on with this session"))
            await older.ended.wait()
        if self._draining:
            raise CloudShuttingDownError("the cloud is shutting down")
        self._look_at_quotas()
        session = self._store.open(key, opening.sampling, opening.context_kind)
        self._streams[key] = stream
        stream.usage.opened.inc()
        stream.usage.streams.inc()
        _LOG.info("session opened", extra=about(key, held=session.held))
        try:
            limits = Opened(
                session.held,
                self._manifest.architecture.max_positions,
                self._max_message_bytes,
                self._credits,
                self._store.store_id,
            )
            await stream.send(CloudMessage(step, limits))
            await self._serve_session(stream, session)
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

    async def _serve_session(self, stream: _Stream, session: HeldSession) -> None:
        """Read until the edge closes the session or its side of the stream."""
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
            running = group.create_task(engine.run(), name=f"engine {session.key}")
            watching = group.create_task(stream.watch(), name=f"watch {session.key}")
            closed = await self._read(stream, session, engine)
            running.cancel()
            watching.cancel()
        if closed is not None:
            _LOG.info("session closed", extra=about(session.key, positions=session.held))
            self._store.drop(session)
            await stream.send(closed)

    async def _read(
        self, stream: _Stream, session: HeldSession, engine: SessionEngine
    ) -> CloudMessage | None:
        """Hand messages to the engine; return the answer to Close, ``None`` without one."""
        while message := await self._next(stream, session):
            match message.body:
                case Context(position, payload):
                    await engine.add_context(
                        message.step, position, partial(self._rows, session, payload)
                    )
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

    def _rows(
        self, session: HeldSession, payload: EncodedTensor | tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Decoded hidden states, or token ids, checked against the model."""
        arch = self._manifest.architecture
        if isinstance(payload, EncodedTensor):
            if session.kind is not ContextKind.HIDDEN_STATES:
                raise InvalidMessageError("hidden states in a session of token ids")
            return decode(payload, max_rows=MAX_ROWS, columns=arch.hidden_size)
        if session.kind is not ContextKind.TOKEN_IDS:
            raise InvalidMessageError("token ids in a session of hidden states")
        if max(payload) >= arch.vocabulary_size:
            raise InvalidMessageError(
                f"a token id is not in the vocabulary of {arch.vocabulary_size}"
            )
        return np.array(payload, np.int32)


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
