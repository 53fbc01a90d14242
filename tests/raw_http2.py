"""A gRPC client made of plain HTTP/2 frames (RFC 9113), whose window does not open by itself.

What is beyond the window stays with the server: headers and settings come, messages do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from cloud.collaboration_service import SESSION_METHOD
from shared.messages import (
    PROTOCOL_VERSION,
    Close,
    Context,
    ContextKind,
    EdgeMessage,
    Escalate,
    Open,
    Truncate,
    edge_message_to_proto,
)
from shared.sampling import GREEDY
from tests.cloud_harness import tiny_bundle

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_CALL = 1  # the number of the only stream


@dataclass
class RawEdge:
    """An edge whose stream takes ``window`` bytes of messages, and more only after :meth:`take`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    window: int = 0
    session_id: bytes = field(default_factory=lambda: os.urandom(16))
    received: int = 0
    headers: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _step: int = 0

    async def open(self) -> None:
        """Begin a call and say Open."""
        host, port = self.writer.get_extra_info("peername")[:2]
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": SESSION_METHOD,
            ":authority": f"{host}:{port}",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(_literal(name, value) for name, value in fields.items())
        self._frame(_HEADERS, _END_HEADERS, _CALL, block)
        fingerprint = tiny_bundle().manifest.fingerprint
        kind = ContextKind.TOKEN_IDS
        await self.send(Open(PROTOCOL_VERSION, self.session_id, fingerprint, GREEDY, kind))

    async def send(self, body: Open | Context | Escalate | Truncate | Close) -> None:
        self._step += 1
        message = edge_message_to_proto(EdgeMessage(self._step, body)).SerializeToString()
        self._frame(_DATA, 0, _CALL, struct.pack(">BI", 0, len(message)) + message)
        await self.writer.drain()

    async def take(self, size: int) -> None:
        """Let so many more bytes come."""
        for stream in (0, _CALL):  # the connection has a window of its own
            self._frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", size))
        await self.writer.drain()

    def greet(self) -> None:
        """What a connection begins with."""
        self.writer.write(_PREFACE)
        self._frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, self.window))

    async def read(self) -> None:
        """Look at what comes, until the connection ends."""
        while True:
            try:
                head = await self.reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                payload = await self.reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._frame(kind, _ACK, 0, payload if kind == _PING else b"")
            elif kind == _DATA:
                self.received += length
            elif kind == _HEADERS:
                self.headers.set()
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                self.ended.set()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload).to_bytes(3, "big")
        self.writer.write(size + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload)


def _literal(name: str, value: str) -> bytes:
    """A header that no table remembers (RFC 7541, 6.2.2), for texts below 127 bytes."""
    texts = (name.encode(), value.encode())
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)


@contextlib.asynccontextmanager
async def raw_edge(address: str, window: int) -> AsyncIterator[RawEdge]:
    """A connection of its own, read in the background as long as the block runs."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    edge = RawEdge(reader, writer, window)
    edge.greet()
    reading = asyncio.create_task(edge.read(), name="raw edge")
    try:
        yield edge
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
