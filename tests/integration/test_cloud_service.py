"""The cloud over real gRPC on loopback: what an edge that keeps to the protocol sees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud import collaboration_service
from cloud.auth import add_token
from cloud.collaboration_service import SERVICE_NAME
from cloud.fair_queue import CATCH_UP_FROM
from cloud.server import CloudServer
from cloud.session_engine import SessionEngine
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import ConfigurationError
from shared.messages import (
    PROTOCOL_VERSION,
    Context,
    ContextKind,
    Decision,
    EdgeMessage,
    ErrorCode,
    ErrorReply,
    Escalate,
    Open,
    Opened,
    Truncate,
    cloud_message_from_proto,
    edge_message_to_proto,
)
from shared.sampling import GREEDY, Sampling
from shared.tensor_codec import Encoding
from tests.cloud_harness import (
    PROMPT,
    Edge,
    closed_gate,
    edge,
    eventually,
    full_model,
    hidden_context,
    serving,
    settings_for,
    tiny_bundle,
)

BUNDLE = tiny_bundle()
FULL = full_model()
START = len(PROMPT)


async def test_token_ids_one_by_one_give_the_full_models_tokens() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        opened = await client.open()
        assert (opened.held_positions, opened.max_positions) == (0, 512)
        ids = list(PROMPT)
        await client.send(Context(0, PROMPT))
        for _ in range(10):
            ids += await client.decide(len(ids))
            await client.send(Context(len(ids) - 1, (ids[-1],)))
        assert ids[START:] == FULL.continuation(PROMPT, 10)


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_hidden_states_in_every_encoding_are_accepted(encoding: Encoding) -> None:
    hidden, logits = FULL.run(PROMPT)
    kind = ContextKind.HIDDEN_STATES
    async with serving() as server, edge(server, BUNDLE, kind=kind) as client:
        await client.open()
        await client.send(hidden_context(hidden, 0, encoding))
        (token,) = await client.decide(START)
        if encoding is not Encoding.INT4:
            assert token == logits[-1].argmax()
        closed = await client.close()
        assert closed.layer_positions == START * (6 - FULL.cut)
        assert closed.compute_microseconds > 0


async def test_hidden_states_in_pieces_give_the_full_models_tokens() -> None:
    kind, sampling = ContextKind.HIDDEN_STATES, Sampling(0.9, 0.8, seed=11)
    async with serving() as server, edge(server, BUNDLE, kind=kind, sampling=sampling) as client:
        await client.open()
        ids, sent = list(PROMPT), 0
        for _ in range(8):
            hidden, _ = FULL.run(ids)
            await client.send(hidden_context(hidden, sent))
            sent = len(ids)
            ids += await client.decide(len(ids))
        assert ids[START:] == FULL.continuation(PROMPT, 8, sampling)


async def test_burst_goes_on_by_itself_and_keeps_its_tokens() -> None:
    wanted = FULL.continuation(PROMPT, 12)
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        assert await client.decide(START, burst=7) == wanted[:8]
        reopened = await client.open()
        assert reopened.held_positions == START + 7
        await client.send(Context(START, tuple(wanted[:8])))  # seven of eight are held
        assert await client.decide(START + 8, burst=3) == wanted[8:]


async def test_burst_ends_at_a_stop_token() -> None:
    wanted = FULL.continuation(PROMPT, 6)
    stop_at = next(i for i in range(1, 6) if wanted[i] not in wanted[:i])
    tokenizer = BUNDLE.manifest.tokenizer.model_copy(update={"stop_token_ids": (wanted[stop_at],)})
    manifest = BUNDLE.manifest.model_copy(update={"tokenizer": tokenizer})
    async with serving() as server, edge(server, BUNDLE) as client:
        server.service._manifest = manifest
        await client.open()
        await client.send(Context(0, PROMPT))
        await client.send(Escalate(START, burst=20))
        got = [(await client.expect(Decision)).token_id for _ in range(stop_at + 1)]
        assert got == wanted[: stop_at + 1]
        closed = await client.close()  # nothing came in between
        assert closed.layer_positions == 6 * (START + stop_at)


async def test_burst_ends_where_the_context_is_full() -> None:
    limit = 512
    ids = tuple(i % 250 for i in range(limit - 1))
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, ids))
        await client.send(Escalate(limit - 1, burst=9))
        positions = [(await client.expect(Decision)).position for _ in range(2)]
        assert positions == [limit - 1, limit]
        await client.close()


async def test_a_question_is_answered_twice_and_computed_once() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        first = await client.decide(START)
        assert await client.decide(START) == first
        await client.open()
        assert await client.decide(START) == first
        assert (await client.close()).layer_positions == 6 * START


async def test_questions_about_older_positions_are_answered_too() -> None:
    ids = [*PROMPT, *FULL.continuation(PROMPT, 6)]
    _, logits = FULL.run(ids)
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, tuple(ids)))
        await client.decide(len(ids))  # everything is computed now
        for position in (8, 3, 12, 11):
            assert await client.decide(position) == [int(logits[position - 1].argmax())]


async def test_questions_that_wait_are_answered_together() -> None:
    ids = [*PROMPT, *FULL.continuation(PROMPT, 6)]
    _, logits = FULL.run(ids)
    async with serving() as server, edge(server, BUNDLE) as client:
        with closed_gate(server.batcher.model) as gate:
            await client.open()
            await client.send(Context(0, tuple(ids[:1])))
            await client.send(Escalate(1))
            await gate.entered.wait()
            for position in range(2, len(ids) + 1):
                await client.send(Context(position - 1, (ids[position - 1],)))
                await client.send(Escalate(position))
        for position in range(1, len(ids) + 1):
            decision = await client.expect(Decision)
            assert decision.position == position
            assert decision.token_id == logits[position - 1].argmax()
        assert (await client.close()).layer_positions == 6 * len(ids)


async def test_truncate_takes_another_turn() -> None:
    other = (*PROMPT[:4], 9, 44)
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        await client.decide(START)
        await client.send(Truncate(4))
        await client.send(Context(4, other[4:]))
        assert await client.decide(START) == FULL.continuation(other, 1)


async def test_truncate_withdraws_every_question_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived, truncate = asyncio.Event(), SessionEngine.truncate

    async def noticed(engine: SessionEngine, step: int, position: int) -> None:
        arrived.set()
        await truncate(engine, step, position)

    monkeypatch.setattr(SessionEngine, "truncate", noticed)
    async with serving() as server, edge(server, BUNDLE) as client:
        with closed_gate(server.batcher.model) as gate:
            await client.open()
            await client.send(Context(0, PROMPT))
            await client.send(Escalate(2))
            await gate.entered.wait()
            await client.send(Escalate(START))
            await client.send(Escalate(3))
            await client.send(Truncate(4))
            await client.send(Context(4, (9, 44)))
            await client.send(Escalate(START))
            await arrived.wait()
        assert (await client.expect(Decision)).position == 2
        last = await client.expect(Decision)
        assert [last.token_id] == FULL.continuation((*PROMPT[:4], 9, 44), 1)


async def test_much_context_is_caught_up_with_before_it_is_asked_for() -> None:
    prompt = tuple(i * 7 % 250 for i in range(CATCH_UP_FROM))
    async with serving() as server, edge(server, BUNDLE) as client, edge(server, BUNDLE) as other:
        await client.open()
        await client.send(Context(0, prompt))
        session = next(iter(server.store._sessions.values()))
        await other.open()
        await other.send(Context(0, PROMPT))
        while session.computed < len(prompt):  # catch-up gets on beside questions
            await other.decide(START)
            await other.send(Truncate(0))
            await other.send(Context(0, PROMPT))
        await other.close()
        with closed_gate(server.batcher.model):  # no pass is needed any more
            assert await client.decide(len(prompt)) == FULL.continuation(prompt, 1)


async def test_little_context_waits_for_a_question_to_take_it_along() -> None:
    async with serving() as server, edge(server, BUNDLE) as client, edge(server, BUNDLE) as other:
        await client.open()
        await client.send(Context(0, tuple(range(CATCH_UP_FROM - 1))))
        session = next(iter(server.store._sessions.values()))
        await other.open()
        await other.send(Context(0, PROMPT))
        for _ in range(3):
            await other.decide(START)
            await other.send(Truncate(0))
            await other.send(Context(0, PROMPT))
        assert session.computed == 0


async def test_urgent_work_goes_before_catch_up() -> None:
    long = tuple(i % 250 for i in range(300))
    async with (
        serving() as server,
        edge(server, BUNDLE) as slow,
        edge(server, BUNDLE) as quick,
    ):
        with closed_gate(server.batcher.model) as gate:
            await slow.open()
            await slow.send(Context(0, long))
            await gate.entered.wait()  # one piece of catch-up is under way
            await quick.open()
            await quick.send(Context(0, PROMPT))
            asked = asyncio.create_task(quick.decide(START))
        assert await asked == FULL.continuation(PROMPT, 1)
        assert await slow.decide(300) == FULL.continuation(long, 1)


async def test_sessions_in_one_pass_do_not_mix() -> None:
    prompts = [tuple((seed * 37 + i * 11) % 250 for i in range(3 + seed)) for seed in range(6)]
    async with serving() as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(edge(server, BUNDLE)) for _ in prompts]

        async def text(client: Edge, prompt: tuple[int, ...]) -> list[int]:
            await client.open()
            await client.send(Context(0, prompt))
            return await client.decide(len(prompt), burst=9)

        texts = await asyncio.gather(*map(text, clients, prompts))
        assert texts == [FULL.continuation(prompt, 10) for prompt in prompts]


async def test_a_session_goes_on_after_a_reconnect() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        first = await client.decide(START)
        client.call.cancel()
        assert (await client.open()).held_positions == START
        await client.send(Context(START, tuple(first)))
        assert first + await client.decide(START + 1) == FULL.continuation(PROMPT, 2)
        await client.close()
        assert (await client.open()).held_positions == 0


async def test_the_end_of_the_edges_side_waits_for_answers() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        await client.send(Escalate(START))
        await client.call.done_writing()
        assert [(await client.expect(Decision)).token_id] == FULL.continuation(PROMPT, 1)
        assert await client.status() is grpc.StatusCode.OK


async def test_health_and_reflection_answer() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = (await call.read()).list_services_response.service
        assert SERVICE_NAME in [service.name for service in services]


async def test_tenants_do_not_see_each_others_sessions(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    alice, bob = add_token(tokens, "alice"), add_token(tokens, "bob")
    async with (
        serving(tokens=tokens) as server,
        edge(server, BUNDLE, token=alice) as first,
        edge(server, BUNDLE, token=bob, session_id=first.session_id) as second,
    ):
        await first.open()
        await first.send(Context(0, PROMPT))
        await first.decide(START)
        assert (await second.open()).held_positions == 0
        await first.close()


async def test_drain_lets_open_sessions_end() -> None:
    async with serving() as server, edge(server, BUNDLE) as client, edge(server, BUNDLE) as late:
        await client.open()
        health = health_pb2_grpc.HealthStub(client.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        draining = asyncio.create_task(server.service.drain(20))
        await server._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(AssertionError, match="SHUTTING_DOWN"):
            await late.open()
        assert await late.status() is grpc.StatusCode.UNAVAILABLE
        await client.send(Context(0, PROMPT))
        assert await client.decide(START) == FULL.continuation(PROMPT, 1)
        assert not draining.done()
        await client.close()
        await draining


async def test_drain_ends_sessions_after_its_deadline() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(CloudServer(settings_for(BUNDLE, drain_seconds=0)))
        async with edge(server, BUNDLE) as client:
            await client.open()
            leaving = asyncio.create_task(stack.aclose())
            reply, status = await client.failure()
            assert (reply.code, status) == (ErrorCode.SHUTTING_DOWN, grpc.StatusCode.UNAVAILABLE)
            await leaving


class SlowCall:
    """A call whose edge takes the first message only when ``taken`` is set."""

    def __init__(self, opening: bytes) -> None:
        self.writing, self.taken = asyncio.Event(), asyncio.Event()
        self.said: list[bytes] = []
        self.status: grpc.StatusCode | None = None
        self.given_up = False
        self._opening = opening

    async def requests(self) -> AsyncIterator[bytes]:
        yield self._opening
        await asyncio.Event().wait()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def auth_context(self) -> dict[str, Any]:
        return {}

    async def write(self, data: bytes) -> None:
        assert self.writing.is_set() == self.taken.is_set(), "two writes at a time"
        self.writing.set()
        try:
            await self.taken.wait()
        except asyncio.CancelledError:
            self.given_up = True
            raise
        self.said.append(data)

    async def abort(self, code: grpc.StatusCode, _: str) -> None:
        self.status = code
        raise grpc.aio.AbortError


def slow_call() -> SlowCall:
    """It asks for a session."""
    opening = Open(
        PROTOCOL_VERSION, bytes(16), BUNDLE.manifest.fingerprint, GREEDY, ContextKind.TOKEN_IDS
    )
    return SlowCall(edge_message_to_proto(EdgeMessage(1, opening)).SerializeToString())


async def test_a_session_that_is_ended_within_a_write_still_says_why() -> None:
    call = slow_call()
    async with serving() as server:
        session = asyncio.create_task(server.service.session(call.requests(), call))
        await call.writing.wait()
        await server.service.drain(0)
        call.taken.set()
        with pytest.raises(grpc.aio.AbortError):
            await session
    bodies = [cloud_message_from_proto(pb.CloudMessage.FromString(data)).body for data in call.said]
    opened, failure = bodies
    assert isinstance(opened, Opened)
    assert isinstance(failure, ErrorReply)
    assert failure.code is ErrorCode.SHUTTING_DOWN
    assert call.status is grpc.StatusCode.UNAVAILABLE


async def test_a_write_that_nobody_takes_ends_with_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collaboration_service, "_LAST_WORDS_SECONDS", 0.05)
    call = slow_call()
    async with serving() as server:
        session = asyncio.create_task(server.service.session(call.requests(), call))
        await call.writing.wait()
        await server.service.drain(0)
        with pytest.raises(grpc.aio.AbortError):
            await session
        await eventually(lambda: call.given_up)
    assert (call.said, call.status) == ([], grpc.StatusCode.UNAVAILABLE)


async def test_port_file_holds_the_address_while_serving(tmp_path: Path) -> None:
    path = tmp_path / "address"
    async with serving(port_file=path) as server:
        assert path.read_text() == f"{server.address}\n"
    assert not path.exists()


async def test_a_taken_port_is_a_configuration_error() -> None:
    async with serving() as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="cannot listen"):
            async with serving(port=port):
                pass


async def test_stop_ends_wait() -> None:
    async with serving() as server:
        waiting = asyncio.create_task(server.wait())
        server.stop()
        await waiting


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": "0.0.0.0"}, "--insecure"),
        ({"host": "0.0.0.0", "tokens": Path("t")}, "--tls-cert"),
        ({"tls_cert": Path("c")}, "--tls-key"),
        ({"client_ca": Path("c")}, "--client-ca"),
        ({"port": 70000}, "--port"),
        ({"dtype": "int8"}, "--dtype"),
    ],
)
def test_settings_that_do_not_hold_together_are_refused(changes: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        settings_for(BUNDLE, **changes)
