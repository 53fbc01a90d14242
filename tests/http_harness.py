"""A daemon with its HTTP API on a real port: ``async with daemon(...) as edge``, ``edge.url``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import openai
import uvicorn
from pydantic import BaseModel
from starlette.routing import BaseRoute

from cloud.server import CloudServer
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.generation import Mode
from edge.http_app import HttpSettings, http_app
from edge.service import AnswerRecord, EdgeService
from shared.model_bundle import ModelBundle
from tests.cloud_harness import WAIT_SECONDS, serving, tiny_bundle

T = TypeVar("T", bound=BaseModel)
STANDALONE = Controls(Mode.STANDALONE)
SAY: list[Any] = [{"role": "user", "content": "Say something."}]


@dataclass
class Daemon:
    """A daemon that listens at ``url`` (``http://127.0.0.1:port``)."""

    url: str
    service: EdgeService
    clients: AsyncExitStack = field(default_factory=AsyncExitStack)

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        """The official client, which shows errors at once; closed before the daemon."""
        plain: dict[str, Any] = {"api_key": "unused", "max_retries": 0, "timeout": WAIT_SECONDS}
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", **(plain | options))
        self.clients.push_async_callback(client.close)
        return client

    def http(self, **options: Any) -> httpx.AsyncClient:
        """A plain client; its connections are its own."""
        plain: dict[str, Any] = {"base_url": self.url, "timeout": WAIT_SECONDS}
        return httpx.AsyncClient(**(plain | options))


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@asynccontextmanager
async def daemon(
    bundle: ModelBundle | None = None,
    *,
    cloud: str | None = None,
    controls: Controls | None = None,
    settings: HttpSettings | None = None,
    routes: Sequence[BaseRoute] = (),
    send_buffer: int | None = None,
    **service_options: Any,
) -> AsyncIterator[Daemon]:
    """The service around ``bundle`` (the tiny one) with its API; ``cloud`` is HOST:PORT, and
    ``send_buffer`` the bytes that its sockets hold for a client that does not read."""
    if controls is None:
        controls = STANDALONE if cloud is None else Controls(Mode.COLLABORATIVE)
    options: dict[str, Any] = {
        "precision": "float32",
        "threads": 1,
        "kept_conversations": 0,  # so that the cloud holds nothing after an answer
        "endpoint": CloudEndpoint(cloud) if cloud else None,
    }
    service = EdgeService(bundle or tiny_bundle(), controls, **(options | service_options))
    async with (
        service,
        http_serving(service, settings or HttpSettings(), routes, send_buffer) as url,
    ):
        edge = Daemon(url, service)
        async with edge.clients:
            yield edge


@asynccontextmanager
async def daemon_and_cloud(**options: Any) -> AsyncIterator[tuple[Daemon, CloudServer]]:
    """Edge and cloud, both real; the cloud decides what no exit is sure of."""
    async with serving() as server, daemon(cloud=server.address, **options) as edge:
        yield edge, server


@asynccontextmanager
async def http_serving(
    service: EdgeService,
    settings: HttpSettings,
    routes: Sequence[BaseRoute] = (),
    send_buffer: int | None = None,
) -> AsyncIterator[str]:
    """uvicorn on a free port of loopback; leaving the block waits for open requests."""
    app = http_app(service, settings, routes)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=10)
        server = _Server(config)
        serve = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await server.listening.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serve


async def sse_events(response: httpx.Response) -> list[Any]:
    """All data of a stream's events, JSON read, up to its end."""
    events = []
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
    return events


class Ended:
    """How answers ended, in their order; ``await next()`` waits for the next one."""

    def __init__(self, service: EdgeService) -> None:
        self._records: asyncio.Queue[AnswerRecord] = asyncio.Queue()
        service.observe(self._records.put_nowait)

    async def next(self) -> AnswerRecord:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._records.get()


def validated(kind: type[T], text: str | bytes) -> T:
    """``text`` as the type that OpenAI's published schema gives, which must name every field but
    Tandem's own."""
    value = kind.model_validate_json(text, strict=True)
    extra = sorted(_unknown(value))
    assert extra in ([], ["tandem"]), extra
    return value


def _unknown(value: Any, path: str = "") -> set[str]:
    found: set[str] = set()
    if isinstance(value, BaseModel):
        found |= {path + name for name in value.model_extra or ()}
        for name in type(value).model_fields:
            found |= _unknown(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list):
        for item in value:
            found |= _unknown(item, path)
    return found


def text_of(events: Sequence[Any]) -> str:
    """The text that a chat's chunks add up to."""
    choices = [e["choices"][0] for e in events if e != "[DONE]" and e["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
