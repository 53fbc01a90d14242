"""The cloud as a process: model, store, batcher and gRPC server, from start to drained end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
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
from cloud.context_manager import ContextStore, StoreLimits
from cloud.deep_model import DeepModel
from shared.clock import Clock, monotonic
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle
from shared.transport import is_loopback, read_pem

_LOG = logging.getLogger("tandem.cloud")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SWEEP_SECONDS = 15.0


@dataclass(frozen=True)
class CloudSettings:
    """How to serve.

    Attributes:
        port: 0 takes a free one.
        threads: of the model; ``None`` leaves it to torch.
        tls_cert, tls_key: PEM files of the server; ``client_ca`` asks clients for certificates.
        tokens: token file (see :mod:`cloud.auth`).
        insecure: serve other machines without tokens or without TLS all the same.
        drain_seconds: how long open sessions may go on after a signal.
        port_file: written, in one step, with ``HOST:PORT`` once the server is ready.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 7420
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    limits: StoreLimits = field(default_factory=StoreLimits)
    max_message_bytes: int = 4 << 20
    max_streams: int = 256
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    drain_seconds: float = 10.0
    port_file: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigurationError(f"--port {self.port} is not within 0 to 65535")
        if self.dtype not in _DTYPES:
            raise ConfigurationError(f"--dtype {self.dtype!r}: one of {', '.join(_DTYPES)}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("--tls-cert and --tls-key come together")
        if self.client_ca and not self.tls_cert:
            raise ConfigurationError("--client-ca needs --tls-cert and --tls-key")
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError("--threads must be 1 or more")
        if is_loopback(self.host) or self.insecure:
            return
        if not (self.tokens or self.client_ca):
            raise ConfigurationError(
                f"{self.host} is open to other machines: name a token file (--tokens, made by "
                "`tandem cloud token`) or a client CA, or say --insecure"
            )
        if not self.tls_cert:
            raise ConfigurationError(
                "tokens would travel in the clear: name --tls-cert and --tls-key, or say --insecure"
            )


class CloudServer:
    """``async with CloudServer(settings) as server``: serving at ``server.address``."""

    def __init__(self, settings: CloudSettings, *, clock: Clock = monotonic) -> None:
        self.address = ""
        self._settings, self._clock = settings, clock
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        settings = self._settings
        bundle = ModelBundle.load(settings.bundle)
        tokens = read_token_file(settings.tokens) if settings.tokens else None
        model = await asyncio.to_thread(_load_model, bundle, settings)
        async with AsyncExitStack() as stack:
            self.batcher = await stack.enter_async_context(Batcher(model, threads=settings.threads))
            self.store = ContextStore(
                model.architecture, model.cut, model.new_cache, settings.limits, clock=self._clock
            )
            authenticator = Authenticator(tokens)
            self.service = CollaborationService(
                bundle.manifest,
                self.store,
                self.batcher,
                authenticator,
                max_message_bytes=settings.max_message_bytes,
                clock=self._clock,
            )
            self._health = health.aio.HealthServicer()
            interceptors = [TokenInterceptor(authenticator, SESSION_METHOD)] if tokens else []
            self._server = grpc.aio.server(interceptors=interceptors, options=_options(settings))
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
        """Return after SIGTERM, SIGINT or :meth:`stop`; leaving the block then drains."""
        loop = asyncio.get_running_loop()
        handled = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._stop.set)
                handled.append(number)
        try:
            await self._stop.wait()
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    async def _drain(self) -> None:
        """Say NOT_SERVING, let sessions end, then close the port."""
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        _LOG.info("draining, %d sessions open", self.service.open_streams)
        await self.service.drain(self._settings.drain_seconds)
        await self._server.stop(grace=1.0)

    async def _report(self, status: Any) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.store.expire()


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
