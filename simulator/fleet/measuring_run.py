"""Running something that has child processes, so that none outlives it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``; a SIGTERM ends it as Ctrl-C does, the children with it."""

    async def run() -> T:
        this = asyncio.current_task()
        assert this is not None
        if sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        return await work

    return asyncio.run(run())
