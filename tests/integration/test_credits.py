"""Credits: how many questions of a session may be unanswered, on both sides of the wire."""

from __future__ import annotations

import asyncio

import pytest

from cloud.server import CloudServer
from cloud.session_engine import SessionEngine
from edge.context_source import ContextCodec
from edge.generation import Mode
from shared.messages import Context, Decision, ErrorCode, Escalate, Truncate
from tests.cloud_harness import (
    Edge,
    bystander,
    closed_gate,
    edge,
    eventually,
    full_model,
    serving,
    settings_for,
    tiny_bundle,
)
from tests.edge_harness import PROMPTS, Reckless, edge_engine, full_answer, ids_of

BUNDLE, FULL = tiny_bundle(), full_model()
PROMPT = (3, 14, 15, 92, 65, 35, 89)
START = len(PROMPT)
RIGHT = FULL.continuation(PROMPT, 6)
CREDITS = 3


async def opened(client: Edge) -> None:
    assert (await client.open()).credits == CREDITS
    await client.send(Context(0, PROMPT))


async def test_a_question_beyond_the_credits_ends_its_session_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []
    escalate = SessionEngine.escalate

    async def counted(engine: SessionEngine, step: int, asks: Escalate) -> None:
        asked.append(engine._session.key.session_id)
        await escalate(engine, step, asks)

    monkeypatch.setattr(SessionEngine, "escalate", counted)
    async with (
        serving(credits=CREDITS) as server,
        edge(server, BUNDLE) as greedy,
        bystander(server, BUNDLE, FULL),
    ):
        with closed_gate(server.batcher.model):
            await opened(greedy)
            for position in range(1, CREDITS + 2):
                await greedy.send(Escalate(position))
            await eventually(lambda: asked.count(greedy.session_id) == CREDITS + 1)
        reply, _ = await greedy.failure()
        assert reply.code is ErrorCode.INVALID_MESSAGE
        assert f"more than {CREDITS} escalations" in reply.message


async def test_every_answer_gives_its_credit_back() -> None:
    async with serving(credits=CREDITS) as server, edge(server, BUNDLE) as client:
        await opened(client)
        for position in (1, 2, 3):
            await client.send(Escalate(position))
        for position in (4, 5, 6, START):
            await client.expect(Decision)
            await client.send(Escalate(position))
        assert [(await client.expect(Decision)).position for _ in range(3)] == [5, 6, START]
        await client.close()


async def test_what_a_burst_adds_takes_no_credit() -> None:
    async with serving(credits=1) as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        assert await client.decide(START, burst=4) == RIGHT[:5]
        assert await client.decide(START) == RIGHT[:1]
        await client.close()


async def test_a_truncation_gives_all_credits_back(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, truncate = asyncio.Event(), SessionEngine.truncate

    async def watched(engine: SessionEngine, step: int, position: int) -> None:
        arrived.set()
        await truncate(engine, step, position)

    monkeypatch.setattr(SessionEngine, "truncate", watched)
    async with serving(credits=CREDITS) as server, edge(server, BUNDLE) as client:
        with closed_gate(server.batcher.model) as gate:
            await opened(client)
            await client.send(Escalate(START))
            await gate.entered.wait()
            for position in (2, 3):
                await client.send(Escalate(position))
            await client.send(Truncate(START))
            await client.send(Context(START, tuple(RIGHT[:2])))
            for ahead in range(CREDITS):
                await client.send(Escalate(START + ahead))
            await arrived.wait()  # what is withdrawn could be answered before
        answers = [await client.expect(Decision) for _ in range(1 + CREDITS)]
        assert [a.token_id for a in answers] == [RIGHT[0], *RIGHT[:CREDITS]]
        await client.close()


async def test_a_correction_gives_all_credits_back() -> None:
    async with serving(credits=CREDITS) as server, edge(server, BUNDLE) as client:
        with closed_gate(server.batcher.model) as gate:
            await opened(client)
            await client.send(Escalate(2))
            await gate.entered.wait()
            await client.send(Escalate(START, guess=(RIGHT[0] + 1) % 250))
            await client.send(Context(START, (7, 7)))
            await client.send(Escalate(START + 1))
        assert [(await client.expect(Decision)).position for _ in range(2)] == [2, START]
        await client.send(Truncate(START))
        await client.send(Context(START, tuple(RIGHT[:2])))
        for ahead in range(CREDITS):
            await client.send(Escalate(START + ahead))
        answers = [await client.expect(Decision) for _ in range(CREDITS)]
        assert [a.token_id for a in answers] == RIGHT[:CREDITS]
        await client.close()


@pytest.mark.parametrize("credits", [1, 4])
@pytest.mark.parametrize("burst", [0, 3])
async def test_an_edge_that_drafts_far_ahead_keeps_to_its_credits(
    credits: int, burst: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, escalate = 0, SessionEngine.escalate

    async def watched(engine: SessionEngine, step: int, asks: Escalate) -> None:
        nonlocal most
        await escalate(engine, step, asks)
        most = max(most, len(engine._unanswered))

    monkeypatch.setattr(SessionEngine, "escalate", watched)
    options = Reckless(
        Mode.COLLABORATIVE,
        threshold=1.0,
        max_tokens=24,
        window=24,
        burst=burst,
        verified=True,
        context=ContextCodec.TOKENS,
    )
    async with (
        CloudServer(settings_for(BUNDLE, credits=credits)) as server,
        edge_engine(server.address) as engine,
    ):
        with closed_gate(server.batcher.model):  # the edge drafts as far as it may
            first = asyncio.create_task(engine.generate(PROMPTS[0], options))
            await eventually(lambda: most == credits)
        results = [await first, *[await engine.generate(p, options) for p in PROMPTS[1:4]]]
        for prompt, result in zip(PROMPTS, results, strict=False):
            assert ids_of(result) == full_answer(prompt, 24)
        assert sum(result.statistics.rollbacks for result in results) > 0
    assert most == credits
