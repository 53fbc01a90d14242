"""A real cloud process on loopback that tests can look into: memory, descriptors, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from cloud.settings import CONFIG_VARIABLE
from simulator.local_cloud import LocalCloud
from tests.cloud_harness import WAIT_SECONDS, Edge, tiny_bundle

MIB = 1 << 20
_METRICS = re.compile(r"^metrics on (\S+)$", re.MULTILINE)


class CloudProcess(LocalCloud):
    """``tandem cloud serve`` on the tiny bundle, with ``settings`` in its configuration file.

    Metrics are served and invariants checked after every change of the store.
    """

    def __init__(self, **settings: Any) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="tandem-cloud-")
        self._written = Path(self._own.name) / "log"
        self._config = Path(self._own.name) / "cloud.json"
        plain = {"metrics": ":0", "debug_invariants": True, "drain_seconds": 2.0}
        self._config.write_text(json.dumps(plain | settings))
        super().__init__(tiny_bundle().folder, threads=1, log=self._written)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        self._own.cleanup()

    async def start(self) -> None:
        """Start it, or start it again at the same address."""
        with mock.patch.dict(os.environ, {CONFIG_VARIABLE: str(self._config)}):
            await super().start()

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs."""
        assert self._process is not None
        return self._process.returncode

    @property
    def log(self) -> str:
        """All that it has written, over restarts."""
        return self._written.read_text(errors="replace")

    @property
    def resident_bytes(self) -> int:
        """Memory of the process."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def descriptors(self) -> int:
        """Open files, sockets included."""
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of ``tandem_cloud_<name>`` that have ``labels``."""
        url = _METRICS.findall(self.log)[-1]

        def get() -> str:
            with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
                return str(answer.read().decode())

        families = text_string_to_metric_families(await asyncio.to_thread(get))
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"tandem_cloud_{name}" and labels.items() <= sample.labels.items()
        )

    async def has(self, name: str, value: float) -> None:
        """Wait until the metric has that value."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.metric(name) != value:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def comes_to(self, holds: Callable[[], bool]) -> None:
        """Wait for what no event of another process announces."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid


@contextlib.asynccontextmanager
async def plain_edge(address: str, **fields: Any) -> AsyncIterator[Edge]:
    """A client that says just what a test tells it to, on a channel of its own whose window does
    not grow: 64 KiB arrive unread."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Edge(channel, tiny_bundle().manifest.fingerprint, **fields)
