"""An event loop whose timers are good to a tenth of a millisecond.

asyncio waits in ``epoll_wait``, whose timeout is whole milliseconds, rounded up: every timer is
0 to 1 ms late.  ``select`` takes microseconds, and an epoll descriptor can itself be waited for, so
a wait in ``select`` on that one descriptor is precise and costs one more system call.

On a machine whose cores are all busy a timer still waits for the scheduler, some 4 ms at a time on
Linux; :func:`go_first` is for that.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import sys

from shared.errors import ConfigurationError


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For ``asyncio.Runner(loop_factory=...)``; elsewhere than on Linux the usual loop."""
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(PreciseSelector())


def go_first() -> None:
    """Ask for the lowest real-time priority: this process runs as soon as it has something to do.

    Raises:
        ConfigurationError: refused; it takes Linux, and root or ``CAP_SYS_NICE``.
    """
    if sys.platform != "linux":
        raise ConfigurationError("real-time priority is to be had on Linux only")
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError as error:
        raise ConfigurationError(
            f"real-time priority is refused ({error.strerror}): it takes root or CAP_SYS_NICE"
        ) from None


if sys.platform == "linux":

    class PreciseSelector(selectors.EpollSelector):
        """epoll that keeps to fractions of a millisecond."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)
