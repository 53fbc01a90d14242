"""The daemon as one process: service, HTTP and MQTT, from start to drained end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from edge.answer_log import AnswerLog
from edge.http_app import HttpSettings, http_app
from edge.http_server import HttpServer, bind
from edge.metrics import EdgeMetrics
from edge.metrics_route import metrics_route
from edge.page_routes import page_routes
from edge.service import EdgeService
from edge.settings import EdgeSettings
from edge.systemd_notify import notify
from shared.background import in_background
from shared.clock import Clock, monotonic
from shared.logs import about
from shared.model_bundle import ModelBundle
from shared.port_file import port_file
from shared.tls import client_context
from shared.transport import is_loopback

_LOG = logging.getLogger("tandem.edge")


class EdgeDaemon:
    """``async with EdgeDaemon(settings) as daemon``: answering at ``daemon.url``.

    Leaving the block closes all at once: :meth:`drain` comes first.
    """

    def __init__(self, settings: EdgeSettings, *, clock: Clock = monotonic) -> None:
        self.url = ""
        self.service: EdgeService
        self._settings, self._clock = settings, clock
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        settings = self._settings
        api_key = settings.read_api_key()
        endpoint, broker = settings.endpoint(), settings.broker()
        if endpoint is not None and endpoint.ca:  # otherwise it would fail when first called
            client_context(endpoint.ca, endpoint.certificate, endpoint.key)
        async with AsyncExitStack() as stack:
            bound = stack.enter_context(bind(settings.host, settings.port))
            self.service = await stack.enter_async_context(
                EdgeService(
                    ModelBundle.load(settings.bundle),
                    settings.controls,
                    precision=settings.precision,
                    threads=settings.threads,
                    endpoint=endpoint,
                    parallel=settings.parallel,
                    queue_limit=settings.queue,
                    kept_conversations=settings.conversations,
                    kept_tokens=settings.conversation_tokens,
                    clock=self._clock,
                )
            )
            answer_log = AnswerLog(self.service, with_text=settings.log_prompts)
            self.service.observe(answer_log.answered)
            routes = page_routes()
            if settings.metrics:
                metrics = EdgeMetrics(self.service)
                self.service.observe(metrics.answered)
                routes.append(metrics_route(metrics.registry, api_key))
            http = HttpSettings(
                api_key=api_key,
                cors_origins=settings.cors_origins,
                allowed_hosts=settings.allowed_hosts,
                loopback=is_loopback(settings.host),
            )
            server = await stack.enter_async_context(
                HttpServer(http_app(self.service, http, routes), bound, settings.host)
            )
            self.url = f"http://{server.address}"
            if broker is not None:
                from edge.mqtt_link import MqttLink  # noqa: PLC0415  (most have no broker)

                await stack.enter_async_context(MqttLink(self.service, broker, on_drain=self.stop))
            stack.enter_context(port_file(settings.port_file, server.address))
            if endpoint is not None:
                fingerprint = self.service.engine.bundle.manifest.fingerprint
                from edge.session_check import warn_if_refused  # noqa: PLC0415  (gRPC: 10 MB)

                look = warn_if_refused(endpoint, fingerprint)
                await stack.enter_async_context(in_background(look, "session check"))
            notify("READY=1")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    def stop(self) -> None:
        """Make :meth:`wait` return."""
        self._stop.set()

    async def wait(self) -> None:
        """Return after :meth:`stop`, or when a command over MQTT asks for the end."""
        await self._stop.wait()

    async def drain(self) -> None:
        """Begin no new answers, and wait for those there are, for as long as the settings say."""
        notify("STOPPING=1")
        status = self.service.status()
        _LOG.info("draining", extra=about(active=status.active, waiting=status.waiting))
        seconds = self._settings.drain_seconds
        if not await self.service.drain(seconds):
            _LOG.warning("answers cut short", extra=about(after_seconds=seconds))


@contextlib.contextmanager
def signals(first: Callable[[], object], second: Callable[[], object]) -> Iterator[None]:
    """Within the block the first SIGTERM or SIGINT calls ``first``, later ones ``second``."""
    loop = asyncio.get_running_loop()
    heard = False

    def hear() -> None:
        nonlocal heard
        (second if heard else first)()
        heard = True

    handled = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, threads
            loop.add_signal_handler(number, hear)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def serve(settings: EdgeSettings, ready: Callable[[str], None]) -> None:
    """Run a daemon until a signal, then drain; a second signal ends it at once.

    Args:
        ready: told the URL once requests are answered.

    Raises:
        ConfigurationError: a setting, file, address or bundle that cannot be used.
        asyncio.CancelledError: it was ended at once.
    """
    task = asyncio.current_task()
    assert task is not None
    async with EdgeDaemon(settings) as daemon:
        with signals(daemon.stop, task.cancel):
            ready(daemon.url)
            await daemon.wait()
            await daemon.drain()
