"""The shaped proxy as a child process, changed between measurements over its control API.

It must not share the edge's interpreter: its timers would wait for the edge's work.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from types import TracebackType
from typing import Self

from shared.errors import ConfigurationError
from simulator.link_spec import LinkSpec

_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_CONTROL_SECONDS = 30.0


class ShapedLink:
    """``tandem simulate link`` in front of ``target``; :attr:`address` is where the edge goes."""

    def __init__(self, target: str, seed: int) -> None:
        self._command = [sys.executable, "-m", "shared.cli", "simulate", "link"]
        self._command += ["--preset", "loopback", "--seed", str(seed), "--to", target]
        self._command += ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        self._control = self.address = ""

    async def __aenter__(self) -> Self:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed on the way out
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_READY_SECONDS):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        except BaseException:
            await self._stop()
            raise
        words = line.split()
        if not line.startswith("listening on ") or "control" not in words:
            await self._stop()
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace").strip()[-800:]
            raise ConfigurationError(f"the simulated link did not start: {line}{tail}")
        self.address, self._control = words[2].rstrip(","), words[-1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()
        self._log.close()

    async def become(self, spec: LinkSpec, seed: int) -> None:
        """Be like ``spec``, its traces and outages from their beginning, its chance from ``seed``
        (unsigned 64 bits)."""
        body = spec.model_dump_json().encode()
        await asyncio.to_thread(self._ask, "PUT", f"/link?seed={seed}", body)

    async def break_off(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        body = json.dumps({"seconds": seconds}).encode()
        await asyncio.to_thread(self._ask, "POST", "/outage", body)

    async def reset(self) -> None:
        """Reset every connection."""
        await asyncio.to_thread(self._ask, "POST", "/reset", b"")

    def _ask(self, method: str, path: str, body: bytes) -> None:
        address = self._control + path
        request = urllib.request.Request(address, data=body, method=method)  # noqa: S310  loopback, from our own child
        try:
            with urllib.request.urlopen(request, timeout=_CONTROL_SECONDS):  # noqa: S310
                pass
        except urllib.error.HTTPError as error:
            raise ConfigurationError(f"the simulated link refused: {_reason(error)}") from None
        except OSError as error:
            raise ConfigurationError(f"the simulated link is gone: {error}") from None

    async def _stop(self) -> None:
        process = self._process
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.communicate()
        except (TimeoutError, asyncio.CancelledError) as error:
            process.kill()
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise


def _reason(error: urllib.error.HTTPError) -> str:
    body = error.read().decode(errors="replace")
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{error} {body[:200]}".strip()
