"""The cloud as one process with a gRPC server of its own, from start to drained end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.auth import TokenInterceptor
from cloud.cloud_core import CloudCore
from cloud.collaboration_service import SERVICE_NAME, SESSION_METHOD
from cloud.settings import CloudSettings
from shared.clock import Clock, monotonic
from shared.errors import CloudInternalError, ConfigurationError
from shared.logs import about
from shared.port_file import port_file
from shared.transport import joined, read_pem

_LOG = logging.getLogger("tandem.cloud")


class CloudServer:
    """``async with CloudServer(settings) as server``: serving at ``server.address``."""

    def __init__(self, settings: CloudSettings, *, clock: Clock = monotonic) -> None:
        self.address = ""
        self._core = CloudCore(settings, clock=clock)
        self.metrics = self._core.metrics
        self.metrics_url = ""
        self._settings = settings
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        settings = self._settings
        async with AsyncExitStack() as stack:
            core = await stack.enter_async_context(self._core)
            self.batcher, self.store, self.service = core.batcher, core.store, core.service
            self.metrics_url = core.metrics_url
            self._health = health.aio.HealthServicer()
            guard = TokenInterceptor(core.authenticator, SESSION_METHOD, self.metrics)
            self._server = grpc.aio.server(
                interceptors=[guard] if core.tokens else [], options=_options(settings)
            )
            self._server.add_generic_rpc_handlers((self.service.handler(),))
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
            port = _listen(self._server, settings)
            await self._server.start()
            stack.push_async_callback(self._drain)
            await self._report(health_pb2.HealthCheckResponse.SERVING)
            watching = asyncio.create_task(self._watch_batcher(), name="batcher watch")
            stack.callback(watching.cancel)
            self.address = joined(settings.host, port)
            stack.enter_context(port_file(settings.port_file, self.address))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def stop(self) -> None:
        """Make :meth:`wait` return."""
        self._stop.set()

    async def wait(self) -> None:
        """Return after SIGTERM, SIGINT or :meth:`stop`; leaving the block then drains.  Meanwhile
        SIGHUP reads the token file and the quotas, where there are such, and SIGUSR1 checks the
        context store.

        Raises:
            CloudInternalError: the batcher has failed; the process is to end and be started again.
        """
        loop = asyncio.get_running_loop()
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._stop.set,
            signal.SIGINT: self._stop.set,
        }
        if hasattr(signal, "SIGHUP"):  # not on Windows
            actions |= {signal.SIGHUP: self._core.reload, signal.SIGUSR1: self._core.check_store}
        handled = []
        for number, action in actions.items():
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, action)
                handled.append(number)
        try:
            await self._stop.wait()
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
        if self.batcher.failed.is_set():
            raise CloudInternalError("the batcher has failed, and the log says why: start it again")

    async def _watch_batcher(self) -> None:
        """Serve no more once no pass will run again."""
        await self.batcher.failed.wait()
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._stop.set()

    async def _drain(self) -> None:
        """Say NOT_SERVING, let sessions end (they cannot where the batcher has failed), then close
        the port."""
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        _LOG.info("draining", extra=about(streams=self.service.open_streams))
        failed = self.batcher.failed.is_set()
        await self.service.drain(0.0 if failed else self._settings.drain_seconds)
        await self._server.stop(grace=1.0)

    async def _report(self, status: Any) -> None:
        self.metrics.serving.set(status == health_pb2.HealthCheckResponse.SERVING)
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


def _options(settings: CloudSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.so_reuseport", 0),
        # a vanished edge is noticed within half a minute; pings of edges are welcome
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def _listen(server: Any, settings: CloudSettings) -> int:
    """Bind the port and return it."""
    address = joined(settings.host, settings.port)
    try:
        if settings.tls_cert and settings.tls_key:
            credentials = grpc.ssl_server_credentials(
                [(read_pem(settings.tls_key), read_pem(settings.tls_cert))],
                root_certificates=read_pem(settings.client_ca) if settings.client_ca else None,
                require_client_auth=settings.client_ca is not None,
            )
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        reason = str(error).partition("; set GRPC_VERBOSITY")[0]
        raise ConfigurationError(
            f"cannot listen on {address}: {reason}; is the port taken? Choose another with --port"
        ) from None
    if not port:
        raise ConfigurationError(f"cannot listen on {address}: certificate or address refused")
    return int(port)
