"""Edges that send what entropy says: in order, out of it, or spoilt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from cloud.collaboration_service import SESSION_METHOD
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.messages import (
    PROTOCOL_VERSION,
    Close,
    Context,
    ContextKind,
    EdgeMessage,
    Escalate,
    Open,
    Truncate,
    cloud_message_from_proto,
    edge_message_to_proto,
)
from shared.sampling import GREEDY, Sampling
from shared.tensor_codec import Encoding, encode
from tests.cloud_harness import WAIT_SECONDS
from tests.fuzz_harness import Entropy

SESSIONS = 10
_SAMPLINGS = (GREEDY, GREEDY, Sampling(0.8, 0.9, 7), Sampling(1e-300, 5e-324, 2**64 - 1))
_ENDINGS = ("close", "half-close", "half-close", "cancel", "cancel unread")


@dataclass(frozen=True)
class Script:
    """What one stream sends, and how it ends."""

    messages: tuple[bytes, ...]
    ending: str


class ScriptWriter:
    """Writes scripts for a model of ``vocabulary`` tokens and ``hidden`` columns."""

    def __init__(
        self, entropy: Entropy, fingerprint: str, vocabulary: int, hidden: int, most_bytes: int
    ) -> None:
        self._entropy, self._fingerprint = entropy, fingerprint
        self._vocabulary, self._hidden, self._most_bytes = vocabulary, hidden, most_bytes
        self._step = 0

    def script(self) -> Script:
        """One stream's, that begins with an Open more often than not."""
        entropy = self._entropy
        number = entropy.below(SESSIONS)
        kind = ContextKind.HIDDEN_STATES if number % 3 == 0 else ContextKind.TOKEN_IDS
        opening = Open(
            PROTOCOL_VERSION,
            bytes([number]) * 16,
            self._fingerprint,
            _SAMPLINGS[number % 4] if not entropy.chance(16) else Sampling(0.5),
            kind,
        )
        messages = [self._bytes(opening)]
        held = 0
        for _ in range(entropy.below(12)):
            body, held = self._next(kind, held)
            messages.append(self._bytes(body))
        for index, message in enumerate(messages):
            if entropy.chance(20):
                messages[index] = entropy.spoil(message, messages[entropy.below(len(messages))])
            elif entropy.chance(60):
                messages[index] = entropy.take(entropy.below(30))
            elif entropy.chance(200):
                messages[index] = bytes(self._most_bytes + 1)
        if entropy.chance(24):
            messages.sort(key=lambda _: entropy.below(256))
        return Script(tuple(messages), entropy.pick(_ENDINGS))

    def _next(
        self, kind: ContextKind, held: int
    ) -> tuple[Context | Escalate | Truncate | Open, int]:
        """A body that fits what the cloud should hold, or nearly, and what it holds then."""
        entropy = self._entropy
        mad = entropy.chance(24)
        match entropy.below(8) if held else 0:
            case 0 | 1 | 2:
                start = entropy.below(held + 40) if mad else held - entropy.below(min(held, 3) + 1)
                count = 1 + entropy.below(20)
                return self._context(kind, start, count, mad), max(held, start + count)
            case 7:
                position = entropy.uint(22) if mad else entropy.below(held + 1)
                return Truncate(position), min(held, position)
            case _:
                ids = kind is ContextKind.TOKEN_IDS or mad
                return (
                    Escalate(
                        1 + (entropy.uint(21) if mad else entropy.below(held)),
                        entropy.pick((0, 0, 1, 3, 500 if mad else 0)) if ids else 0,
                        entropy.below(self._vocabulary) if entropy.chance(3) else None,
                        entropy.pick((0, 0, 2)) if ids else 0,
                    ),
                    held,
                )

    def _context(self, kind: ContextKind, start: int, count: int, mad: bool) -> Context:
        entropy = self._entropy
        if (kind is ContextKind.TOKEN_IDS) != (mad and entropy.chance(3)):
            limit = self._vocabulary + (mad and entropy.chance(3))
            return Context(start, tuple(entropy.below(limit) for _ in range(count)))
        count = 1 + count % 3
        pattern = np.frombuffer(entropy.take(8), np.int8)
        rows = np.resize(pattern, (count, self._hidden)).astype(np.float32) / np.float32(16)
        return Context(
            start, encode(rows, entropy.pick(list(Encoding)), compress=entropy.chance(2))
        )

    def _bytes(self, body: Open | Context | Escalate | Truncate) -> bytes:
        self._step += 1
        return edge_message_to_proto(EdgeMessage(self._step, body)).SerializeToString()


async def play(channel: grpc.aio.Channel, script: Script, token: str) -> grpc.StatusCode | None:
    """Send all of it, read what comes (messages that are none are an error) and return the end;
    ``None`` where the client broke it off itself, because it wrote to a stream that had ended."""
    metadata = (("authorization", f"Bearer {token}"),)
    call: Any = channel.stream_stream(SESSION_METHOD)(metadata=metadata)
    reading = None
    if script.ending != "cancel unread":
        reading = asyncio.create_task(_read_all(call))
    messages = list(script.messages)
    if script.ending == "close":
        messages.append(edge_message_to_proto(EdgeMessage(999, Close())).SerializeToString())
    try:
        for data in messages:
            await call.write(data)
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.BaseError):
        pass  # the cloud has ended it
    if script.ending in ("cancel", "cancel unread"):
        call.cancel()
    if reading is not None:
        await reading
    async with asyncio.timeout(WAIT_SECONDS):
        code: grpc.StatusCode = await call.code()
        return None if await call.details() == "Internal error from Core" else code


async def _read_all(call: Any) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while (data := await call.read()) is not grpc.aio.EOF:
                cloud_message_from_proto(pb.CloudMessage.FromString(data))
    except grpc.aio.AioRpcError:
        pass  # the status says why
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
