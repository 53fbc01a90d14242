"""A TCP proxy whose bytes travel as a simulated link says, changeable while it runs.

All connections share the link.  The model (:mod:`simulator.link_model`) decides when bytes leave;
the proxy keeps the time.  Timers are as precise as the event loop's: run it on
:func:`simulator.precise_loop.new_event_loop` for a tenth of a millisecond instead of a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import deque
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from shared.errors import ConfigurationError, LinkError
from simulator.alarm import Alarm
from simulator.link_flow import LinkCounts
from simulator.link_model import Link, LinkDirection
from simulator.link_spec import LinkSpec
from simulator.proxied_connection import Connection, Way

# in a steady stream packets that arrive within so many seconds are written together, at the last
# one's time; more wake-ups would burn a core at high rates
_TOGETHER_SECONDS = 0.00025
_MAX_OUTAGE_SECONDS = 86_400.0
_PORT_ATTEMPTS = 8


def parse_address(text: str, what: str) -> tuple[str, int]:
    """``HOST:PORT`` (``[::1]:80`` for IPv6) as a pair; ``what`` names it in the error.

    Raises:
        LinkError: it is not of that form, or the host is no name that could be looked up.
    """
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise LinkError(f"{what} {text!r} is not HOST:PORT")
    try:
        host.encode("idna")  # as getaddrinfo does, which lets the failure through
    except UnicodeError:
        raise LinkError(f"{what} {text!r} names no possible host") from None
    if "\0" in host:
        raise LinkError(f"{what} {text!r} names no possible host")
    return host, int(port)


def show_address(host: str, port: int) -> str:
    """The inverse of :func:`parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class ProxyStats:
    """What has happened since the proxy started; per way, what the model counted.

    ``held_bytes`` are in the proxy now: under way, or waiting for the link.
    """

    seconds: float
    connections_open: int
    connections_total: int
    connections_refused: int
    connections_reset: int
    held_bytes: int
    up: LinkCounts
    down: LinkCounts

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class ShapedProxy:
    """Listens while ``async with`` holds it, and carries each connection to ``target``.

    Args:
        target: ``HOST:PORT`` of the real service.
        link: what the way there and back is like.
        listen: ``HOST:PORT``; port 0 takes a free one (see :attr:`address`).  A name with several
            addresses, as ``localhost`` may have, is listened on at all of them, on the same port.
        seed: of all chance in the link.

    Raises:
        ConfigurationError: an address that is none, or that cannot be listened on.
    """

    def __init__(
        self,
        target: str,
        link: LinkSpec,
        *,
        listen: str = "127.0.0.1:0",
        seed: int = 0,
    ) -> None:
        self._target = parse_address(target, "target")
        self._listen = parse_address(listen, "listening address")
        self._spec = link
        self._seed = seed
        self._connections: set[Connection] = set()
        self._waiting: deque[Way] = deque()
        self._dialling: set[asyncio.Task[None]] = set()
        self._pumping = False
        self._total = self._refused = self._reset = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._alarm = Alarm(self._loop, self._pump)
        self._link = Link(self._spec, seed=self._seed, start=self._started)
        host, port = self._listen
        try:
            self._server = await self._listen_at(host, port)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {show_address(host, port)}: {error.strerror}"
            ) from None
        self.address = show_address(*self._server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        self._alarm.cancel()
        await self._server.wait_closed()

    @property
    def link(self) -> LinkSpec:
        """What the link is like now."""
        return self._link.spec

    def set_link(self, spec: LinkSpec, *, seed: int | None = None) -> None:
        """Be like ``spec`` from now on; connections stay up, bytes under way arrive.

        Traces and scheduled outages begin now, an :meth:`outage` that is not over goes on, and with
        a ``seed`` all chance begins anew from it (see :meth:`simulator.link_model.Link.change`).
        """
        self._link.change(spec, self._loop.time(), seed=seed)
        self._pump()

    def outage(self, seconds: float) -> None:
        """Let nothing through for ``seconds``; connections stay up and bytes wait.

        Nothing ends it early.

        Raises:
            LinkError: not a duration.
        """
        if not 0 < seconds <= _MAX_OUTAGE_SECONDS:
            raise LinkError(f"an outage lasts more than 0 and at most {_MAX_OUTAGE_SECONDS:g} s")
        self._link.interrupt(self._loop.time(), seconds)
        self._pump()

    def reset(self) -> int:
        """Reset every connection at both ends, at once; return how many there were."""
        victims = tuple(self._connections)
        self._reset += len(victims)
        for connection in victims:
            connection.abort()
        return len(victims)

    def stats(self) -> ProxyStats:
        """Counts since the start."""
        return ProxyStats(
            seconds=self._loop.time() - self._started,
            connections_open=len(self._connections),
            connections_total=self._total,
            connections_refused=self._refused,
            connections_reset=self._reset,
            held_bytes=sum(c.up.held_bytes + c.down.held_bytes for c in self._connections),
            up=self._link.up.counts,
            down=self._link.down.counts,
        )

    def kick(self, way: Way) -> None:
        """``way`` has something to send: its turn comes after those that wait already."""
        if way.waits and way not in self._waiting:
            self._waiting.append(way)
        self._pump()

    def dial(self, connection: Connection) -> None:
        """Connect to the target; a connection that is refused is reset."""
        task = self._loop.create_task(self._dial(connection))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    def ended(self, connection: Connection) -> None:
        """Forget a connection whose sockets are gone."""
        self._connections.discard(connection)
        for way in (connection.up, connection.down):
            way.link.forget(way)
            if way in self._waiting:
                self._waiting.remove(way)

    async def _listen_at(self, host: str, port: int) -> asyncio.Server:
        """A server on all addresses of ``host``, on one port."""
        for _ in range(_PORT_ATTEMPTS):
            server = await self._loop.create_server(self._accept, host, port)
            ports = {listener.getsockname()[1] for listener in server.sockets}
            if len(ports) == 1:
                return server
            server.close()  # port 0 was another one at each address: try one of them at all
            with contextlib.suppress(OSError):
                return await self._loop.create_server(self._accept, host, ports.pop())
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def _accept(self) -> asyncio.Protocol:
        connection = Connection(self._link.up, self._link.down, self)
        self._connections.add(connection)
        self._total += 1
        return connection.client

    async def _dial(self, connection: Connection) -> None:
        host, port = self._target
        try:
            await self._loop.create_connection(lambda: connection.server, host, port)
        except (OSError, ValueError):  # ValueError: a name that the resolver cannot even encode
            self._refused += 1
            connection.refused()

    def _pump(self) -> None:
        """Take what the link has delivered, give it what waits, and set the timer.

        What a delivery sets off comes back here through :meth:`kick`; the loop below sees to it.
        """
        if self._pumping:
            return
        self._pumping = True
        try:
            now = self._loop.time()
            while True:
                self._deliver(self._link.up, now)
                self._deliver(self._link.down, now)
                self._feed(now)
                if min(self._link.up.next_time(), self._link.down.next_time()) > now:
                    break
        finally:
            self._pumping = False
        self._set_timer(now)

    def _deliver(self, direction: LinkDirection, now: float) -> None:
        arrived: dict[Any, int] = {}
        for way, size, _ in direction.collect(now):
            arrived[way] = arrived.get(way, 0) + size
        for way, size in arrived.items():
            way.deliver(size)

    def _feed(self, now: float) -> None:
        """Slices in turn, until the link has no room for any."""
        stuck = 0
        while stuck < len(self._waiting):
            way = self._waiting.popleft()
            stuck = 0 if way.feed(now) else stuck + 1
            if way.waits:
                self._waiting.append(way)

    def _set_timer(self, now: float) -> None:
        when = min(self._link.up.next_time(), self._link.down.next_time())
        for link in {way.link for way in self._waiting}:
            when = min(when, link.next_room())
        when = max(when, now + _TOGETHER_SECONDS)
        self._alarm.set(when)
