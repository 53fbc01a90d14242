"""What tests of the cloud share: a tiny bundle served for real, a plain client, the full model."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
import numpy as np
import torch
import transformers

from cloud.collaboration_service import SESSION_METHOD
from cloud.deep_model import DeepModel
from cloud.eviction import StoreLimits
from cloud.server import CloudServer
from cloud.settings import CloudSettings, load_settings
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.messages import (
    PROTOCOL_VERSION,
    Close,
    Closed,
    CloudMessage,
    Context,
    ContextKind,
    Decision,
    EdgeMessage,
    ErrorReply,
    Escalate,
    Open,
    Opened,
    Truncate,
    cloud_message_from_proto,
    edge_message_to_proto,
)
from shared.model_bundle import ModelBundle
from shared.sampling import GREEDY, Sampling, choose_token
from shared.tensor_codec import Encoding, FloatArray, encode
from tests.tiny_bundle import write_tiny_bundle

T = TypeVar("T")
WAIT_SECONDS = 120.0
PROMPT = (5, 77, 200, 31, 8, 120)


def settings_for(bundle: ModelBundle, **changes: Any) -> CloudSettings:
    """Loopback, a free port, one thread, a short drain, invariants checked after every change.

    ``limits`` stands for the settings of the store.
    """
    plain: dict[str, Any] = {
        "bundle": bundle.folder,
        "port": 0,
        "threads": 1,
        "drain_seconds": 5.0,
        "debug_invariants": True,
    }
    limits: StoreLimits | None = changes.pop("limits", None)
    if limits is not None:
        plain |= {
            "budget_mb": limits.budget_bytes / 2**20,
            "max_sessions": limits.max_sessions,
            "session_ttl": limits.idle_seconds,
        }
    return load_settings(plain | changes).settings


@functools.cache
def tiny_bundle() -> ModelBundle:
    """The seeded tiny bundle, written once a test run."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny_bundle(folder / "bundle", precisions=("float32",), full_depth=False)


@functools.cache
def full_model() -> FullModel:
    """The tiny bundle's full model."""
    torch.set_num_threads(1)
    return FullModel(tiny_bundle())


class FullModel:
    """Transformers' own reading of the bundle's cloud half: the truth of these tests."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.cut = bundle.manifest.cut
        self.vocabulary_size = bundle.manifest.architecture.vocabulary_size
        self._model = transformers.LlamaForCausalLM.from_pretrained(bundle.folder / "cloud")

    @torch.inference_mode()
    def run(self, ids: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Hidden states at the cut ``[n, hidden]`` and logits ``[n, vocabulary]``."""
        out = self._model(torch.tensor([list(ids)]), output_hidden_states=True)
        return out.hidden_states[self.cut][0].numpy(), out.logits[0].numpy()

    def continuation(
        self, prompt: Sequence[int], count: int, sampling: Sampling = GREEDY
    ) -> list[int]:
        """The next ``count`` tokens, without regard to stop tokens."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(choose_token(self.run(ids)[1][-1], sampling, len(ids)).token_id)
        return ids[len(prompt) :]


@dataclass
class Edge:
    """A client that says just what a test tells it to.

    ``stub`` takes and gives bytes, so that anything can be sent.
    """

    channel: grpc.aio.Channel
    fingerprint: str
    kind: ContextKind = ContextKind.TOKEN_IDS
    sampling: Sampling = GREEDY
    token: str | None = None
    session_id: bytes = field(default_factory=lambda: os.urandom(16))
    step: int = 0
    call: Any = None

    def connect(self) -> Self:
        metadata = [("session_id", self.session_id.hex())]
        if self.token:
            metadata.append(("authorization", f"Bearer {self.token}"))
        self.call = self.channel.stream_stream(SESSION_METHOD)(metadata=metadata)
        return self

    async def open(self, **changes: Any) -> Opened:
        """Connect, open (or reopen) the session and return the cloud's answer."""
        await self.connect().begin(**changes)
        return await self.expect(Opened)

    async def begin(self, **changes: Any) -> None:
        """Say Open."""
        fields: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "session_id": self.session_id,
            "bundle_fingerprint": self.fingerprint,
            "sampling": self.sampling,
            "context_kind": self.kind,
        }
        await self.send(Open(**(fields | changes)))

    async def send(self, body: Open | Context | Escalate | Truncate | Close) -> None:
        self.step += 1
        message = edge_message_to_proto(EdgeMessage(self.step, body))
        await self.send_bytes(message.SerializeToString())

    async def send_bytes(self, data: bytes) -> None:
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self.call.write(data)

    async def receive(self) -> CloudMessage:
        async with asyncio.timeout(WAIT_SECONDS):
            data = await self.call.read()
        assert data is not grpc.aio.EOF, "the cloud ended the stream"
        return cloud_message_from_proto(pb.CloudMessage.FromString(data))

    async def expect(self, kind: type[T]) -> T:
        body = (await self.receive()).body
        assert isinstance(body, kind), body
        return body

    async def failure(self) -> tuple[ErrorReply, grpc.StatusCode]:
        """The error message, skipping decisions before it, and then the status."""
        while not isinstance(body := (await self.receive()).body, ErrorReply):
            assert isinstance(body, Decision)
        return body, await self.status()

    async def refusal(self) -> grpc.StatusCode:
        """Connect and say nothing: how a call ends that is refused before it is read.

        gRPC's client ends a call itself, with INTERNAL, where it writes in the moment in which the
        server's status is on its way.
        """
        return await self.connect().status()

    async def status(self) -> grpc.StatusCode:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.call.code()

    async def decide(self, position: int, burst: int = 0) -> list[int]:
        """Escalate and return the tokens of all its decisions."""
        await self.send(Escalate(position, burst))
        decisions = [await self.expect(Decision) for _ in range(burst + 1)]
        assert [d.position for d in decisions] == list(range(position, position + burst + 1))
        return [decision.token_id for decision in decisions]

    async def close(self) -> Closed:
        await self.send(Close())
        closed = await self.expect(Closed)
        assert await self.status() is grpc.StatusCode.OK
        return closed


@contextlib.asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[CloudServer]:
    """The tiny bundle served on loopback."""
    async with CloudServer(settings_for(tiny_bundle(), **changes)) as server:
        yield server


@contextlib.asynccontextmanager
async def edge(
    server: CloudServer,
    bundle: ModelBundle,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    **fields: Any,
) -> AsyncIterator[Edge]:
    """A client on a channel of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.secure_channel(server.address, credentials, options=options)
        if credentials
        else grpc.aio.insecure_channel(server.address, options=options)
    ) as channel:
        yield Edge(channel, bundle.manifest.fingerprint, **fields)


def hidden_context(
    hidden: FloatArray, start: int, encoding: Encoding = Encoding.FLOAT32
) -> Context:
    """Rows from ``start`` on as a message."""
    return Context(start, encode(np.ascontiguousarray(hidden[start:]), encoding, compress=True))


@contextlib.asynccontextmanager
async def bystander(
    server: CloudServer, bundle: ModelBundle, full: FullModel, **fields: Any
) -> AsyncIterator[None]:
    """Another edge in the middle of its text, from before the block to after it; whatever happens
    in between, its tokens must be right."""
    wanted = full.continuation(PROMPT, 8)
    async with edge(server, bundle, **fields) as other:
        await other.open()
        ids = list(PROMPT)
        await other.send(Context(0, PROMPT))
        for step in range(8):
            if step == 4:
                yield
            ids += await other.decide(len(ids))
            await other.send(Context(len(ids) - 1, (ids[-1],)))
        assert ids[len(PROMPT) :] == wanted
        await other.close()


@dataclass
class Gate:
    """Holds the model's thread in front of a pass until it is opened."""

    entered: asyncio.Event
    _open: threading.Event

    def open(self) -> None:
        self._open.set()


@contextlib.contextmanager
def closed_gate(model: DeepModel) -> Iterator[Gate]:
    """Let no forward pass begin until ``gate.open()``, or the end of the block."""
    loop = asyncio.get_running_loop()
    gate = Gate(asyncio.Event(), threading.Event())
    forward = model.forward

    def waiting(chunks: Any) -> Any:
        loop.call_soon_threadsafe(gate.entered.set)
        assert gate._open.wait(WAIT_SECONDS)
        return forward(chunks)

    model.forward = waiting  # type: ignore[method-assign]
    try:
        yield gate
    finally:
        gate.open()
        model.forward = forward  # type: ignore[method-assign]


@contextlib.contextmanager
def failing(model: DeepModel, error: Exception, rows: int) -> Iterator[None]:
    """Make every pass fail that has a chunk of ``rows`` rows."""
    forward = model.forward

    def faulty(chunks: Any) -> Any:
        if any(len(chunk.rows) == rows for chunk in chunks):
            raise error
        return forward(chunks)

    model.forward = faulty  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.forward = forward  # type: ignore[method-assign]


async def eventually(holds: Callable[[], bool]) -> None:
    """Let others run until ``holds()``; for states that no event announces."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)
