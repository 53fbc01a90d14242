"""Serves a cloud's metrics to Prometheus: plain HTTP, in threads of their own."""

from __future__ import annotations

import asyncio
from threading import Thread
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server

from shared.errors import ConfigurationError


class MetricsEndpoint:
    """``async with MetricsEndpoint(registry, host, port) as endpoint``: served at
    ``endpoint.url``; port 0 takes a free one.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self.url = ""
        self._registry, self._host, self._port = registry, host, port
        self._server: Any
        self._thread: Thread

    async def __aenter__(self) -> Self:
        host = self._host
        try:
            self._server, self._thread = start_http_server(
                self._port, addr=host, registry=self._registry
            )
        except OSError as error:
            raise ConfigurationError(
                f"metrics cannot be served on {host}:{self._port}: {error.strerror}"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
