"""The naive split against a cloud that misbehaves: typed errors, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from edge import context_source
from edge.context_source import ContextCodec
from protos.tandem.v1.collaboration_pb2_grpc import (
    CollaborationServicer,
    add_CollaborationServicer_to_server,
)
from shared.errors import (
    BudgetExceededError,
    CloudUnavailableError,
    DeadlineExceededError,
    InvalidMessageError,
    TandemError,
)
from shared.messages import (
    Close,
    Closed,
    CloudMessage,
    Context,
    Decision,
    Escalate,
    Open,
    Opened,
    cloud_message_to_proto,
    edge_message_from_proto,
    error_reply,
)
from shared.tensor_codec import EncodedTensor, encode
from simulator.bench.naive_split import NaiveSplit
from simulator.bench.plan import BenchSettings
from simulator.bench.registry import Bench
from tests.edge_harness import edge_engine

SECONDS = 0.5
PROMPT = (5, 77, 200)
TOKEN = 42
Say = Callable[[Any], Awaitable[None]]
# what the cloud does at a message of the edge's, in place of what it should
Act = Callable[[Say, grpc.aio.ServicerContext], Awaitable[None]]


class FakeCloud(CollaborationServicer):
    """Answers :data:`TOKEN` always; ``faults`` says where it does something else."""

    def __init__(self, faults: dict[type, Act]) -> None:
        self._faults = faults

    async def Session(self, requests: Any, context: Any) -> None:
        async def say(body: Any) -> None:
            await context.write(cloud_message_to_proto(CloudMessage(1, body)))

        async for wire in requests:
            body = edge_message_from_proto(wire).body
            if type(body) in self._faults:
                await self._faults[type(body)](say, context)
                continue
            match body:
                case Open():
                    await say(Opened(0, 4096, 1 << 20, 64))
                case Escalate():
                    await say(Decision(body.position, TOKEN, -0.5, 1000))
                case Close():
                    await say(Closed(12, 1000))
                    return
                case _:
                    assert isinstance(body, Context)


@asynccontextmanager
async def naive(faults: dict[type, Act]) -> AsyncIterator[NaiveSplit]:
    server = grpc.aio.server()
    add_CollaborationServicer_to_server(FakeCloud(faults), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = BenchSettings(4, ContextCodec.FP16, "float32", 1, 1, 0)
    try:
        async with edge_engine(f"127.0.0.1:{port}", answer_seconds=SECONDS) as engine:
            yield NaiveSplit(Bench(engine, settings, None))
    finally:
        await server.stop(0)


async def mute(_say: Say, _context: grpc.aio.ServicerContext) -> None:
    await asyncio.Event().wait()


async def end(_say: Say, context: grpc.aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more of these")


async def report(say: Say, context: grpc.aio.ServicerContext) -> None:
    """As the cloud does it: tell the error, then end the stream."""
    await say(error_reply(BudgetExceededError("too much")))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "told already")


async def open_again(say: Say, _context: grpc.aio.ServicerContext) -> None:
    await say(Opened(0, 4096, 1 << 20, 64))


async def test_the_fake_is_otherwise_a_cloud() -> None:
    async with naive({}) as contender:
        answer = await contender.answer(PROMPT, 3)
    assert answer.token_ids == (TOKEN,) * 3
    assert (answer.cloud_layer_positions, answer.requests) == (3 * 12, 3)


REPORTED = (report, BudgetExceededError, "too much")
# gRPC makes it INTERNAL where a write of the edge's fails first
CUT_SHORT = (end, CloudUnavailableError, "session ended with (RESOURCE_EXHAUSTED|INTERNAL): ")
ENDED = (end, CloudUnavailableError, "session ended with RESOURCE_EXHAUSTED: no more of these")


@pytest.mark.parametrize(
    ("at", "act", "error", "says"),
    [
        *((at, *REPORTED) for at in (Open, Context, Escalate, Close)),
        *((at, *CUT_SHORT) for at in (Open, Context)),
        *((at, *ENDED) for at in (Escalate, Close)),
    ],
)
async def test_what_the_session_ended_with_is_told(
    at: type, act: Act, error: type[TandemError], says: str
) -> None:
    async with naive({at: act}) as contender:
        with pytest.raises(error, match=says):
            async with asyncio.timeout(30):
                await contender.answer(PROMPT, 3)


@pytest.mark.parametrize(("at", "step"), [(Open, "decide"), (Escalate, "decide"), (Close, "close")])
async def test_a_mute_cloud_is_an_error_in_bounded_time(at: type, step: str) -> None:
    async with naive({at: mute}) as contender:
        with pytest.raises(DeadlineExceededError, match=rf"did not {step} .* within 0.5 s"):
            async with asyncio.timeout(30):
                await contender.answer(PROMPT, 3)


@pytest.mark.parametrize(("at", "due"), [(Escalate, "Decision"), (Close, "Closed")])
async def test_a_message_out_of_turn_is_an_error(at: type, due: str) -> None:
    async with naive({at: open_again}) as contender:
        with pytest.raises(InvalidMessageError, match=f"sent Opened where {due} was due"):
            async with asyncio.timeout(30):
                await contender.answer(PROMPT, 3)


async def test_encoding_the_context_is_the_edges_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow(states: Any, *arguments: Any, **options: Any) -> EncodedTensor:
        nonlocal now
        now += 10.0
        return encode(np.asarray(states), *arguments, **options)

    monkeypatch.setattr(context_source, "encode", slow)
    async with naive({}) as contender:
        monkeypatch.setattr(contender._engine, "clock", lambda: now)
        answer = await contender.answer(PROMPT, 3)
    assert answer.split.edge == 30.0
    assert answer.split.link == 0.0
