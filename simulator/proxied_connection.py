"""One TCP connection through a simulated link: two sockets, and what is on its way between them.

Everything that crosses the link is paid for in the model: bytes, and the segments that carry none.
The handshake's three (SYN, SYN-ACK, ACK), the end of a half (FIN) and a reset count one byte each,
so a connection costs a round trip before its first byte, and an end or a reset arrives after the
bytes before it.  A reset is noticed when its socket is next read: not while bytes of that socket
wait already.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from simulator.link_model import LinkDirection

_SLICE_BYTES = 32_768  # what a connection puts on the link before the next one's turn
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close() sends RST


class Host(Protocol):
    """What a connection needs of its proxy."""

    def kick(self, way: Way) -> None:
        """``way`` has something to send."""

    def dial(self, connection: Connection) -> None:
        """Connect ``connection.server`` to the target, or call ``connection.refused()``."""

    def ended(self, connection: Connection) -> None:
        """Both sockets are gone."""


@dataclass(frozen=True)
class Marker:
    """A segment without payload; ``arrived`` is called when it comes out of the link."""

    arrived: Callable[[], None]


class Way:
    """One direction of one connection: what waits for the link, and what is on it."""

    def __init__(self, link: LinkDirection, source: End, sink: End, host: Host) -> None:
        self.link = link
        self._source = source
        self._sink = sink
        self._host = host
        self._waiting: deque[memoryview | Marker] = deque()
        self._under_way: deque[memoryview | Marker] = deque()
        self._open = False
        self.finished = False

    @property
    def waits(self) -> bool:
        """Whether something could go onto the link now, if that had room."""
        return bool(self._waiting) and not self._sink.choked

    @property
    def held_bytes(self) -> int:
        """Payload that waits or is under way."""
        items = (*self._waiting, *self._under_way)
        return sum(len(item) for item in items if isinstance(item, memoryview))

    def open(self) -> None:
        """The source may speak."""
        self._open = True
        self.mind_reading()

    def push(self, item: bytes | Marker) -> None:
        """Send bytes or a marker after everything pushed before."""
        self._waiting.append(item if isinstance(item, Marker) else memoryview(item))
        self._host.kick(self)

    def push_end(self) -> None:
        """The source has said all."""
        self.push(Marker(self._finish))

    def push_reset(self) -> None:
        """The source is gone: what it had not yet sent is lost, what is under way arrives."""
        self._waiting.clear()
        self.push(Marker(self._sink.abort))

    def feed(self, now: float) -> bool:
        """Put a slice of what waits onto the link; whether it took any."""
        room = _SLICE_BYTES
        while room > 0 and self.waits:
            item = self._waiting[0]
            size = 1 if isinstance(item, Marker) else len(item)
            taken = self.link.send(self, min(size, room), now)
            if not taken:
                break
            room -= taken
            if isinstance(item, Marker) or taken == size:
                self._under_way.append(self._waiting.popleft())
            else:
                self._under_way.append(item[:taken])
                self._waiting[0] = item[taken:]
        self.mind_reading()
        return room < _SLICE_BYTES

    def deliver(self, size: int) -> None:
        """The next ``size`` bytes have come out of the link."""
        out: list[memoryview] = []
        while size:
            item = self._under_way.popleft()
            if isinstance(item, Marker):
                size -= 1
                self._sink.write(out)
                out = []
                item.arrived()
            elif len(item) <= size:
                size -= len(item)
                out.append(item)
            else:
                out.append(item[:size])
                self._under_way.appendleft(item[size:])
                size = 0
        self._sink.write(out)

    def mind_reading(self) -> None:
        """Read from the source only while nothing of it waits, so that memory stays bounded."""
        self._source.read(self._open and not self._waiting and not self._sink.choked)

    def _finish(self) -> None:
        self.finished = True
        self._sink.finish()


class End(asyncio.Protocol):
    """One of the two sockets.  asyncio turns Nagle's algorithm off (TCP_NODELAY) on each."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self.choked = False
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        self._connection.made(self)

    def data_received(self, data: bytes) -> None:
        self._connection.way_from(self).push(data)

    def eof_received(self) -> bool:
        self._connection.way_from(self).push_end()
        return True  # the other half goes on

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        self._connection.lost(self)

    def pause_writing(self) -> None:
        self.choked = True
        self._connection.way_to(self).mind_reading()

    def resume_writing(self) -> None:
        self.choked = False
        self._connection.resumed(self)

    def read(self, wanted: bool) -> None:
        """Read, or leave what comes in the socket."""
        if self._transport is None or self._transport.is_closing():
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def write(self, chunks: list[memoryview]) -> None:
        if chunks and self._transport is not None and not self._transport.is_closing():
            self._transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def finish(self) -> None:
        """Close the writing half."""
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the other side has reset it: its loss follows
                self._transport.write_eof()
        self._connection.half_done()

    def close(self) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Reset the connection at this end."""
        if self._transport is None or self.lost:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()


class Connection:
    """A client's socket, the target's, and a way each way; starts with a handshake."""

    def __init__(self, up: LinkDirection, down: LinkDirection, host: Host) -> None:
        self._host = host
        self.client = End(self)
        self.server = End(self)
        self.up = Way(up, self.client, self.server, host)
        self.down = Way(down, self.server, self.client, host)
        self._orderly = False
        self._dialled = False

    def way_from(self, end: End) -> Way:
        """The way whose source is ``end``."""
        return self.up if end is self.client else self.down

    def way_to(self, end: End) -> Way:
        """The way whose sink is ``end``."""
        return self.down if end is self.client else self.up

    def made(self, end: End) -> None:
        """``end`` has its socket."""
        if end is self.client:
            self.up.push(Marker(self._syn_arrived))
        elif self.client.lost:
            end.abort()
        else:
            self.down.push(Marker(self._syn_ack_arrived))

    def refused(self) -> None:
        """The target cannot be reached; the client learns it a way back later."""
        self.server.lost = True
        if self.client.lost:
            self._host.ended(self)
        else:
            self.down.push_reset()

    def resumed(self, end: End) -> None:
        """``end`` takes bytes again."""
        way = self.way_to(end)
        way.mind_reading()
        self._host.kick(way)

    def half_done(self) -> None:
        """One half has ended; after both the sockets close."""
        if self.up.finished and self.down.finished:
            self._orderly = True
            self.client.close()
            self.server.close()

    def lost(self, end: End) -> None:
        """``end``'s socket is gone."""
        other = self.server if end is self.client else self.client
        if other.lost or (end is self.client and not self._dialled):
            self._host.ended(self)
        elif not self._orderly:
            self.way_from(end).push_reset()

    def abort(self) -> None:
        """Reset both ends at once."""
        self._orderly = True
        self.client.abort()
        self.server.abort()

    def _syn_arrived(self) -> None:
        self._dialled = True
        self._host.dial(self)

    def _syn_ack_arrived(self) -> None:
        self.up.push(Marker(self.down.open))
        self.up.open()
