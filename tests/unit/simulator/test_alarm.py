"""The alarm: once, at the time set last, never early; and who may go first."""

from __future__ import annotations

import asyncio
import math
import os
import sys

import pytest

from shared.errors import ConfigurationError
from simulator.alarm import Alarm
from simulator.precise_loop import go_first, new_event_loop


async def ring_after(*delays: float) -> list[float]:
    """Seconds by which each alarm in turn was late."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    rung = asyncio.Event()
    when = 0.0

    def ring() -> None:
        late.append(loop.time() - when)
        rung.set()

    alarm = Alarm(loop, ring)
    for delay in delays:
        rung.clear()
        alarm.set(math.inf)
        alarm.set(loop.time() + 10)
        when = loop.time() + delay
        alarm.set(when)
        alarm.set(when)
        await rung.wait()
    return late


def test_it_rings_once_and_never_early_on_either_loop() -> None:
    for factory in (new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            late = runner.run(ring_after(*[0.004] * 20, 0.0005, 0.0))
        assert len(late) == 22
        assert min(late) >= 0


async def test_a_cancelled_alarm_is_silent() -> None:
    loop = asyncio.get_running_loop()
    rung: list[str] = []
    cancelled, later = Alarm(loop, lambda: rung.append("cancelled")), asyncio.Event()
    cancelled.set(loop.time() + 0.001)
    cancelled.cancel()
    Alarm(loop, later.set).set(loop.time() + 0.003)
    await later.wait()
    assert rung == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's scheduler")
def test_a_refused_priority_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(ConfigurationError, match="CAP_SYS_NICE"):
        go_first()
