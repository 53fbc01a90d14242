"""Edges that ask and do not read: they wait, nobody else does, and what they hold is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest

from cloud.eviction import StoreLimits
from cloud.server import CloudServer
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.messages import (
    Context,
    Decision,
    ErrorReply,
    Escalate,
    Truncate,
    cloud_message_from_proto,
)
from tests.cloud_harness import (
    PROMPT,
    WAIT_SECONDS,
    Edge,
    bystander,
    edge,
    eventually,
    full_model,
    serving,
    tiny_bundle,
)
from tests.cloud_process import MIB, CloudProcess, plain_edge
from tests.edge_harness import edge_engine, full_answer, ids_of, options_for

BUNDLE = tiny_bundle()
FULL = full_model()
START = len(PROMPT)
QUESTIONS = 80  # their answers are far more than gRPC keeps for a reader
BURST = 400
READERS = 3
# of messages that gRPC takes from the wire before the cloud asks for them
BYTES_OF_A_READER = 16 * MIB


async def ask_and_do_not_read(slow: Edge, questions: int = QUESTIONS) -> None:
    await slow.open()
    await slow.send(Context(0, PROMPT))
    for _ in range(questions):
        await slow.send(Escalate(START, BURST))


async def comes_to_rest(value: Callable[[], Awaitable[float]]) -> None:
    """Wait until ``value`` is above zero and stays the same for a while."""
    before = 0.0
    async with asyncio.timeout(WAIT_SECONDS):
        while (now := await value()) == 0 or now != before:
            before = now
            await asyncio.sleep(0.3)


async def read_to_the_end(slow: Edge) -> list[Decision]:
    decisions: list[Decision] = []
    with contextlib.suppress(grpc.aio.AioRpcError):  # tests look at the status
        while (data := await slow.call.read()) is not grpc.aio.EOF:
            body = cloud_message_from_proto(pb.CloudMessage.FromString(data)).body
            if not isinstance(body, ErrorReply):
                assert isinstance(body, Decision)
                decisions.append(body)
    return decisions


def sent_bytes(server: CloudServer) -> Callable[[], Awaitable[float]]:
    async def value() -> float:
        sample = server.metrics.registry.get_sample_value(
            "tandem_cloud_sent_bytes_total", {"tenant": "default"}
        )
        return sample or 0.0

    return value


@pytest.fixture
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    # in a teardown, `records` are the teardown's own
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]


@pytest.mark.usefixtures("no_error_is_logged")
async def test_another_stream_takes_over_from_one_that_does_not_read() -> None:
    async with (
        serving() as server,
        plain_edge(server.address) as slow,
        edge(server, BUNDLE, session_id=slow.session_id) as newer,
    ):
        await ask_and_do_not_read(slow)
        async with bystander(server, BUNDLE, FULL):
            await comes_to_rest(sent_bytes(server))
            assert (await newer.open()).held_positions >= START
            await newer.send(Truncate(START))
            assert await newer.decide(START) == FULL.continuation(PROMPT, 1)
            await newer.close()
        decisions = await read_to_the_end(slow)
        assert len(decisions) < QUESTIONS * len(full_answer(PROMPT, BURST + 1))
        assert await slow.status() is grpc.StatusCode.ABORTED


@pytest.mark.usefixtures("no_error_is_logged")
async def test_an_edge_that_vanishes_behind_its_answers_can_resume() -> None:
    async with serving() as server, edge(server, BUNDLE) as back:
        async with plain_edge(server.address, session_id=back.session_id) as slow:
            await ask_and_do_not_read(slow)
            await comes_to_rest(sent_bytes(server))
        await eventually(lambda: server.service.open_streams == 0)
        assert (await back.open()).held_positions >= START
        await back.send(Truncate(START))
        assert await back.decide(START) == FULL.continuation(PROMPT, 1)


@pytest.mark.usefixtures("no_error_is_logged")
async def test_an_edge_that_reads_late_gets_every_answer() -> None:
    wanted = full_answer(PROMPT, BURST + 1)
    async with serving() as server, plain_edge(server.address) as slow:
        await ask_and_do_not_read(slow)
        await slow.call.done_writing()
        async with bystander(server, BUNDLE, FULL):
            await comes_to_rest(sent_bytes(server))
        decisions = await read_to_the_end(slow)
        assert [decision.token_id for decision in decisions] == wanted * QUESTIONS
        assert await slow.status() is grpc.StatusCode.OK


@pytest.mark.usefixtures("no_error_is_logged")
async def test_a_stream_that_takes_nothing_for_as_long_as_an_idle_session_lives_is_ended() -> None:
    async with (
        serving(limits=StoreLimits(idle_seconds=1.0)) as server,
        plain_edge(server.address) as slow,
    ):
        await ask_and_do_not_read(slow)
        await comes_to_rest(sent_bytes(server))
        await eventually(lambda: server.service.open_streams == 0)
        async with bystander(server, BUNDLE, FULL):
            await read_to_the_end(slow)
        assert await slow.status() is grpc.StatusCode.OK  # as if it had left


async def test_slow_readers_hold_bounded_memory_and_nobody_up() -> None:
    """They send on as well, as much as the cloud takes, while it waits for them to read."""
    more = Context(0, PROMPT * 80)

    async def flood(slow: Edge) -> None:
        await ask_and_do_not_read(slow)
        while not slow.call.done():
            await slow.send(more)

    async with CloudProcess(drain_seconds=0.5) as cloud:
        descriptors = cloud.descriptors
        options = options_for(use_exits=False)
        async with edge_engine(cloud.address) as engine:
            assert ids_of(await engine.generate(PROMPT, options)) == full_answer(PROMPT, 24)
            resident = cloud.resident_bytes
            async with AsyncExitStack() as stack:
                floods = []
                for _ in range(READERS):
                    slow = await stack.enter_async_context(plain_edge(cloud.address))
                    floods.append(asyncio.create_task(flood(slow)))
                await comes_to_rest(lambda: cloud.metric("sent_bytes_total"))
                assert await cloud.metric("streams") == READERS
                assert ids_of(await engine.generate(PROMPT, options)) == full_answer(PROMPT, 24)
                assert cloud.resident_bytes - resident < READERS * BYTES_OF_A_READER
                del slow
            await asyncio.wait(floods)
            floods.clear()
        await cloud.has("streams", 0)
        await cloud.comes_to(lambda: cloud.descriptors == descriptors)
        assert "ERROR" not in cloud.log

        async with plain_edge(cloud.address) as slow:
            await ask_and_do_not_read(slow)
            await cloud.stop()
        assert cloud.exit_code == 0  # it did not have to be killed
