"""What serves sessions in one process: model, batcher, store and service.

Who brings the streams to ``service`` is left open: a gRPC server of this process's own
(:mod:`cloud.server`) or Ray Serve (:mod:`cloud.ray_replica`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import torch

from cloud.auth import Authenticator
from cloud.batcher import Batcher
from cloud.collaboration_service import CollaborationService
from cloud.context_manager import ContextStore, StoreLimits
from cloud.deep_model import DeepModel
from cloud.logs import about
from cloud.metrics import CloudMetrics
from cloud.metrics_endpoint import MetricsEndpoint
from cloud.quotas import Quotas, read_quotas
from cloud.settings import CloudSettings
from cloud.token_file import TokenFile
from shared.clock import Clock, monotonic
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle

_LOG = logging.getLogger("tandem.cloud")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SWEEP_SECONDS = 15.0


class CloudCore:
    """``async with CloudCore(settings) as core``: streams may be given to ``core.service``.

    Args:
        metrics_ports: how many ports to try, the one of the settings first.
    """

    def __init__(
        self, settings: CloudSettings, *, clock: Clock = monotonic, metrics_ports: int = 1
    ) -> None:
        self.metrics = CloudMetrics()
        self.metrics_url = ""
        self.tokens: TokenFile | None = None
        self.authenticator: Authenticator
        self.batcher: Batcher
        self.store: ContextStore
        self.service: CollaborationService
        self._settings, self._clock, self._metrics_ports = settings, clock, metrics_ports
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        settings = self._settings
        bundle = ModelBundle.load(settings.bundle)
        self.tokens = TokenFile(settings.tokens, clock=self._clock) if settings.tokens else None
        quotas = read_quotas(settings.quotas) if settings.quotas else Quotas()
        self._warn_of_unknown_tenants(quotas)
        model = await asyncio.to_thread(_load_model, bundle, settings)
        async with AsyncExitStack() as stack:
            if settings.metrics_address is not None:
                host, port = settings.metrics_address
                self.metrics_url = await self._serve_metrics(stack, host, port)
            self.batcher = await stack.enter_async_context(
                Batcher(model, threads=settings.threads, metrics=self.metrics, clock=self._clock)
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
            self.authenticator = Authenticator(self.tokens.current if self.tokens else None)
            self.service = CollaborationService(
                bundle.manifest,
                self.store,
                self.batcher,
                self.authenticator,
                max_message_bytes=settings.max_message_bytes,
                quotas=quotas,
                metrics=self.metrics,
                clock=self._clock,
            )
            sweeper = asyncio.create_task(self._sweep(), name="expiry")
            stack.callback(sweeper.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _serve_metrics(self, stack: AsyncExitStack, host: str, port: int) -> str:
        last = port + self._metrics_ports - 1 if port else port
        while True:
            try:
                endpoint = MetricsEndpoint(self.metrics.registry, host, port)
                return (await stack.enter_async_context(endpoint)).url
            except ConfigurationError:
                if port == last:
                    raise
                port += 1

    def _warn_of_unknown_tenants(self, quotas: Quotas) -> None:
        if self.tokens:
            unknown = quotas.tenants.keys() - {tenant for tenant, _ in self.tokens.current()}
            for tenant in sorted(unknown):
                _LOG.warning("a quota's tenant has no token", extra=about(tenant=tenant))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
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
