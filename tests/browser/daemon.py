"""A daemon for browser tests: service, HTTP application, uvicorn and a cloud on a thread.

The browser and the test are on the outside, as a user is; what a test asks of the daemon's insides
runs on the daemon's own loop.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

import uvicorn
from starlette.types import ASGIApp

from cloud.server import CloudServer
from edge.cloud_channel import CloudEndpoint
from edge.controls import Controls
from edge.generation import Mode
from edge.http_app import HttpSettings, http_app
from edge.page_routes import page_routes
from edge.service import EdgeService
from shared.model_bundle import ModelBundle, Precision
from tests.cloud_harness import WAIT_SECONDS, settings_for, tiny_bundle
from tests.edge_harness import BreakableLink

T = TypeVar("T")


class Daemon:
    """``with Daemon(...) as daemon``: ``daemon.url`` is the page's.

    Args:
        mode: how answers are made at first.
        has_cloud: whether there is a cloud, behind a link that can be cut.
        piece_seconds: what each piece of data takes on that link; slow answers can be stopped.
        api_key: that the API asks for.
        queue_limit: answers that may wait.
    """

    def __init__(
        self,
        mode: Mode = Mode.COLLABORATIVE,
        *,
        has_cloud: bool = True,
        piece_seconds: float = 0.0,
        api_key: str | None = None,
        queue_limit: int = 16,
        bundle: ModelBundle | None = None,
        precision: Precision = "float32",
        **controls: Any,
    ) -> None:
        self._bundle, self._precision = bundle or tiny_bundle(), precision
        self._controls = Controls(mode, **({"max_tokens": 40} | controls))
        self._has_cloud, self._queue_limit = has_cloud, queue_limit
        self.piece_seconds = piece_seconds
        self._settings = HttpSettings(api_key=api_key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._address = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}/"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="daemon")
        self._stack = AsyncExitStack()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.run(self._start())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.run(self._end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(WAIT_SECONDS)
            self._loop.close()
            self._socket.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` on the daemon's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function`` on the daemon's loop."""

        async def calling() -> T:
            return function(*args)

        return self.run(calling())

    def go_away(self) -> None:
        """Stop serving, in the middle of whatever is served; the address stays ours."""
        self.run(self._stop_serving())

    def come_back(self) -> None:
        """Serve again, at the same address."""
        self._socket = socket.create_server(self._address)
        self.run(self._serve())

    async def _start(self) -> None:
        endpoint = None
        if self._has_cloud:
            cloud = CloudServer(settings_for(self._bundle))
            await self._stack.enter_async_context(cloud)
            link = BreakableLink(cloud.address, lambda: self.piece_seconds)
            self.link = await self._stack.enter_async_context(link)
            endpoint = CloudEndpoint(link.address)
        self.service = await self._stack.enter_async_context(
            EdgeService(
                self._bundle,
                self._controls,
                precision=self._precision,
                threads=1,
                endpoint=endpoint,
                queue_limit=self._queue_limit,
            )
        )
        self._app: ASGIApp = http_app(self.service, self._settings, page_routes())
        await self._serve()
        self._stack.push_async_callback(self._stop_serving)

    async def _end(self) -> None:
        await self._stack.aclose()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:  # uvicorn only cancels them
            await asyncio.wait(left)

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name="uvicorn")
        while not self._server.started:
            assert not self._serving.done(), "uvicorn did not start"
            await asyncio.sleep(0.01)

    async def _stop_serving(self) -> None:
        self._server.should_exit = True
        await self._serving
