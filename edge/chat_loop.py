"""An event loop on a thread of its own, so that the main thread can wait for keys and signals."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class LoopThread:
    """A ``with`` block around the thread's life; leaving it cancels what still runs there."""

    def __init__(self) -> None:
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._live, name="event loop")

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop = self._ready.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.call(self._end.set)
        self._thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` there and wait for it; an interrupt while it does cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Have ``function`` called there soon; for signal handlers too."""
        self._loop.call_soon_threadsafe(function)

    def _live(self) -> None:
        async def until_ended() -> None:
            self._end = asyncio.Event()
            self._ready.set_result(asyncio.get_running_loop())
            await self._end.wait()

        asyncio.run(until_ended())


class Interrupts:
    """What Ctrl-C does while the ``with`` block lasts: within :meth:`stopping` it stops an answer,
    and else it raises ``KeyboardInterrupt`` as ever.  Where the signal is ignored (work in the
    background of a shell), it stays so."""

    def __init__(self) -> None:
        self._stop: Callable[[], object] | None = None
        self.stopped = False  # whether the last answer was

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Ctrl-C calls ``stop``."""
        self._stop, self.stopped = stop, False
        try:
            yield
        finally:
            self._stop = None

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._stop is None:
            raise KeyboardInterrupt
        self.stopped = True
        self._stop()
