"""A TCP relay that cuts connections at random bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Self


class CuttingLink:
    """Resets each connection once so many bytes (random, ``mean_bytes`` on average, both
    directions together) have passed, until ``cuts`` were cut; after that it only relays.

    ``on_cut`` hears how many cuts there were.
    """

    def __init__(
        self,
        target: str,
        *,
        cuts: int,
        mean_bytes: float,
        seed: int,
        on_cut: Callable[[int], None] = lambda _: None,
    ) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._planned, self._mean_bytes = cuts, mean_bytes
        self._random = random.Random(seed)
        self._on_cut = on_cut
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((reader, writer), (there, back), self._allowance())
        with suppress(OSError):
            if await connection.relay():
                self.cuts += 1
                self._on_cut(self.cuts)

    def _allowance(self) -> int | None:
        if self.cuts >= self._planned:
            return None
        return int(self._random.expovariate(1 / self._mean_bytes))


class _Connection:
    def __init__(
        self,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        allowance: int | None,
    ) -> None:
        self._ends = (here, there)
        self._left = allowance

    async def relay(self) -> bool:
        """Pass bytes on until an end closes or the allowance is used up; whether it was."""
        (here, back), (there, onward) = self._ends
        ways = [
            asyncio.create_task(self._forward(here, onward)),
            asyncio.create_task(self._forward(there, back)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return any(way.result() for way in done if way.exception() is None)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (back, onward):
                writer.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> bool:
        while data := await source.read(1 << 16):
            if self._left is not None:
                data, over = data[: self._left], len(data) > self._left
                self._left -= len(data)
                sink.write(data)
                await sink.drain()
                if over:
                    return True
            else:
                sink.write(data)
                await sink.drain()
        return False
