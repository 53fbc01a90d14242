"""The paper's baseline: for every token the hidden states of the whole context go up, and the cloud
keeps nothing.

Real gRPC, the real cloud: each token is a session of its own on one connection.  Context and
question are sent right behind Open, so that a token costs one round trip, not two.  The edge keeps
its own KV cache, as in the paper; exits are not asked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from edge.cloud_session import FRAMING_BYTES
from edge.context_source import ContextCodec, HiddenStateSource
from edge.generation import GenerationStatistics
from edge.timeline import Timeline
from protos.tandem.v1.collaboration_pb2_grpc import CollaborationStub
from shared.clock import Clock
from shared.errors import CloudUnavailableError, DeadlineExceededError, InvalidMessageError
from shared.messages import (
    PROTOCOL_VERSION,
    SESSION_ID_BYTES,
    Close,
    Closed,
    Context,
    Decision,
    EdgeMessage,
    ErrorReply,
    Escalate,
    Open,
    Opened,
    cloud_message_from_proto,
    edge_message_to_proto,
    error_of,
)
from shared.sampling import GREEDY
from simulator.bench.answer import Answer
from simulator.bench.registry import Bench, Contender, Family, Kind, register

_ROWS = 256
_CHUNK_BYTES = 1 << 20

Body = TypeVar("Body", Opened, Decision, Closed)


class NaiveSplit:
    """Layers up to the cut here, the others there, and the whole context in between each time."""

    def __init__(self, bench: Bench) -> None:
        self._engine = bench.engine
        codec = bench.settings.context
        # this baseline is about hidden states; token ids would be another system
        self._codec = ContextCodec.FP16 if codec is ContextCodec.TOKENS else codec

    async def answer(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        forced_ids: tuple[int, ...] | None = None,
        timeline: Timeline | None = None,
    ) -> Answer:
        engine, clock = self._engine, self._engine.clock
        assert engine.endpoint is not None
        count = max_tokens if forced_ids is None else len(forced_ids)
        statistics = GenerationStatistics(timeline=timeline)
        model = engine.load_model()
        state = model.open(len(prompt_ids) + count)
        source = HiddenStateSource(state, model.architecture.hidden_size, self._codec)
        token_ids: list[int] = []
        first_at = 0.0
        started = clock()
        fingerprint, limit = engine.bundle.manifest.fingerprint, engine.endpoint.answer_seconds
        async with (
            engine.endpoint.channel() as channel,
            _Wire(channel, fingerprint, source, clock, limit) as wire,
        ):
            going_on: Sequence[int] = prompt_ids
            while True:
                began = clock()
                await asyncio.get_running_loop().run_in_executor(
                    engine.worker, partial(state.extend, going_on)
                )
                messages = wire.encode(state.positions)
                asked = clock()
                if timeline is not None:
                    timeline.edge_work(began, asked, state.positions)
                decision = await wire.decide(messages, timeline)
                statistics.waited(asked, clock(), decision)
                statistics.escalations += 1
                token_ids.append(decision.token_id)
                first_at = first_at or clock()
                following = (
                    decision.token_id if forced_ids is None else forced_ids[len(token_ids) - 1]
                )
                if following in engine.stop_token_ids or len(token_ids) == count:
                    break
                going_on = [following]
            seconds = clock() - started
        return Answer(
            token_ids=tuple(token_ids),
            text=engine.decode(token_ids),
            seconds=seconds,
            first_token_seconds=first_at - started,
            stall_seconds=statistics.stall_seconds,
            cloud_seconds=statistics.cloud_seconds,
            requests=len(token_ids),
            uploaded_bytes=wire.uploaded,
            downloaded_bytes=wire.downloaded,
            cloud_layer_positions=wire.layer_positions,
            cloud_busy_seconds=wire.busy_seconds,
            origins={"cloud": len(token_ids)},
        )


@dataclass(frozen=True)
class _Message:
    """A message ready for the wire; ``size`` holds an estimate of its framing."""

    wire: Any
    size: int
    context: Context | None = None


class _Wire:
    """One connection and a session for each question; bytes are counted as the edge counts its
    own.  Leaving the block waits for what the sessions cost the cloud."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        fingerprint: str,
        source: HiddenStateSource,
        clock: Clock,
        limit: float,
    ) -> None:
        self._stub = CollaborationStub(channel)  # type: ignore[no-untyped-call]
        self._fingerprint, self._source, self._clock = fingerprint, source, clock
        self._limit = limit
        self._closing: list[asyncio.Task[None]] = []
        self.uploaded = self.downloaded = self.layer_positions = 0
        self.busy_seconds = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for task in self._closing:
                task.cancel()
        outcomes = await asyncio.gather(*self._closing, return_exceptions=True)
        failed = next((o for o in outcomes if isinstance(o, BaseException)), None)
        if error is None and failed is not None:
            raise failed

    def encode(self, positions: int) -> list[_Message]:
        """A whole session: Open, the context so far, the question, Close."""
        rows = max(1, min(_ROWS, _CHUNK_BYTES // self._source.bytes_per_position))
        bodies: list[Open | Context | Escalate | Close] = [
            Open(
                PROTOCOL_VERSION,
                secrets.token_bytes(SESSION_ID_BYTES),
                self._fingerprint,
                GREEDY,
                self._source.kind,
            )
        ]
        for start in range(0, positions, rows):
            stop = min(positions, start + rows)
            bodies.append(Context(start, self._source.payload(start, stop)))
        bodies += [Escalate(positions), Close()]
        return [_message(step, body) for step, body in enumerate(bodies, start=1)]

    async def decide(self, messages: Sequence[_Message], timeline: Timeline | None) -> Decision:
        """Send a session up to its question, read the answer, and close it behind the edge's back.

        Raises:
            TandemError: the cloud's own error, or one that says how the session ended.
        """
        call = self._stub.Session()
        # reads while it writes: gRPC forgets what the cloud said last once a write has failed
        answer = asyncio.create_task(self._answer(call))
        try:
            async with self._deadline("decide"):
                with suppress(CloudUnavailableError):  # the answer tells why
                    for message in messages[:-1]:
                        await self._write(call, message, timeline)
                decision = await answer
        except BaseException:
            answer.cancel()
            await asyncio.wait([answer])
            call.cancel()
            raise
        self._closing.append(asyncio.create_task(self._close(call, messages[-1])))
        return decision

    async def _answer(self, call: Any) -> Decision:
        await self._read(call, Opened)
        return await self._read(call, Decision)

    async def _close(self, call: Any, message: _Message) -> None:
        try:
            async with self._deadline("close"):
                await self._write(call, message, None)
                closed = await self._read(call, Closed)
        finally:
            call.cancel()
        self.layer_positions += closed.layer_positions
        self.busy_seconds += closed.compute_microseconds / 1e6

    @asynccontextmanager
    async def _deadline(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limit):
                yield
        except TimeoutError:
            raise DeadlineExceededError(
                f"the cloud did not {what} the naive split's session within {self._limit:g} s"
            ) from None

    async def _write(self, call: Any, message: _Message, timeline: Timeline | None) -> None:
        self.uploaded += message.size
        async with _typed_errors(call):
            await call.write(message.wire)
        if timeline is not None and message.context is not None:
            context = message.context
            timeline.upload(self._clock(), context.position, context.count, message.size)

    async def _read(self, call: Any, kind: type[Body]) -> Body:
        async with _typed_errors(call):
            wire = await call.read()
            if wire is grpc.aio.EOF:
                raise await _ended(call)
        self.downloaded += wire.ByteSize() + FRAMING_BYTES
        body = cloud_message_from_proto(wire).body
        if isinstance(body, ErrorReply):
            raise error_of(body)
        if not isinstance(body, kind):
            raise InvalidMessageError(
                f"the cloud sent {type(body).__name__} where {kind.__name__} was due"
            )
        return body


def _message(step: int, body: Open | Context | Escalate | Close) -> _Message:
    wire = edge_message_to_proto(EdgeMessage(step, body))
    size = int(wire.ByteSize()) + FRAMING_BYTES
    return _Message(wire, size, body if isinstance(body, Context) else None)


@asynccontextmanager
async def _typed_errors(call: Any) -> AsyncIterator[None]:
    """gRPC's ways of saying that a call is over as an error of ours."""
    try:
        yield
    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
        raise await _ended(call) from None


async def _ended(call: Any) -> CloudUnavailableError:
    """With the status that the call, which is over, ended with."""
    code, details = await call.code(), await call.details()
    said = f": {details}" if details else ""
    return CloudUnavailableError(f"the naive split's session ended with {code.name}{said}")


@asynccontextmanager
async def _open(bench: Bench, _argument: float | None) -> AsyncIterator[Contender]:
    yield NaiveSplit(bench)


register(
    Family(
        name="naive-split",
        summary="hidden states of the whole context for every token, nothing kept (the paper's "
        "naive baseline)",
        kind=Kind.BASELINE,
        open=_open,
        costly=True,
    )
)
