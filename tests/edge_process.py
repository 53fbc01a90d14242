"""A real daemon process on loopback that tests can look into: log, metrics, exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.cloud_harness import WAIT_SECONDS, tiny_bundle


class EdgeProcess:
    """``tandem edge serve`` on the tiny bundle at a free port, with ``settings`` in its
    configuration file; ``async with`` gives it once it answers.

    Args:
        environment: more variables.
    """

    def __init__(self, environment: dict[str, str] | None = None, **settings: Any) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="tandem-edge-")
        self.folder = Path(self._own.name)
        plain = {
            "port": 0,
            "port_file": str(self.port_file),
            "bundle": str(tiny_bundle().folder),
            "precision": "float32",
            "threads": 1,
            "log_format": "json",
        }
        config = self.folder / "edge.json"
        config.write_text(json.dumps(plain | settings))
        self._environment = os.environ | {"TANDEM_EDGE_CONFIG": str(config)} | (environment or {})
        self._process: asyncio.subprocess.Process
        self.url = ""

    async def __aenter__(self) -> Self:
        with (self.folder / "log").open("wb") as sink:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "shared.cli", "edge", "serve",
                stdin=asyncio.subprocess.DEVNULL, stdout=sink, stderr=sink, env=self._environment,
            )  # fmt: skip
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.port_file.exists():
                assert self._process.returncode is None, self.log
                await asyncio.sleep(0.05)
        self.url = f"http://{self.port_file.read_text().strip()}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._own.cleanup()

    @property
    def port_file(self) -> Path:
        """Holds the address while requests are answered."""
        return self.folder / "port"

    @property
    def log(self) -> str:
        """All that it has written."""
        return (self.folder / "log").read_text(errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Lines of the log that are about ``event``."""
        lines = [json.loads(line) for line in self.log.splitlines()]
        return [line for line in lines if line["event"] == event]

    async def logged(self, event: str) -> dict[str, Any]:
        """The first line about ``event``, once it is there."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.events(event):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return self.events(event)[0]

    async def logged_like(self, words: str) -> dict[str, Any]:
        """The first line whose event holds ``words``, once it is there."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for line in map(json.loads, self.log.splitlines()):
                    if words in line["event"]:
                        return dict(line)
                await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._process.wait()

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of its HTTP API."""
        return httpx.AsyncClient(base_url=self.url, timeout=WAIT_SECONDS, **options)

    async def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Values by the sample's name and labels."""
        async with self.client() as client:
            text = (await client.get("/metrics")).raise_for_status().text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def question(text: str = "Why is the sky blue?", **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    plain = {"messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return {"model": tiny_bundle().manifest.name} | plain | fields


async def events_of(response: httpx.Response) -> AsyncIterator[str]:
    """The data of a stream's events as they come."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
