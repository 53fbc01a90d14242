"""Connections that ask for nothing, or not to the end, lock nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import httpx
import pytest

from edge.http_app import HttpSettings, http_app
from edge.http_connection import ConnectionLimits
from edge.http_server import HttpServer, bind
from edge.service import EdgeService
from tests.cloud_harness import WAIT_SECONDS, tiny_bundle
from tests.http_harness import STANDALONE

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@asynccontextmanager
async def listening(limits: ConnectionLimits) -> AsyncIterator[int]:
    """The port of a daemon that serves over such connections."""
    service = EdgeService(tiny_bundle(), STANDALONE, precision="float32", threads=1)
    app = http_app(service, HttpSettings())
    with closing(bind("127.0.0.1", 0)) as bound:
        async with service, HttpServer(app, bound, "127.0.0.1", limits):
            yield bound.getsockname()[1]


class Client:
    """Says something, or nothing, and stays."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, said: bytes) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.writer.write(said)
        return client

    async def until_closed(self) -> bytes:
        """What still comes."""
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


async def ask(port: int, path: str = "/health") -> httpx.Response:
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as http:
        return await http.get(f"http://127.0.0.1:{port}{path}")


@pytest.mark.parametrize("said", [b"", b"G", HEAD, HEAD + b"\r\n" + HEAD])
async def test_headers_that_do_not_come_end_the_connection(said: bytes) -> None:
    async with listening(ConnectionLimits(header_seconds=0.2)) as port:
        client = await Client.connect(port, said)
        rest = await client.until_closed()
        assert rest.startswith(b"HTTP/1.1 200") == (b"\r\n\r\n" in said)


async def test_a_request_that_takes_longer_than_its_headers_may() -> None:
    async with listening(ConnectionLimits(header_seconds=0.05)) as port:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 300}
        async with httpx.AsyncClient(timeout=WAIT_SECONDS) as http:
            assert (await http.post(url, json=body)).status_code == 200


async def test_silent_connections_make_room() -> None:
    async with listening(ConnectionLimits(most=4, header_seconds=WAIT_SECONDS * 9)) as port:
        silent = [await Client.connect(port, b"G" * (number % 2)) for number in range(12)]
        assert (await ask(port)).json() == {"status": "ok"}
        for client in silent[:9]:
            await client.until_closed()
        assert not any(client.reader.at_eof() for client in silent[9:])


async def test_more_than_can_be_at_work_are_told_so() -> None:
    async with listening(ConnectionLimits(most=2)) as port, AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=WAIT_SECONDS))
        for _ in range(2):
            events = http.stream("GET", f"http://127.0.0.1:{port}/tandem/events")
            lines = (await stack.enter_async_context(events)).aiter_lines()
            await anext(lines)
        refused = await ask(port)
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "too_many_connections")
        assert refused.headers["connection"] == "close"
        assert "retry-after" in refused.headers
