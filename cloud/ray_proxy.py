"""What Ray Serve's gRPC proxies are told of the service, and what they tell its replicas.

A replica hears from Serve neither what the edge has taken nor that it should wait: Serve fetches
all that a replica has for an edge, however slowly that reads.  So the proxy frames what it passes
on to the replica (a byte in front), and between the edge's messages says how many bytes gRPC has
taken from it for the edge, which is what :mod:`cloud.ray_replica` waits for.

Proxies import this module on every node, so it is kept from torch and the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from protos.tandem.v1 import collaboration_pb2 as pb

MESSAGE, TAKEN, END = b"m", b"t", b"e"
# how many bytes are taken before the replica is told
TELL_BYTES = 16 << 10

_SERVICE = pb.DESCRIPTOR.services_by_name["Collaboration"].full_name
_Behaviour: TypeAlias = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]


def add_collaboration(servicer: Any, server: Any) -> None:
    """Make a proxy take ``Session``.  Its messages pass as bytes, which the replica reads: what is
    no message then ends its session with a typed error, as it does without Ray."""
    session = grpc.stream_stream_rpc_method_handler(servicer.Session)
    server.add_generic_rpc_handlers((_Framing({f"/{_SERVICE}/Session": session}),))


class _Framing(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Serve puts behaviours of its own into ``_method_handlers``; they get framed requests."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._method_handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """The handler of the method that is called, ``None`` where it is not ours."""
        handler = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        return handler._replace(stream_stream=framed(handler.stream_stream))


def framed(behaviour: _Behaviour) -> _Behaviour:
    """``behaviour`` with framed requests that tell what was taken of its responses."""

    async def session(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        frames = _Frames(requests)
        try:
            async for message in behaviour(frames.all(), context):
                yield message
                frames.taken(len(message))  # gRPC asks for more once it has taken this
        finally:
            frames.stop()

    return session


class _Frames:
    """The edge's messages, and what the edge has taken."""

    def __init__(self, requests: AsyncIterator[bytes]) -> None:
        self._requests = requests
        self._taken = 0
        self._stopped = False
        self._changed = asyncio.Event()

    def taken(self, size: int) -> None:
        """So many bytes more were taken."""
        self._taken += size
        if self._taken >= TELL_BYTES:
            self._changed.set()

    def stop(self) -> None:
        """The call is over."""
        self._stopped = True
        self._changed.set()

    async def all(self) -> AsyncIterator[bytes]:
        """Frames until the call is over; after the edge's last message only what it takes."""
        reading: asyncio.Task[bytes] | None = asyncio.create_task(self._read())
        changing = asyncio.create_task(self._changed.wait())
        try:
            while not self._stopped:
                if self._taken >= TELL_BYTES:
                    taken, self._taken = self._taken, 0
                    yield TAKEN + taken.to_bytes(8, "big")
                if changing.done():
                    self._changed.clear()
                    changing = asyncio.create_task(self._changed.wait())
                    continue
                if reading is not None and reading.done():
                    frame = reading.result()  # raises where the edge is gone
                    reading = None if frame == END else asyncio.create_task(self._read())
                    yield frame
                    continue
                tasks = [changing] if reading is None else [changing, reading]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changing.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])
                if not reading.cancelled():
                    reading.exception()  # the edge is gone, which ends the call by itself

    async def _read(self) -> bytes:
        try:
            return MESSAGE + await anext(self._requests)
        except StopAsyncIteration:
            return END
