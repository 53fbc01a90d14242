"""What serves sessions in one process: model, batcher, store and service.

Who brings the streams to ``service`` is left open: a gRPC server of this process's own
(:mod:`cloud.server`) or Ray Serve (:mod:`cloud.ray_replica`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import torch

from cloud.auth import Authenticator, read_token_file
from cloud.batcher import Batcher
from cloud.collaboration_service import CollaborationService
from cloud.context_manager import ContextStore
from cloud.deep_model import DeepModel
from cloud.eviction import StoreLimits
from cloud.metrics import CloudMetrics
from cloud.metrics_endpoint import MetricsEndpoint
from cloud.quotas import QuotaFile, Quotas
from cloud.row_decoder import RowDecoder
from cloud.settings import CloudSettings
from cloud.watched_file import WatchedFile
from shared.clock import Clock, monotonic
from shared.cpu_quota import cpu_quota
from shared.errors import ConfigurationError
from shared.logs import about
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
        self.tokens: WatchedFile[Sequence[tuple[str, str]]] | None = None
        self.quotas: QuotaFile | None = None
        self.authenticator: Authenticator
        self.batcher: Batcher
        self.store: ContextStore
        self.service: CollaborationService
        self._settings, self._clock, self._metrics_ports = settings, clock, metrics_ports
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        settings = self._settings
        bundle = ModelBundle.load(settings.bundle)
        clock = self._clock
        if settings.tokens:
            self.tokens = WatchedFile(settings.tokens, read_token_file, "token file", clock=clock)
        if settings.quotas:
            self.quotas = QuotaFile(settings.quotas, clock=clock)
            self._warn_of_unknown_tenants(self.quotas.quotas)
        quotas = self.quotas or Quotas()
        model = await asyncio.to_thread(_load_model, bundle, settings)
        async with AsyncExitStack() as stack:
            if settings.metrics_address is not None:
                host, port = settings.metrics_address
                self.metrics_url = await self._serve_metrics(stack, host, port)
            self.batcher = await stack.enter_async_context(
                Batcher(
                    model,
                    max_rows=settings.pass_rows,
                    threads=settings.threads or _threads_within(cpu_quota()),
                    metrics=self.metrics,
                    clock=clock,
                )
            )
            self.store = ContextStore(
                model.architecture,
                model.cut,
                model.new_cache,
                _limits(settings),
                quotas=quotas,
                metrics=self.metrics,
                clock=clock,
                debug=settings.debug_invariants,
            )
            self.authenticator = Authenticator(self.tokens.current if self.tokens else None)
            self.service = CollaborationService(
                bundle.manifest,
                self.store,
                self.batcher,
                self.authenticator,
                stack.enter_context(RowDecoder(model.architecture)),
                max_message_bytes=settings.max_message_bytes,
                credits=settings.credits,
                quotas=quotas,
                look_at_quotas=self._look_at_quotas,
                metrics=self.metrics,
                clock=clock,
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

    def reload(self) -> None:
        if self.tokens:
            self.tokens.reload()
        if self.quotas and self.quotas.reload():
            self._take_up(self.quotas)

    def check_store(self) -> None:
        """Log whether the context store's accounts are right; serving goes on either way."""
        found = about(sessions=len(self.store), bytes=self.store.held_bytes)
        try:
            self.store.check()
        except AssertionError:
            _LOG.exception("store broken", extra=found)
        else:
            _LOG.info("store checked", extra=found)

    def _look_at_quotas(self) -> None:
        if self.quotas and self.quotas.look():
            self._take_up(self.quotas)

    def _take_up(self, quotas: QuotaFile) -> None:
        self._warn_of_unknown_tenants(quotas.quotas)
        self.store.quotas_changed()

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
            self._look_at_quotas()
            self.store.expire()


def _limits(settings: CloudSettings) -> StoreLimits:
    return StoreLimits(
        budget_bytes=int(settings.budget_mb * 2**20),
        max_sessions=settings.max_sessions,
        idle_seconds=settings.session_ttl,
    )


def _threads_within(quota: float | None) -> int | None:
    """As many as a container's limit has cores for, where torch, which counts the machine's, would
    take more; ``None`` leaves it to torch."""
    if quota is None or quota >= torch.get_num_threads():
        return None
    return max(1, int(quota))


def _load_model(bundle: ModelBundle, settings: CloudSettings) -> DeepModel:
    try:
        device = torch.device(settings.device)
        return DeepModel.load(bundle, device, _DTYPES[settings.dtype])
    except (RuntimeError, AssertionError) as error:  # how torch says that there is no such device
        raise ConfigurationError(f"the model cannot be put on {settings.device}: {error}") from None
