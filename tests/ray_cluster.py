"""The cloud as a Ray Serve application in a process of its own, with the tiny bundle."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from cloud.auth import add_token
from edge.engine import EdgeEngine
from edge.generation_run import Generation
from tests.cloud_harness import Edge, tiny_bundle
from tests.edge_harness import edge_engine

BUNDLE = tiny_bundle()
SECONDS = 180.0
MESSAGE_BYTES = 1 << 16
_PID = re.compile(r"pid=(\d+)")
_HELD = re.compile(r"held=(\d+)")


@dataclass
class Cluster:
    """The process that serves, and what its replicas log."""

    process: subprocess.Popen[str]
    address: str = ""
    token: str = ""
    lines: list[str] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        """Collect lines until the process ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._arrived:
                self.lines.append(line)
                self._arrived.notify_all()

    def logged(self, *words: str, count: int = 1) -> list[str]:
        """Wait for so many lines that hold all ``words``."""

        def found() -> list[str]:
            return [line for line in self.lines if all(word in line for word in words)]

        with self._arrived:
            done = self._arrived.wait_for(lambda: len(found()) >= count, SECONDS)
            assert done, "".join(self.lines)
            return found()

    async def opened(self, generation: Generation, count: int = 1) -> tuple[int, int]:
        """Which process has taken the stream (the ``count``-th) and what it held of the session."""
        assert generation._cloud is not None
        name = generation._cloud._open.session_id.hex()[:8]
        lines = await asyncio.to_thread(self.logged, "session opened", name, count=count)
        pid, held = _PID.search(lines[count - 1]), _HELD.search(lines[count - 1])
        assert pid is not None
        assert held is not None
        return int(pid[1]), int(held[1])

    def metrics(self) -> list[str]:
        """What the first two replicas count."""
        pages = []
        for line in self.logged("replica started", count=2)[:2]:
            url = line.strip().rpartition("metrics=")[2]
            with urllib.request.urlopen(url, timeout=60) as answer:
                pages.append(answer.read().decode())
        return pages

    def proxy(self) -> int:
        """The process that takes the streams: Serve's, a grandchild of ours."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                if (folder / "cmdline").read_text().startswith("ray::ProxyActor"):
                    pid = int(folder.name)
                    if _parent(_parent(pid)) == self.process.pid:
                        return pid
        raise AssertionError("no proxy runs")

    @contextlib.asynccontextmanager
    async def engine(self, address: str = "") -> AsyncIterator[EdgeEngine]:
        """An edge with a token, and patience for a replica that starts."""
        patience: dict[str, Any] = {"give_up_seconds": SECONDS, "connect_seconds": SECONDS}
        async with edge_engine(address or self.address, token=self.token, **patience) as engine:
            yield engine

    @contextlib.asynccontextmanager
    async def edge(self) -> AsyncIterator[Edge]:
        """A client that says what a test tells it to."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            yield Edge(channel, BUNDLE.manifest.fingerprint, token=self.token)


@contextlib.contextmanager
def serving_cluster(folder: Path, replicas: int, more: str = "") -> Iterator[Cluster]:
    """A cluster of so many ``replicas`` (at first), with ``more`` settings; at its end nothing is
    left of it."""
    (folder / "cloud.toml").write_text(
        f"""
        engine = "ray"
        replicas = {replicas}
        host = "0.0.0.0"
        insecure = true
        port = 0
        port_file = "port"
        bundle = {str(BUNDLE.folder)!r}
        tokens = "tokens"
        metrics = "127.0.0.1:0"
        max_message_bytes = {MESSAGE_BYTES}
        drain_seconds = 3
        debug_invariants = true
        {more}
        """
    )
    token = add_token(folder / "tokens", "alice")
    command = [sys.executable, "-m", "shared.cli", "cloud", "serve"]
    process = subprocess.Popen(
        [*command, "--config", str(folder / "cloud.toml")], stderr=subprocess.PIPE, text=True
    )
    cluster = Cluster(process, token=token)
    reading = threading.Thread(target=cluster.read)
    reading.start()
    try:
        (line,) = cluster.logged("listening on")
        port = line.strip().rpartition(":")[2]
        assert (folder / "port").read_text() == f"0.0.0.0:{port}\n"
        cluster.address = f"127.0.0.1:{port}"
        cluster.logged("replica started", count=replicas)
        yield cluster
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(SECONDS)
        reading.join()
    assert code == 0, "".join(cluster.lines)
    assert not (folder / "port").exists()
    started = pids_in([line for line in cluster.lines if "replica started" in line])
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def pids_in(lines: list[str]) -> set[int]:
    return {int(found[1]) for line in lines if (found := _PID.search(line))}
