"""A batcher that dies takes the cloud with it, in good order: told, typed, with an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.collaboration_service import SERVICE_NAME
from cloud.server import CloudServer
from shared.errors import CloudInternalError, CloudShuttingDownError
from shared.messages import Context, Escalate, Truncate, error_of
from tests.cloud_harness import (
    PROMPT,
    WAIT_SECONDS,
    closed_gate,
    edge,
    eventually,
    full_model,
    settings_for,
    tiny_bundle,
)
from tests.cloud_process import plain_edge

BUNDLE, FULL = tiny_bundle(), full_model()
START = len(PROMPT)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_turns_and_every_stream_ends_with_a_typed_status(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # the drain would wait for an hour, were there anything to wait for
        server = await stack.enter_async_context(
            CloudServer(settings_for(BUNDLE, drain_seconds=3600.0))
        )
        async with (
            edge(server, BUNDLE) as computing,
            edge(server, BUNDLE) as waiting,
            edge(server, BUNDLE) as idle,
        ):
            stub = health_pb2_grpc.HealthStub(idle.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            assert (await watch.read()).status == SERVING
            for client in (computing, waiting, idle):
                await client.open()
                await client.send(Context(0, PROMPT))
            assert await idle.decide(START) == FULL.continuation(PROMPT, 1)
            ended = asyncio.create_task(server.wait())

            with closed_gate(server.batcher.model) as gate:
                await computing.send(Escalate(START))
                await gate.entered.wait()
                await waiting.send(Escalate(START))
                await eventually(lambda: len(server.batcher._queue) == 1)

                def broken(*_: Any) -> None:
                    raise RuntimeError("no account is kept")

                monkeypatch.setattr(server.metrics, "pass_ended", broken)

            for client in (computing, waiting):  # one in the pass, one in the queue
                reply, status = await client.failure()
                assert isinstance(error_of(reply), CloudInternalError)
                assert status is grpc.StatusCode.INTERNAL
                assert "no account" not in reply.message
            assert (await watch.read()).status == NOT_SERVING
            async with asyncio.timeout(WAIT_SECONDS):
                with pytest.raises(CloudInternalError, match="start it again"):
                    await ended

            late = await computing.open()  # nobody is drained yet
            assert late.held_positions == 0  # after a fault of the cloud's own nothing is trusted
            await computing.send(Context(0, PROMPT))
            await computing.send(Escalate(START))
            assert (await computing.failure())[1] is grpc.StatusCode.INTERNAL

            leaving = asyncio.create_task(stack.aclose())
            reply, status = await idle.failure()
            assert isinstance(error_of(reply), CloudShuttingDownError)
            assert status is grpc.StatusCode.UNAVAILABLE
            async with asyncio.timeout(WAIT_SECONDS):
                await leaving
    assert "no account is kept" in caplog.text  # the log says why


# serves until the fifth piece of work is there
BREAKS = """
from cloud.fair_queue import FairQueue
from shared.cli import main

push, pushed = FairQueue.push, []

def counted(queue, item, **options):
    pushed.append(item)
    if len(pushed) == 5:
        FairQueue.take = lambda queue, room: 1 / 0
    push(queue, item, **options)

FairQueue.push = counted
main()
"""


@contextlib.asynccontextmanager
async def breaking_cloud(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A real cloud process that will break, and its address; killed where it does not end."""
    port_file = tmp_path / "address"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BREAKS, "cloud", "serve", "--port", "0", "--threads", "1",
        "--bundle", str(BUNDLE.folder), "--drain-seconds", "3600", "--port-file", str(port_file),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while b"listening on" not in (line := await process.stderr.readline()):
                assert line, "it ended before it listened"
        yield process, port_file.read_text().strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_process_ends_with_a_failure_and_says_what_to_do(tmp_path: Path) -> None:
    async with (
        breaking_cloud(tmp_path) as (process, address),
        plain_edge(address) as asking,
        plain_edge(address) as idle,
    ):
        await idle.open()
        await asking.open()
        for _ in range(4):
            await asking.send(Context(0, PROMPT))
            assert await asking.decide(START) == FULL.continuation(PROMPT, 1)
            await asking.send(Truncate(0))
        await asking.send(Context(0, PROMPT))
        await asking.send(Escalate(START))
        assert (await asking.failure())[1] is grpc.StatusCode.INTERNAL
        assert (await idle.failure())[1] is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(WAIT_SECONDS):
            _, said = await process.communicate()
        assert process.returncode == CloudInternalError.exit_code != 0
        assert b"ZeroDivisionError" in said
        assert b"start it again" in said.splitlines()[-1]
        assert not (tmp_path / "address").exists()
