"""More sessions than the budget holds: they wait for each other, lose what is kept for them, and
every text is right."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest

from cloud.decisions import ENTRY_BYTES
from cloud.eviction import StoreLimits
from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.errors import BudgetExceededError, NoRoomError
from shared.messages import Context
from tests.cloud_harness import WAIT_SECONDS, Edge, edge, serving, tiny_bundle
from tests.cloud_process import MIB, CloudProcess
from tests.edge_harness import PROMPTS, edge_and_cloud, edge_engine, ids_of, options_for

ARCH = tiny_bundle().manifest.architecture
# ids, decisions, and keys and values, of a session of 64 positions at most
SESSION_BYTES = 64 * (4 + ENTRY_BYTES) + 64 * ARCH.layers * 2 * ARCH.kv_size * 4
TOKENS_A_TURN = 3


@dataclass
class Talker:
    """A session that asks for a few tokens, leaves, and comes back later."""

    edge: Edge
    ids: list[int]

    async def take_turn(self) -> None:
        """Resume with what the cloud lacks, and ask."""
        held = (await self.edge.open()).held_positions
        for _ in range(TOKENS_A_TURN):
            if held < len(self.ids):
                await self.edge.send(Context(held, tuple(self.ids[held:])))
                held = len(self.ids)
            self.ids += await self.edge.decide(len(self.ids))
        self.edge.call.cancel()


OPTIONS = {
    "hidden": options_for(use_exits=False, context=ContextCodec.FLOAT32),
    "tokens": options_for(use_exits=False, context=ContextCodec.TOKENS),
    "exits": options_for(threshold=0.3, context=ContextCodec.TOKENS),
    "cloud-only": options_for(Mode.CLOUD_ONLY),
}
PATIENT: dict[str, Any] = {"answer_seconds": 120.0, "give_up_seconds": 300.0}


async def all_at_once(cloud: CloudProcess, options: list[GenerationOptions]) -> None:
    """A generation with each of ``options``; each has the text that it has alone."""
    jobs = [(PROMPTS[number % len(PROMPTS)], own) for number, own in enumerate(options)]
    async with edge_and_cloud() as engine:
        wanted = {job: ids_of(await engine.generate(*job)) for job in dict.fromkeys(jobs)}
    descriptors = cloud.descriptors
    async with edge_engine(cloud.address, **PATIENT) as engine:
        results = await asyncio.gather(*(engine.generate(*job) for job in jobs))
    assert [ids_of(result) for result in results] == [wanted[job] for job in jobs]
    gc.collect()  # errors that were seen hold calls, and those their connections
    await cloud.has("streams", 0)
    await cloud.has("held_bytes", 0)
    await cloud.comes_to(lambda: cloud.descriptors == descriptors)
    assert "ERROR" not in cloud.log


@pytest.mark.parametrize("kind", OPTIONS)
async def test_twelve_generations_at_once_on_a_budget_for_three(kind: str) -> None:
    budget_mb = 3 * SESSION_BYTES / MIB
    async with CloudProcess(budget_mb=budget_mb, max_sessions=12) as cloud:
        await all_at_once(cloud, [OPTIONS[kind]] * 12)
        assert (
            await cloud.metric("evictions_total", what="cache_in_use") > 0 or kind == "cloud-only"
        )


async def test_twelve_generations_at_once_where_three_sessions_may_be_open() -> None:
    async with CloudProcess(max_sessions=3) as cloud:
        await all_at_once(cloud, list(OPTIONS.values()) * 3)
        assert await cloud.metric("errors_total", code="NO_ROOM") > 0


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["bytes", "sessions"])
async def test_two_hundred_generations_at_once_on_a_budget_for_fifty(limit: str) -> None:
    budget_mb, sessions = (50 * SESSION_BYTES / MIB, 200) if limit == "bytes" else (64.0, 50)
    async with CloudProcess(budget_mb=budget_mb, max_sessions=sessions) as cloud:
        await all_at_once(cloud, list(OPTIONS.values()) * 50)
        assert await cloud.metric("evictions_total") > 0 or limit == "sessions"


async def test_an_edge_is_told_that_there_is_no_room_when_its_patience_is_over() -> None:
    async with (
        serving(limits=StoreLimits(max_sessions=1)) as server,
        edge(server, tiny_bundle()) as other,
        edge_engine(server.address, give_up_seconds=0.3) as engine,
    ):
        await other.open()
        with pytest.raises(NoRoomError, match="all 1 sessions"):
            await engine.generate(PROMPTS[0], OPTIONS["tokens"])
        refusals = server.metrics.registry.get_sample_value(
            "tandem_cloud_errors_total", {"code": "NO_ROOM"}
        )
        assert refusals is not None
        assert refusals > 1  # it tried again


async def test_what_can_never_fit_is_told_at_once() -> None:
    async with (
        CloudProcess(budget_mb=0.5 * SESSION_BYTES / MIB) as cloud,
        edge_engine(cloud.address, give_up_seconds=WAIT_SECONDS) as engine,
    ):
        with pytest.raises(BudgetExceededError, match="raise --budget-mb"):
            await engine.generate(PROMPTS[0], OPTIONS["tokens"])
        assert await cloud.metric("streams_opened_total") == 1


@pytest.mark.slow
async def test_memory_is_flat_over_sessions_that_come_and_go() -> None:
    """After a warm-up: oneDNN compiles a kernel for each number of rows that it meets."""
    prompts = [tuple((n * 37 + i * i * 11 + 3) % 256 + 2 for i in range(9)) for n in range(10)]
    resident = []
    async with CloudProcess(budget_mb=10 * SESSION_BYTES / MIB, max_sessions=30) as cloud:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(cloud.address, options=options) as channel:
            streams = asyncio.Semaphore(8)

            async def turn(talker: Talker) -> None:
                async with streams:
                    await talker.take_turn()

            for number in range(40):
                if number % 10 == 0:  # others come, and the old ones are left to be evicted
                    fingerprint = tiny_bundle().manifest.fingerprint
                    talkers = [Talker(Edge(channel, fingerprint), list(p)) for p in prompts * 4]
                await asyncio.gather(*map(turn, talkers))
                resident.append(cloud.resident_bytes)
    assert max(resident[-10:]) - max(resident[10:20]) < 16 * MIB
