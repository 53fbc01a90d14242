"""One replica of the Ray Serve application: a cloud of its own, with its own model and store.

Serve's proxy takes a stream and hands it to a replica, which here looks like gRPC to the service:
a write waits while the edge has not taken what was written before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from ray.exceptions import RayError

from cloud.cloud_core import CloudCore
from cloud.ray_proxy import MESSAGE, TAKEN, TELL_BYTES
from cloud.settings import CloudSettings
from shared.logs import about, configure_logging

# on their way to the edge; more than what it takes before the proxy tells
WINDOW_BYTES = 256 << 10
assert WINDOW_BYTES > TELL_BYTES
# of an edge's messages that the service has not read yet, before the proxy is asked for no more
_UNREAD_BYTES = 1 << 20

_LOG = logging.getLogger("tandem.cloud")


class Replica:
    """What Serve runs in a process of its own; ``Session`` is called for every stream."""

    async def __init__(self, settings: CloudSettings) -> None:  # type: ignore[misc]  # Serve awaits
        configure_logging(settings.log_level, settings.log_format)
        # a replica that drains still has its port while its successor starts
        self._core = CloudCore(settings, metrics_ports=2 * settings.most_replicas)
        await self._core.__aenter__()
        self._core.metrics.serving.set(1)
        _LOG.info("replica started", extra=about(metrics=self._core.metrics_url or "off"))

    async def Session(  # noqa: N802  (the name in the proto)
        self, requests: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[_Encoded]:
        """Serve one stream; bytes in, bytes out."""
        call = _Call(grpc_context)
        serving = asyncio.create_task(self._serve(requests, call), name="session")
        try:
            async for message in call.messages():
                yield message
        finally:
            serving.cancel()
            await asyncio.wait([serving])

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        self._core.batcher.check()

    async def __del__(self) -> None:
        """Serve awaits this once the streams are gone, or their time is up."""
        self._core.metrics.serving.set(0)
        await self._core.__aexit__(None, None, None)

    async def _serve(self, requests: AsyncIterator[bytes], call: _Call) -> None:
        # also while the service reads nothing: the proxy tells what was taken
        listening = asyncio.create_task(call.listen(requests), name="proxy")
        try:
            await self._core.service.session(call.received(), call)
        except _EndedError:
            pass  # the context has its status
        finally:
            call.end()
            listening.cancel()
            await asyncio.wait([listening])


class _EndedError(Exception):
    """The service ended the call with a status."""


@dataclass(frozen=True)
class _Encoded:
    """A message as bytes; Serve asks it for them as it would ask protobuf's."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The bytes."""
        return self.data


class _Call:
    """A call as the service knows it from gRPC, around the context that Serve made of it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._outgoing: asyncio.Queue[_Encoded | None] = asyncio.Queue()
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._untaken = self._unread = 0  # bytes
        self._changed = asyncio.Condition()

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What the edge sent along, its token among it."""
        metadata: Iterable[tuple[str, str | bytes]] = self._context.invocation_metadata()
        return metadata

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """No certificate: TLS, where there is any, has ended before Serve's proxy."""
        return {}

    async def write(self, data: bytes) -> None:
        """Send a message once the edge has taken enough of those before.  Then it does not wait, so
        that the status of an ``abort`` that follows is set before Serve takes the message, and with
        it the status."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._untaken < WINDOW_BYTES)
        self._untaken += len(data)
        self._outgoing.put_nowait(_Encoded(data))

    async def received(self) -> AsyncIterator[bytes]:
        """What the edge sends, until it or the proxy is gone; both leave the session to be
        resumed."""
        while (message := await self._incoming.get()) is not None:
            async with self._changed:
                self._unread -= len(message)
                self._changed.notify_all()
            yield message

    async def listen(self, requests: AsyncIterator[bytes]) -> None:
        """Take what the proxy says until the call is over."""
        try:
            async for frame in requests:
                kind, content = frame[:1], frame[1:]
                async with self._changed:
                    if kind == TAKEN:
                        self._untaken -= int.from_bytes(content, "big")
                        self._changed.notify_all()
                    elif kind == MESSAGE:
                        self._unread += len(content)
                        self._incoming.put_nowait(content)
                        await self._changed.wait_for(lambda: self._unread < _UNREAD_BYTES)
                    else:
                        self._incoming.put_nowait(None)
        except RayError as error:
            _LOG.info("stream broken", extra=about(reason=type(error).__name__))
        finally:
            self._incoming.put_nowait(None)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call.  The status is set rather than raised: Serve would log every refusal as a
        fault of the replica's."""
        self._context.set_code(code)
        self._context.set_details(details)
        raise _EndedError

    def end(self) -> None:
        """No more messages."""
        self._outgoing.put_nowait(None)

    async def messages(self) -> AsyncIterator[_Encoded]:
        """What is sent, until the end."""
        while (message := await self._outgoing.get()) is not None:
            yield message
