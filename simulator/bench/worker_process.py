"""A peer in a process of its own: a JSON object a line in, a JSON object a line out.

The child runs :func:`serve`, the parent talks to it through :class:`WorkerProcess`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from shared.errors import ConfigurationError
from shared.library_settings import environment_for_others

_STOP_SECONDS = 10.0
_ENDING_SECONDS = 10.0  # from the end of its output to its own
_READY_SECONDS = 600.0
_ANSWER_SECONDS = 600.0
_LINE_BYTES = 1 << 24

Reply = dict[str, Any]


class WorkerProcess:
    """``python -m MODULE ARGUMENTS`` for the length of an ``async with`` block, in the environment
    that the user made: what Tandem's cloud sets for its libraries is not handed on to a peer's."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self._name = name
        self._command = [sys.executable, "-m", module, *arguments]
        self.ready: Reply = {}

    async def __aenter__(self) -> Self:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed on the way out
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            limit=_LINE_BYTES,
            env=environment_for_others(),
        )
        try:
            self.ready = await self._reply(_READY_SECONDS)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def ask(self, request: Reply) -> Reply:
        """Send a request and wait for its reply.

        Raises:
            ConfigurationError: the process died, fell silent or reports an error.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # the missing reply tells
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
        return await self._reply(_ANSWER_SECONDS)

    async def _reply(self, seconds: float) -> Reply:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ConfigurationError(f"{self._name} is silent after {seconds:.0f} s") from None
        if not line:
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace").strip()[-800:]
            ended = f"{self._name} ended ({await self._how_it_ended()})"
            raise ConfigurationError(f"{ended}: {tail}" if tail else ended)
        reply = json.loads(line)
        if "error" in reply:
            raise ConfigurationError(f"{self._name}: {reply['error']}")
        assert isinstance(reply, dict)
        return reply

    async def _how_it_ended(self) -> str:
        """What the system knows of it, whether it said anything itself or not."""
        try:
            async with asyncio.timeout(_ENDING_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            return "it closed its output"
        if code < 0:
            return signal.strsignal(-code) or f"signal {-code}"
        return f"exit status {code}"

    async def _stop(self) -> None:
        """Closing its input ends it; kill it if it does not."""
        process = self._process
        try:
            if process.stdin is not None:
                process.stdin.close()
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except (TimeoutError, asyncio.CancelledError) as error:
            process.kill()
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._log.close()


def serve(ready: Reply, answer: Callable[[Reply], Reply]) -> None:
    """The child's side: say ``ready``, then answer until the input ends.

    What libraries print to standard output goes to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent closes the input
    replies = claim_stdout()
    print(json.dumps(ready), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


_replies: Any = None


def claim_stdout() -> Any:
    """Keep standard output for replies alone, whoever else prints; idempotent."""
    global _replies  # noqa: PLW0603  a process has one standard output
    if _replies is None:
        _replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    return _replies
