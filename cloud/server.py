"""The cloud as a process: model, store, batcher and gRPC server, from start to drained end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.auth import Authenticator, TokenInterceptor, read_token_file
from cloud.batcher import Batcher
from cloud.collaboration_service import SERVICE_NAME, SESSION_METHOD, CollaborationService
from cloud.context_manager import ContextStore
from cloud.deep_model import DeepModel
from cloud.eviction import StoreLimits
from cloud.logs import about
from cloud.metrics import CloudMetrics
from cloud.metrics_endpoint import MetricsEndpoint
from cloud.quotas import QuotaFile, Quotas
from cloud.settings import CloudSettings
from cloud.watched_file import WatchedFile
from shared.clock import Clock, monotonic
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle
from shared.transport import read_pem

_LOG = logging.getLogger("tandem.cloud")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SWEEP_SECONDS = 15.0


class CloudServer:
    """``async with CloudServer(settings) as server``: serving at ``server.address``."""

    def __init__(self, settings: CloudSettings, *, clock: Clock = monotonic) -> None:
        self.address = ""
        self.metrics = CloudMetrics()
        self.metrics_url = ""
        self._settings, self._clock = settings, clock
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        settings = self._settings
        bundle = ModelBundle.load(settings.bundle)
        clock, self._tokens, self._quotas = self._clock, None, None
        if settings.tokens:
            self._tokens = WatchedFile(settings.tokens, read_token_file, "token file", clock=clock)
        if settings.quotas:
            self._quotas = QuotaFile(settings.quotas, clock=clock)
            self._warn_of_unknown_tenants(self._quotas.quotas)
        quotas = self._quotas or Quotas()
        model = await asyncio.to_thread(_load_model, bundle, settings)
        async with AsyncExitStack() as stack:
            if settings.metrics_address is not None:
                endpoint = MetricsEndpoint(self.metrics.registry, *settings.metrics_address)
                self.metrics_url = (await stack.enter_async_context(endpoint)).url
            self.batcher = await stack.enter_async_context(
                Batcher(
                    model,
                    max_rows=settings.pass_rows,
                    threads=settings.threads,
                    metrics=self.metrics,
                    clock=self._clock,
                )
            )
            self.store = ContextStore(
                model.architecture,
                model.cut,
                model.new_cache,
                _limits(settings),
                quotas=quotas,
                metrics=self.metrics,
                clock=self._clock,
                debug=settings.debug_invariants,
            )
            authenticator = Authenticator(self._tokens.current if self._tokens else None)
            self.service = CollaborationService(
                bundle.manifest,
                self.store,
                self.batcher,
                authenticator,
                max_message_bytes=settings.max_message_bytes,
                credits=settings.credits,
                quotas=quotas,
                look_at_quotas=self._look_at_quotas,
                metrics=self.metrics,
                clock=self._clock,
            )
            self._health = health.aio.HealthServicer()
            guard = TokenInterceptor(authenticator, SESSION_METHOD, self.metrics)
            self._server = grpc.aio.server(
                interceptors=[guard] if self._tokens else [], options=_options(settings)
            )
            self._server.add_generic_rpc_handlers((self.service.handler(),))
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
            port = _listen(self._server, settings)
            await self._server.start()
            stack.push_async_callback(self._drain)
            await self._report(health_pb2.HealthCheckResponse.SERVING)
            sweeper = asyncio.create_task(self._sweep(), name="expiry")
            stack.callback(sweeper.cancel)
            self.address = _joined(settings.host, port)
            if settings.port_file:
                _write_atomically(settings.port_file, f"{self.address}\n")
                stack.callback(settings.port_file.unlink, missing_ok=True)
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
        context store."""
        loop = asyncio.get_running_loop()
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._stop.set,
            signal.SIGINT: self._stop.set,
        }
        if hasattr(signal, "SIGHUP"):  # not on Windows
            actions |= {signal.SIGHUP: self._reload, signal.SIGUSR1: self._check_store}
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

    def _reload(self) -> None:
        if self._tokens:
            self._tokens.reload()
        if self._quotas and self._quotas.reload():
            self._take_up(self._quotas)

    def _check_store(self) -> None:
        """Log whether the context store's accounts are right; serving goes on either way."""
        found = about(sessions=len(self.store), bytes=self.store.held_bytes)
        try:
            self.store.check()
        except AssertionError:
            _LOG.exception("store broken", extra=found)
        else:
            _LOG.info("store checked", extra=found)

    def _look_at_quotas(self) -> None:
        if self._quotas and self._quotas.look():
            self._take_up(self._quotas)

    def _take_up(self, quotas: QuotaFile) -> None:
        self._warn_of_unknown_tenants(quotas.quotas)
        self.store.quotas_changed()

    async def _drain(self) -> None:
        """Say NOT_SERVING, let sessions end, then close the port."""
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        _LOG.info("draining", extra=about(streams=self.service.open_streams))
        await self.service.drain(self._settings.drain_seconds)
        await self._server.stop(grace=1.0)

    def log_ready(self) -> None:
        """Log where sessions and metrics are served."""
        _LOG.info("listening", extra=about(address=self.address, metrics=self.metrics_url or "off"))

    def _warn_of_unknown_tenants(self, quotas: Quotas) -> None:
        if self._tokens:
            unknown = quotas.tenants.keys() - {tenant for tenant, _ in self._tokens.current()}
            for tenant in sorted(unknown):
                _LOG.warning("a quota's tenant has no token", extra=about(tenant=tenant))

    async def _report(self, status: Any) -> None:
        self.metrics.serving.set(status == health_pb2.HealthCheckResponse.SERVING)
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._look_at_quotas()
            self.store.expire()


def _limits(settings: CloudSettings) -> StoreLimits:
    return StoreLimits(
        budget_bytes=int(settings.budget_mb * 2**20),
        max_sessions=settings.max_sessions,
        idle_seconds=settings.session_ttl,
    )


def _load_model(bundle: ModelBundle, settings: CloudSettings) -> DeepModel:
    try:
        device = torch.device(settings.device)
        return DeepModel.load(bundle, device, _DTYPES[settings.dtype])
    except (RuntimeError, AssertionError) as error:  # how torch says that there is no such device
        raise ConfigurationError(f"the model cannot be put on {settings.device}: {error}") from None


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
    address = _joined(settings.host, settings.port)
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
        raise ConfigurationError(f"cannot listen on {address}: {error}") from None
    if not port:
        raise ConfigurationError(f"cannot listen on {address}: certificate or address refused")
    return int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _write_atomically(path: Path, text: str) -> None:
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(name, path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}") from None
