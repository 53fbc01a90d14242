"""The cloud under edges, links and operators that misbehave.

Each fault ends its own session with its own typed error, while a bystander in the middle of its
text gets every token right.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud import collaboration_service, waiting_room
from cloud.auth import add_token
from cloud.collaboration_service import SERVICE_NAME
from cloud.decisions import ENTRY_BYTES
from cloud.eviction import StoreLimits
from cloud.held_session import SessionKey
from cloud.server import CloudServer
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import (
    BudgetExceededError,
    CloudInternalError,
    CloudShuttingDownError,
    ConfigurationError,
    ContextGapError,
    FingerprintMismatchError,
    InvalidMessageError,
    NoRoomError,
    ProtocolVersionError,
    SessionTakenOverError,
    TandemError,
)
from shared.messages import (
    PROTOCOL_VERSION,
    Context,
    ContextKind,
    Decision,
    Escalate,
    Truncate,
    error_of,
)
from shared.tensor_codec import EncodedTensor, Encoding
from tests.cloud_harness import (
    PROMPT,
    Edge,
    bystander,
    closed_gate,
    edge,
    eventually,
    failing,
    full_model,
    hidden_context,
    serving,
    tiny_bundle,
)

BUNDLE = tiny_bundle()
FULL = full_model()
START = len(PROMPT)
ARCH = BUNDLE.manifest.architecture
HIDDEN = ContextKind.HIDDEN_STATES
Act = Callable[[Edge], Awaitable[None]]

_STATUS: dict[type[TandemError], grpc.StatusCode] = {
    InvalidMessageError: grpc.StatusCode.INVALID_ARGUMENT,
    ProtocolVersionError: grpc.StatusCode.FAILED_PRECONDITION,
    FingerprintMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ContextGapError: grpc.StatusCode.FAILED_PRECONDITION,
    BudgetExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NoRoomError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SessionTakenOverError: grpc.StatusCode.ABORTED,
    CloudShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    CloudInternalError: grpc.StatusCode.INTERNAL,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server() -> AsyncIterator[CloudServer]:
    """One cloud that has to survive every bad message of this file."""
    async with serving() as server:
        yield server


async def fails_with(rude: Edge, error: type[TandemError]) -> str:
    """Read the failure, check its type and status, return its message."""
    reply, status = await rude.failure()
    assert (type(error_of(reply)), status) == (error, _STATUS[error]), reply
    return reply.message


# ---- messages that are wrong in themselves or for their session --------------------------------


@dataclass(frozen=True)
class Fault:
    """``act`` is done to an open session of ``kind``, and ends it with ``error``."""

    act: Act
    error: type[TandemError] = InvalidMessageError
    kind: ContextKind = ContextKind.TOKEN_IDS


def sends(*bodies: Context | Escalate | Truncate) -> Act:
    async def act(rude: Edge) -> None:
        for body in bodies:
            await rude.send(body)

    return act


def sends_bytes(data: bytes) -> Act:
    async def act(rude: Edge) -> None:
        await rude.send_bytes(data)

    return act


def tensor(
    data: bytes,
    *,
    rows: int = 2,
    columns: int = ARCH.hidden_size,
    encoding: Encoding = Encoding.FLOAT32,
    compressed: bool = False,
) -> Context:
    return Context(0, EncodedTensor(rows, columns, encoding, compressed, data))


def filled(value: float, rows: int = 2, columns: int = ARCH.hidden_size) -> bytes:
    return np.full((rows, columns), value, "<f4").tobytes()


def zstd(data: bytes, *, declare: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=declare).compress(data)


def lying_frame() -> bytes:
    """Declares what the shape asks for and holds a thousand times more."""
    right = len(filled(0.0))
    frame = bytearray(zstd(bytes(right * 1000)))
    assert frame[4] >> 5 == 0b101, "after the descriptor comes the content's size in four bytes"
    frame[5:9] = right.to_bytes(4, "little")
    assert zstandard.get_frame_parameters(bytes(frame)).content_size == right
    return bytes(frame)


GIB = 1 << 30
CONTEXT_BYTES = pb.EdgeMessage(
    step=2, context=pb.Context(token_ids=pb.TokenIds(ids=PROMPT))
).SerializeToString()

FAULTS = {
    "a second Open": Fault(Edge.begin),
    "garbage": Fault(sends_bytes(b"\xff\xfe no protobuf \x00\x01")),
    "a truncated message": Fault(sends_bytes(CONTEXT_BYTES[:-3])),
    "no bytes": Fault(sends_bytes(b"")),
    "context without a payload": Fault(
        sends_bytes(pb.EdgeMessage(step=2, context=pb.Context()).SerializeToString())
    ),
    "a decision on nothing": Fault(sends(Escalate(0))),
    "a gap": Fault(sends(Context(0, PROMPT), Context(START + 1, (1,))), ContextGapError),
    "a question beyond": Fault(sends(Context(0, PROMPT), Escalate(START + 1)), ContextGapError),
    "a question after truncate": Fault(
        sends(Context(0, PROMPT), Truncate(2), Escalate(3)), ContextGapError
    ),
    "a token id out of range": Fault(sends(Context(0, (5, ARCH.vocabulary_size)))),
    "too many positions": Fault(
        sends(Context(0, (7,) * (ARCH.max_positions + 1))), BudgetExceededError
    ),
    "hidden states among token ids": Fault(sends(tensor(filled(1.0)))),
    "token ids among hidden states": Fault(sends(Context(0, PROMPT)), kind=HIDDEN),
    "a burst on hidden states": Fault(
        sends(tensor(filled(1.0)), Escalate(2, burst=1)), kind=HIDDEN
    ),
    "wrong columns": Fault(sends(tensor(filled(1.0, 2, 96), columns=96)), kind=HIDDEN),
    "rows beyond the model's": Fault(
        sends(tensor(b"", rows=ARCH.max_positions + 1, encoding=Encoding.INT4)), kind=HIDDEN
    ),
    "bytes that do not fill the shape": Fault(sends(tensor(filled(1.0)[:-1])), kind=HIDDEN),
    "NaN": Fault(sends(tensor(filled(float("nan")))), kind=HIDDEN),
    "infinity in float16": Fault(
        sends(tensor(np.full((2, 64), np.inf, "<f2").tobytes(), encoding=Encoding.FLOAT16)),
        kind=HIDDEN,
    ),
    "a bomb that says so": Fault(
        sends(tensor(zstd(bytes(GIB // 4)), compressed=True)), kind=HIDDEN
    ),
    "a bomb in the declared rows": Fault(
        sends(tensor(b"\x28\xb5\x2f\xfd", rows=1 << 22, compressed=True)), kind=HIDDEN
    ),
    "a frame that lies": Fault(sends(tensor(lying_frame(), compressed=True)), kind=HIDDEN),
    "a frame that tells no size": Fault(
        sends(tensor(zstd(filled(1.0), declare=False), compressed=True)), kind=HIDDEN
    ),
    "a truncated frame": Fault(sends(tensor(zstd(filled(1.0))[:-2], compressed=True)), kind=HIDDEN),
    "two frames": Fault(sends(tensor(zstd(filled(1.0)) * 2, compressed=True)), kind=HIDDEN),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_a_bad_message_ends_its_session_alone(
    shared_server: CloudServer, fault: Fault
) -> None:
    async with (
        edge(shared_server, BUNDLE, kind=fault.kind) as rude,
        bystander(shared_server, BUNDLE, FULL),
    ):
        await rude.open()
        await fault.act(rude)
        message = await fails_with(rude, fault.error)
        assert "Traceback" not in message
        assert ".py" not in message
        reopened = await rude.open()  # of what was malformed, nothing is kept
        assert fault.error is not InvalidMessageError or reopened.held_positions == 0


OPENINGS: dict[str, tuple[Act, type[TandemError]]] = {
    "another bundle": (
        lambda rude: rude.begin(bundle_fingerprint="ab" * 32),
        FingerprintMismatchError,
    ),
    "another version": (
        lambda rude: rude.begin(protocol_version=PROTOCOL_VERSION + 1),
        ProtocolVersionError,
    ),
    "a short session id": (lambda rude: rude.begin(session_id=b"short"), InvalidMessageError),
    "a short fingerprint": (
        lambda rude: rude.begin(bundle_fingerprint="ab"),
        InvalidMessageError,
    ),
    "no Open": (sends(Context(0, PROMPT)), InvalidMessageError),
    "garbage": (sends_bytes(b"\x0a"), InvalidMessageError),
    "the end": (lambda rude: rude.call.done_writing(), InvalidMessageError),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("act", "error"), OPENINGS.values(), ids=OPENINGS.keys())
async def test_a_bad_opening_is_refused(
    shared_server: CloudServer, act: Act, error: type[TandemError]
) -> None:
    held = len(shared_server.store)
    async with edge(shared_server, BUNDLE) as rude, bystander(shared_server, BUNDLE, FULL):
        await act(rude.connect())
        await fails_with(rude, error)
    assert len(shared_server.store) == held


@pytest.mark.asyncio(loop_scope="module")
async def test_a_silent_stream_is_ended(
    shared_server: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(shared_server, BUNDLE) as rude, bystander(shared_server, BUNDLE, FULL):
        monkeypatch.setattr(collaboration_service, "OPEN_SECONDS", 0.0)
        rude.connect()
        assert "no message" in await fails_with(rude, InvalidMessageError)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_session_reopened_with_another_kind_of_context_is_refused(
    shared_server: CloudServer,
) -> None:
    async with edge(shared_server, BUNDLE) as rude, bystander(shared_server, BUNDLE, FULL):
        await rude.open()
        rude.call.cancel()
        await rude.connect().begin(context_kind=HIDDEN)
        await fails_with(rude, InvalidMessageError)
        await rude.open()  # the session itself is as it was
        await rude.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_an_oversized_message_is_refused_before_it_is_read(
    shared_server: CloudServer,
) -> None:
    async with edge(shared_server, BUNDLE) as rude, bystander(shared_server, BUNDLE, FULL):
        opened = await rude.open()
        await rude.send_bytes(bytes(opened.max_message_bytes + 1))
        assert await rude.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await rude.open()).held_positions == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_fault_of_the_model_reaches_one_session_and_its_reason_only_the_log(
    shared_server: CloudServer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = RuntimeError("secret of the cloud")
    async with edge(shared_server, BUNDLE) as rude, bystander(shared_server, BUNDLE, FULL):
        await rude.open()
        with failing(shared_server.batcher.model, broken, rows=3):
            await rude.send(Context(0, PROMPT[:3]))
            await rude.send(Escalate(3))
            message = await fails_with(rude, CloudInternalError)
        assert "secret" not in message
        assert "secret of the cloud" in caplog.text
        assert (await rude.open()).held_positions == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_logs_hold_no_prompt(
    shared_server: CloudServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tandem")
    secret = (261, 263, 262)
    async with edge(shared_server, BUNDLE, session_id=b"\x00" * 16) as client:
        await client.open()
        with failing(shared_server.batcher.model, RuntimeError("broken"), rows=3):
            await client.send(Context(0, secret))
            await client.send(Escalate(3))
            await fails_with(client, CloudInternalError)
        await client.open()
        await client.send(Context(0, (*secret, 999_777)))
        await fails_with(client, InvalidMessageError)
    ours = [record for record in caplog.records if record.name.startswith("tandem")]
    text = "\n".join(map(logging.Formatter("%(message)s").format, ours))
    assert "broken" in text
    lines_without_line_numbers = [line for line in text.splitlines() if ", line " not in line]
    for id_ in (*secret, 999_777):
        assert str(id_) not in "\n".join(lines_without_line_numbers)


async def test_values_that_overflow_the_models_arithmetic_are_the_edges_fault() -> None:
    async with serving(dtype="float16") as server, edge(server, BUNDLE, kind=HIDDEN) as rude:
        await rude.open()
        await rude.send(tensor(filled(3e38)))  # infinite in float16
        await rude.send(Escalate(2))
        assert "no probabilities" in await fails_with(rude, InvalidMessageError)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_bomb_that_grpc_itself_would_unpack_is_refused(shared_server: CloudServer) -> None:
    """64 MiB of zeros, which gzip sends as some 64 KiB."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with (
        bystander(shared_server, BUNDLE, FULL),
        grpc.aio.insecure_channel(
            shared_server.address, options=options, compression=grpc.Compression.Gzip
        ) as channel,
    ):
        rude = Edge(channel, BUNDLE.manifest.fingerprint)
        await rude.open()
        await rude.send_bytes(bytes(64 << 20))
        assert await rude.status() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- links and edges that come and go ----------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stream_takes_a_session_over(shared_server: CloudServer) -> None:
    async with (
        edge(shared_server, BUNDLE) as older,
        edge(shared_server, BUNDLE, session_id=older.session_id) as newer,
        bystander(shared_server, BUNDLE, FULL),
    ):
        await older.open()
        await older.send(Context(0, PROMPT))
        first = await older.decide(START)
        assert (await newer.open()).held_positions == START
        await fails_with(older, SessionTakenOverError)
        await newer.send(Context(START, tuple(first)))
        assert first + await newer.decide(START + 1) == FULL.continuation(PROMPT, 2)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_takeover_of_a_session_that_computes_waits_for_the_pass(
    shared_server: CloudServer,
) -> None:
    async with (
        edge(shared_server, BUNDLE) as older,
        edge(shared_server, BUNDLE, session_id=older.session_id) as newer,
        bystander(shared_server, BUNDLE, FULL),
    ):
        with closed_gate(shared_server.batcher.model) as gate:
            await older.open()
            await older.send(Context(0, PROMPT))
            await older.send(Escalate(START, burst=50))
            await gate.entered.wait()
            opening = asyncio.create_task(newer.open())
            key = SessionKey("default", older.session_id)
            await eventually(lambda: _engine(key).cancelling() > 0)
        assert START <= (await opening).held_positions <= START + 1
        await fails_with(older, SessionTakenOverError)
        assert await newer.decide(START) == FULL.continuation(PROMPT, 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_edge_that_vanishes_stops_its_burst_and_resumes(
    shared_server: CloudServer,
) -> None:
    wanted = FULL.continuation(PROMPT, 9)
    async with bystander(shared_server, BUNDLE, FULL), edge(shared_server, BUNDLE) as back:
        key = SessionKey("default", back.session_id)
        async with edge(shared_server, BUNDLE, session_id=back.session_id) as client:
            await client.open()
            await client.send(Context(0, PROMPT))
            assert await client.decide(START, burst=2) == wanted[:3]
            with closed_gate(shared_server.batcher.model) as gate:
                await client.send(Escalate(START, burst=400))  # its first three are known
                await gate.entered.wait()
                client.call.cancel()
                await eventually(lambda: _engine(key).cancelling() > 0)
        held = (await back.open()).held_positions
        assert START + 3 <= held <= START + 4  # not START + 400
        # the same question again: what was decided comes from memory, the rest is computed
        assert await back.decide(START, burst=8) == wanted
        closed = await back.close()
        assert closed.layer_positions <= ARCH.layers * (START + 8)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replayed_burst_answers_what_was_lost(shared_server: CloudServer) -> None:
    wanted = FULL.continuation(PROMPT, 8)
    async with edge(shared_server, BUNDLE) as client, bystander(shared_server, BUNDLE, FULL):
        await client.open()
        await client.send(Context(0, PROMPT))
        await client.send(Escalate(START, burst=7))
        await client.receive()
        await client.receive()
        client.call.cancel()
        assert START <= (await client.open()).held_positions <= START + 7
        assert await client.decide(START, burst=7) == wanted
        await client.send(Truncate(START))  # and another turn can still be taken
        await client.send(Context(START, (99,)))
        assert await client.decide(START + 1) == FULL.continuation((*PROMPT, 99), 1)


def _engine(key: SessionKey) -> asyncio.Task[None]:
    return next(task for task in asyncio.all_tasks() if task.get_name() == f"engine {key}")


async def test_a_restarted_cloud_holds_nothing_and_takes_a_replay() -> None:
    wanted = FULL.continuation(PROMPT, 6)
    hidden, _ = FULL.run((*PROMPT, *wanted))
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving(drain_seconds=0.0))
        async with edge(first, BUNDLE, kind=HIDDEN) as client:
            await client.open()
            await client.send(hidden_context(hidden[:START], 0))
            assert await client.decide(START) == wanted[:1]
            leaving = asyncio.create_task(stack.aclose())
            await fails_with(client, CloudShuttingDownError)
            await leaving
            session_id = client.session_id
    async with (
        serving() as second,
        edge(second, BUNDLE, kind=HIDDEN, session_id=session_id) as client,
        bystander(second, BUNDLE, FULL),
    ):
        assert (await client.open()).held_positions == 0
        for position in range(START, START + 6):
            sent = 0 if position == START else position - 1
            await client.send(hidden_context(hidden[:position], sent))
            assert await client.decide(position) == [wanted[position - START]]


async def test_draining_lets_open_sessions_end_and_refuses_new_ones() -> None:
    async with serving() as server, edge(server, BUNDLE) as late:
        health = health_pb2_grpc.HealthStub(late.channel)
        async with bystander(server, BUNDLE, FULL):
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            draining = asyncio.create_task(server._drain())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await late.connect().begin()
            await fails_with(late, CloudShuttingDownError)
            assert not draining.done()
            watch.cancel()
        await draining


async def test_a_stream_that_opens_after_the_drain_began_is_refused() -> None:
    async with serving() as server, edge(server, BUNDLE) as late:
        late.connect()
        async with bystander(server, BUNDLE, FULL):
            draining = asyncio.create_task(server.service.drain(60))
            await asyncio.sleep(0)
            await late.begin()
            await fails_with(late, CloudShuttingDownError)
        await draining


# ---- limits --------------------------------------------------------------------------------------

# what one short session of token ids takes: 64 ids and decisions, keys and values of 64 positions
IDS_BYTES = 64 * (4 + ENTRY_BYTES)
CACHE_BYTES = 64 * ARCH.layers * 2 * ARCH.kv_size * 4


@pytest.mark.parametrize("spare", [0, IDS_BYTES], ids=["context", "keys and values"])
async def test_a_full_byte_budget_ends_the_session_that_asks_for_more(
    spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_room, "WAIT_SECONDS", 0.2)
    limits = StoreLimits(budget_bytes=IDS_BYTES + CACHE_BYTES + spare)
    async with serving(limits=limits) as server, edge(server, BUNDLE) as rude:
        async with edge(server, BUNDLE) as other:
            await other.open()
            await other.send(Context(0, PROMPT))
            with closed_gate(server.batcher.model) as gate:  # it computes, so it keeps its cache
                await other.send(Escalate(START))
                await gate.entered.wait()
                await rude.open()
                await rude.send(Context(0, PROMPT))
                await rude.send(Escalate(START))
                await fails_with(rude, NoRoomError)
            await other.expect(Decision)
            await other.close()
        await rude.open()  # now that the other is gone, there is room
        await rude.send(Context(0, PROMPT))
        assert await rude.decide(START) == FULL.continuation(PROMPT, 1)


async def test_between_two_questions_a_session_in_use_lends_its_room() -> None:
    limits = StoreLimits(budget_bytes=2 * IDS_BYTES + CACHE_BYTES)
    async with serving(limits=limits) as server, edge(server, BUNDLE) as second:
        async with bystander(server, BUNDLE, FULL):
            await second.open()
            await second.send(Context(0, PROMPT))
            assert await second.decide(START) == FULL.continuation(PROMPT, 1)
        await second.close()


async def test_who_waits_for_room_gets_it_when_a_question_is_answered() -> None:
    limits = StoreLimits(budget_bytes=2 * IDS_BYTES + CACHE_BYTES)
    async with (
        serving(limits=limits) as server,
        edge(server, BUNDLE) as first,
        edge(server, BUNDLE) as second,
    ):
        for client in (first, second):
            await client.open()
            await client.send(Context(0, PROMPT))
        with closed_gate(server.batcher.model) as gate:
            await first.send(Escalate(START))
            await gate.entered.wait()
            await second.send(Escalate(START))
            await eventually(lambda: server.store.room.crowded)
        for client in (first, second):
            assert (await client.expect(Decision)).token_id == FULL.continuation(PROMPT, 1)[0]
            await client.close()


async def test_no_more_sessions_than_allowed() -> None:
    async with (
        serving(limits=StoreLimits(max_sessions=2)) as server,
        edge(server, BUNDLE) as idle,
        edge(server, BUNDLE) as late,
    ):
        await idle.open()
        await idle.send(Context(0, PROMPT))
        await idle.decide(START)
        async with bystander(server, BUNDLE, FULL):
            await late.connect().begin()
            await fails_with(late, NoRoomError)
            idle.call.cancel()
            await eventually(lambda: server.service.open_streams == 1)
            assert (await late.open()).held_positions == 0  # an idle one gives way
            await late.close()
            assert (await idle.open()).held_positions == 0


# ---- who may call --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "wrong", "tandem_"], ids=["none", "wrong", "part"])
async def test_calls_without_a_valid_token_are_refused(tmp_path: Path, token: str | None) -> None:
    path = tmp_path / "tokens"
    right = add_token(path, "alice")
    async with (
        serving(tokens=path) as server,
        edge(server, BUNDLE, token=token) as rude,
        bystander(server, BUNDLE, FULL, token=right),
    ):
        assert await rude.refusal() is grpc.StatusCode.UNAUTHENTICATED
        assert len(server.store) == 1


@pytest.mark.parametrize(
    "metadata",
    [(("authorization", "Basic abc"),), (("authorization", "Bearer "),), (("authorization", ""),)],
    ids=["basic", "no token", "empty"],
)
async def test_other_authorization_is_refused(
    tmp_path: Path, metadata: tuple[tuple[str, str], ...]
) -> None:
    path = tmp_path / "tokens"
    add_token(path, "alice")
    async with serving(tokens=path) as server, edge(server, BUNDLE) as rude:
        call = rude.channel.stream_stream(collaboration_service.SESSION_METHOD)(metadata=metadata)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


class Authority:
    """A certificate authority of this test's own; all PEM."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.pem = self._sign(self._name, self._key.public_key(), ca=True)

    def issue(self, common_name: str) -> tuple[bytes, bytes]:
        """``(key, certificate)`` for a client, or for a server on 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return private, self._sign(name, key.public_key(), ca=False)

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority()


@pytest.fixture
def tls(tmp_path: Path, authority: Authority) -> dict[str, Path]:
    """Settings of a server that shows a certificate."""
    key, certificate = authority.issue("server")
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(certificate)
    return {"tls_key": tmp_path / "key.pem", "tls_cert": tmp_path / "cert.pem"}


@pytest.fixture
def mtls(tmp_path: Path, authority: Authority, tls: dict[str, Path]) -> dict[str, Path]:
    """Settings of a server that asks for one as well."""
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return tls | {"client_ca": tmp_path / "ca.pem"}


async def is_refused(rude: Edge) -> None:
    """The handshake fails, so the call never reaches the service."""
    assert await rude.refusal() is grpc.StatusCode.UNAVAILABLE


async def test_tls_serves_those_who_trust_its_authority(
    tls: dict[str, Path], authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "alice")
    right = grpc.ssl_channel_credentials(authority.pem)
    wrong = grpc.ssl_channel_credentials(stranger.pem)
    async with (
        serving(**tls, tokens=tokens) as server,
        edge(server, BUNDLE, credentials=wrong, token=token) as distrusting,
        edge(server, BUNDLE, token=token) as plain,
        edge(server, BUNDLE, credentials=right) as nameless,
        bystander(server, BUNDLE, FULL, credentials=right, token=token),
    ):
        await is_refused(distrusting)
        await is_refused(plain)
        assert await nameless.refusal() is grpc.StatusCode.UNAUTHENTICATED


async def test_mtls_serves_those_whom_its_authority_vouches_for(
    mtls: dict[str, Path], authority: Authority, stranger: Authority
) -> None:
    alice = grpc.ssl_channel_credentials(authority.pem, *authority.issue("alice"))
    bob = grpc.ssl_channel_credentials(authority.pem, *authority.issue("bob"))
    forged = grpc.ssl_channel_credentials(authority.pem, *stranger.issue("alice"))
    without = grpc.ssl_channel_credentials(authority.pem)
    async with (
        serving(**mtls) as server,
        edge(server, BUNDLE, credentials=forged) as forger,
        edge(server, BUNDLE, credentials=without) as nobody,
        edge(server, BUNDLE, credentials=alice) as first,
        edge(server, BUNDLE, credentials=bob, session_id=first.session_id) as second,
        bystander(server, BUNDLE, FULL, credentials=alice),
    ):
        await is_refused(forger)
        await is_refused(nobody)
        await first.open()
        await first.send(Context(0, PROMPT))
        await first.decide(START)
        assert SessionKey("alice", first.session_id) in server.store
        assert (await second.open()).held_positions == 0  # the name tells tenants apart
        await first.close()


async def test_mtls_with_tokens_asks_for_both_and_the_token_names_the_tenant(
    mtls: dict[str, Path], authority: Authority, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "alice")
    vouched = grpc.ssl_channel_credentials(authority.pem, *authority.issue("bob"))
    without = grpc.ssl_channel_credentials(authority.pem)
    async with (
        serving(**mtls, tokens=tokens) as server,
        edge(server, BUNDLE, credentials=without, token=token) as nobody,
        edge(server, BUNDLE, credentials=vouched) as nameless,
        edge(server, BUNDLE, credentials=vouched, token="wrong") as wrong,
        edge(server, BUNDLE, credentials=vouched, token=token) as right,
        bystander(server, BUNDLE, FULL, credentials=vouched, token=token),
    ):
        await is_refused(nobody)
        for refused in (nameless, wrong):
            assert await refused.refusal() is grpc.StatusCode.UNAUTHENTICATED
        await right.open()
        assert SessionKey("alice", right.session_id) in server.store
        await right.close()


@pytest.mark.parametrize(
    ("data", "named"),
    [(None, "cannot be read"), (b"not pem", "PEM"), (b"-----BEGIN nothing", "cannot listen")],
    ids=["missing", "other", "broken"],
)
async def test_bad_certificates_are_a_configuration_error(
    tls: dict[str, Path], data: bytes | None, named: str
) -> None:
    if data is None:
        tls["tls_cert"].unlink()
    else:
        tls["tls_cert"].write_bytes(data)
    with pytest.raises(ConfigurationError, match=named):
        async with serving(**tls):
            pass
