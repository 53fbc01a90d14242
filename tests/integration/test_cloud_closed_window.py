"""Edges whose HTTP/2 window stays closed: nothing reaches them, and nobody waits for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from cloud.eviction import StoreLimits
from cloud.held_session import SessionKey
from shared.messages import Context, Escalate, Truncate
from tests.cloud_harness import (
    PROMPT,
    WAIT_SECONDS,
    bystander,
    edge,
    eventually,
    full_model,
    serving,
    tiny_bundle,
)
from tests.cloud_process import MIB, CloudProcess
from tests.fault.test_slow_readers import BURST, QUESTIONS, comes_to_rest, sent_bytes
from tests.raw_http2 import RawEdge, raw_edge

BUNDLE, FULL = tiny_bundle(), full_model()
START = len(PROMPT)
HOUR = 3600.0  # of a stream's own patience, which is no help here
# not even the answer to Open reaches the one; the other stops reading among its decisions
WINDOWS = [0, 1024]


@pytest.fixture
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    # in a teardown, `records` are the teardown's own
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]


async def ask(closed: RawEdge) -> None:
    await closed.open()
    await closed.headers.wait()
    await closed.send(Context(0, PROMPT))
    for _ in range(QUESTIONS):
        await closed.send(Escalate(START, BURST))


@pytest.mark.usefixtures("no_error_is_logged")
@pytest.mark.parametrize("stays", [True, False], ids=["reads at last", "vanishes"])
@pytest.mark.parametrize("window", WINDOWS)
async def test_another_stream_takes_the_session_over(window: int, stays: bool) -> None:
    async with (
        serving(limits=StoreLimits(idle_seconds=HOUR)) as server,
        raw_edge(server.address, window) as closed,
        edge(server, BUNDLE, session_id=closed.session_id) as newer,
        bystander(server, BUNDLE, FULL),
    ):
        await ask(closed)
        key = SessionKey("default", closed.session_id)
        await eventually(lambda: key in server.service._streams)
        if window:
            await comes_to_rest(sent_bytes(server))
        async with asyncio.timeout(WAIT_SECONDS):
            held = (await newer.open()).held_positions
            await newer.send(Truncate(0))
            await newer.send(Context(0, PROMPT))
            assert await newer.decide(START) == FULL.continuation(PROMPT, 1)
        assert (held >= START) is (window > 0)
        assert closed.received <= window  # it was closed indeed
        assert not closed.ended.is_set()
        if stays:
            await closed.take(MIB)
            async with asyncio.timeout(WAIT_SECONDS):
                await closed.ended.wait()  # with the status, behind what had waited for it
            assert closed.received > window


@pytest.mark.parametrize("window", WINDOWS)
async def test_the_cloud_drains_within_its_deadline(window: int) -> None:
    """A process that is still there 10 s after SIGTERM is killed, and does not end with 0."""
    async with CloudProcess(drain_seconds=0.5, session_ttl=HOUR) as cloud:
        async with raw_edge(cloud.address, window) as closed:
            await ask(closed)
            await cloud.has("streams", 1)
            if window:
                await comes_to_rest(lambda: cloud.metric("sent_bytes_total"))
            await cloud.stop()
            assert closed.received <= window
        assert cloud.exit_code == 0
        assert "Traceback" not in cloud.log
