"""A real cloud as a child process on loopback, for the demo, evaluation and benchmarks."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import CloudUnavailableError

_READY_SECONDS = 120.0
_DRAIN_SECONDS = 10.0
_POLL_SECONDS = 0.05


class LocalCloud:
    """``tandem cloud serve`` on a free port; ``async with`` gives it once it listens.

    Args:
        bundle: folder of the bundle to serve.
        threads: torch threads; ``None`` leaves it to the cloud.
        log: file for its output; ``None`` is a temporary file that is shown if it dies.
        options: more of its command line.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        threads: int | None = None,
        port: int = 0,
        log: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._bundle = bundle
        self._options = tuple(options)
        self._threads = threads
        self._port = port
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-cloud-")
        self.address = ""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.stop()
        finally:
            self._folder.cleanup()

    async def start(self) -> None:
        """Start the process and wait until it listens; without success none is left."""
        port_file = Path(self._folder.name) / "port"
        port_file.unlink(missing_ok=True)
        log = self._log or Path(self._folder.name) / "log"
        command = [sys.executable, "-m", "shared.cli", "cloud", "serve"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--bundle", str(self._bundle), "--port-file", str(port_file)]
        if self._threads:
            command += ["--threads", str(self._threads)]
        command += self._options
        with log.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        try:
            while not port_file.exists():
                self._check_start(log, deadline)
                await asyncio.sleep(_POLL_SECONDS)
        except BaseException:
            await self.kill()  # it serves nobody yet
            raise
        self.address = port_file.read_text().strip()
        self._port = int(self.address.rpartition(":")[2])  # a restart keeps the address

    def _check_start(self, log: Path, deadline: float) -> None:
        assert self._process is not None
        if self._process.returncode is not None:
            tail = log.read_text(errors="replace").strip()[-800:]
            said = tail.removeprefix("error: ")
            raise CloudUnavailableError(f"the local cloud did not start: {said}")
        if asyncio.get_running_loop().time() > deadline:
            raise CloudUnavailableError(f"the local cloud is silent after {_READY_SECONDS} s")

    async def stop(self) -> None:
        """Ask it to drain; kill it if it does not."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it without warning, as a power cut would."""
        await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(how)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await process.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            process.kill()
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
