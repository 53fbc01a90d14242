"""Faults around a real cloud process: every text is what it would have been, and the process holds
no more at the end than at the beginning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from tests.cloud_process import CloudProcess
from tests.edge_harness import (
    PROMPTS,
    BreakableLink,
    edge_and_cloud,
    edge_engine,
    ids_of,
    options_for,
)
from tests.hostile_link import CuttingLink

OPTIONS = (
    options_for(use_exits=False, context=ContextCodec.FLOAT32),
    options_for(use_exits=False, context=ContextCodec.TOKENS),
    options_for(threshold=0.3, context=ContextCodec.INT8),
    options_for(Mode.CLOUD_ONLY),
)
# what caches of allocator, gRPC and torch may come to after the first cuts: for each one more, and
# in all, by how they happen to coincide (over 4,000 cuts it comes to rest); a session that stayed
# would be 17 KiB and more
MEMORY_A_CUT, MEMORY_ANYWAY = 16 << 10, 8 << 20
PATIENT: dict[str, Any] = {"give_up_seconds": 120.0, "connect_seconds": 120.0}

Job = tuple[tuple[int, ...], GenerationOptions]
JOBS: tuple[Job, ...] = tuple(
    (PROMPTS[number], options) for number, options in enumerate(OPTIONS * 2)
)


async def undisturbed(jobs: Sequence[Job]) -> list[list[int]]:
    async with edge_and_cloud() as engine:
        return [ids_of(await engine.generate(*job)) for job in jobs]


async def answer(engine: EdgeEngine, job: Job, shown: Callable[[], None]) -> list[int]:
    tokens = []
    async for token in engine.generation(*job).run():
        tokens.append(token.token_id)
        shown()
    return tokens


async def is_as_before(cloud: CloudProcess, descriptors: int) -> None:
    """No stream is left, and every socket is closed."""
    await cloud.has("streams", 0)
    await cloud.comes_to(lambda: cloud.descriptors == descriptors)


async def test_texts_survive_a_cloud_that_is_killed_again_and_again() -> None:
    wanted = await undisturbed(JOBS)
    due = asyncio.Event()
    shown = 0

    def count() -> None:
        nonlocal shown
        shown += 1
        if shown in (20, 90):
            due.set()

    async def kill_and_restart(cloud: CloudProcess) -> None:
        for _ in range(2):
            await due.wait()
            due.clear()
            await cloud.kill()
            await cloud.start()

    async with CloudProcess() as cloud, edge_engine(cloud.address, **PATIENT) as engine:
        killing = asyncio.create_task(kill_and_restart(cloud))
        answers = await asyncio.gather(*(answer(engine, job, count) for job in JOBS))
        await killing
    assert answers == wanted


@pytest.mark.parametrize(
    "cuts", [pytest.param(150, id="150"), pytest.param(1000, id="1000", marks=pytest.mark.slow)]
)
async def test_cuts_at_random_bytes_change_no_text_and_leak_nothing(cuts: int) -> None:
    wanted = await undisturbed(JOBS)
    warm: list[int] = []
    async with CloudProcess() as cloud:
        descriptors = cloud.descriptors

        def note(count: int) -> None:
            if count == cuts // 2:
                warm.append(cloud.resident_bytes)

        async with CuttingLink(
            cloud.address, cuts=cuts, mean_bytes=1500, seed=cuts, on_cut=note
        ) as link:

            async def keep_asking(number: int) -> None:
                # an engine of its own: one channel carries all generations of an engine
                async with edge_engine(link.address, **PATIENT) as engine:
                    while link.cuts < cuts:
                        result = await engine.generate(*JOBS[number])
                        assert ids_of(result) == wanted[number]

            await asyncio.gather(*(keep_asking(number) for number in range(len(JOBS))))
            assert link.cuts >= cuts
        await is_as_before(cloud, descriptors)
        bound = MEMORY_ANYWAY + MEMORY_A_CUT * (cuts - cuts // 2)
        assert cloud.resident_bytes - warm[0] < bound
        assert "ERROR" not in cloud.log


async def _go_half_open(cloud: CloudProcess, times: int, stack: AsyncExitStack) -> None:
    """Generations whose connection falls silent under them; what the cloud has of it stays open
    until ``stack`` ends."""
    job = JOBS[1]
    (wanted,) = await undisturbed([job])
    link = await stack.enter_async_context(BreakableLink(cloud.address))
    async with edge_engine(link.address, answer_seconds=0.3, **PATIENT) as engine:
        for _ in range(times):
            found: list[int] = []
            async for token in engine.generation(*job).run():
                found.append(token.token_id)
                if len(found) in (3, 11):
                    link.fall_silent()
            assert found == wanted


async def test_half_open_connections_change_no_text_and_hold_no_session() -> None:
    async with CloudProcess() as cloud:
        descriptors = cloud.descriptors
        async with AsyncExitStack() as stack:
            await _go_half_open(cloud, 2, stack)
            assert cloud.descriptors > descriptors
            # other streams have taken the sessions over
            await cloud.has("streams", 0)
            await cloud.has("held_bytes", 0)
        await is_as_before(cloud, descriptors)


@pytest.mark.slow
async def test_the_cloud_itself_finds_half_open_connections_and_closes_them() -> None:
    async with CloudProcess() as cloud, AsyncExitStack() as stack:
        descriptors = cloud.descriptors
        await _go_half_open(cloud, 10, stack)
        assert cloud.descriptors > descriptors + 10
        await is_as_before(cloud, descriptors)  # while the other ends still are open
