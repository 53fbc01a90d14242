"""A connection that breaks around a correction, and plans that change on the way: the same text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

import edge.generation_run
from cloud.server import CloudServer
from edge import steering
from edge.cloud_session import CloudSession
from edge.context_source import ContextCodec
from edge.controller import Choice
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.plan import Plan
from edge.question import Question
from shared.messages import Decision
from tests.cloud_harness import eventually, settings_for, tiny_bundle
from tests.edge_harness import PROMPTS, BreakableLink, Reckless, edge_engine, full_answer, ids_of

PROMPT = PROMPTS[3]
TOKENS = ContextCodec.TOKENS
PLAIN = Reckless(Mode.COLLABORATIVE, threshold=1.0, max_tokens=24, context=TOKENS, lookahead=0)


async def undisturbed(server: CloudServer, options: GenerationOptions) -> list[int]:
    async with edge_engine(server.address) as engine:
        return ids_of(await engine.generate(PROMPT, replace(options, window=0, lookahead=None)))


def when_corrected(monkeypatch: pytest.MonkeyPatch, moment: str, do: Callable[[], None]) -> None:
    """Call ``do`` when a correction has arrived and nobody knows yet, or when the edge has gone
    back to it and the cloud does not know yet."""
    if moment == "arrived":
        take = CloudSession._answer

        def answered(session: CloudSession, question: Question, decision: Decision) -> None:
            take(session, question, decision)
            if question.corrected and question.answered == 1:
                do()

        monkeypatch.setattr(CloudSession, "_answer", answered)
        return
    for name in ("truncate", "follow"):
        go_back: Callable[..., None] = getattr(CloudSession, name)

        def gone_back(*given: Any, go_back: Callable[..., None] = go_back) -> None:
            go_back(*given)
            do()

        monkeypatch.setattr(CloudSession, name, gone_back)


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        replace(PLAIN, context=ContextCodec.FLOAT32, lookahead=None),
        replace(PLAIN, lookahead=8),
        replace(PLAIN, lookahead=None, burst=3),
        replace(PLAIN, lookahead=8, verified=True),
    ],
    ids=["plain", "hidden", "lookahead", "burst", "verified"],
)
@pytest.mark.parametrize("moment", ["arrived", "gone back"])
async def test_a_cut_around_a_correction(
    monkeypatch: pytest.MonkeyPatch, moment: str, options: GenerationOptions
) -> None:
    cuts = 0
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address, lambda: 0.002) as link,
        edge_engine(link.address) as engine,
    ):
        expected = await undisturbed(server, options)

        def cut() -> None:
            nonlocal cuts
            cuts += 1
            link.cut()

        when_corrected(monkeypatch, moment, cut)
        result = await engine.generate(PROMPT, options)
        assert ids_of(result) == expected
        assert cuts >= 3
        assert link.connections > 3


async def test_plans_that_change_on_the_way_change_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as they have the same threshold."""
    first = Plan(1.0, 4, 0, TOKENS, least_chance=0.0, lookahead=0)
    plans = [
        first,
        replace(first, window=1),
        replace(first, lookahead=8),
        replace(first, window=0),
        replace(first, window=12, lookahead=2),
    ]
    coming = cycle(plans)
    used: set[Plan] = set()

    def choose(*_: object, **__: object) -> Choice:
        plan = next(coming)
        used.add(plan)
        return Choice(plan, str, None)

    monkeypatch.setattr(edge.generation_run, "choose", choose)
    monkeypatch.setattr(steering, "CHOOSE_SECONDS", 0.0)
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address, lambda: 0.003) as link,
        edge_engine(link.address) as engine,
    ):
        options = GenerationOptions(Mode.AUTO, max_tokens=24)
        result = await engine.generate(PROMPT, options)
        assert ids_of(result) == await undisturbed(server, PLAIN)
        assert used == set(plans)


async def test_the_cloud_comes_back_over_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured on the fast one is forgotten with it."""
    monkeypatch.setattr(steering, "LEAST_PATIENCE_SECONDS", 1.0)
    delay = 0.0
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address, lambda: delay) as link,
        edge_engine(link.address) as engine,
    ):
        generation = engine.generation(PROMPT, GenerationOptions(Mode.AUTO, max_tokens=200))
        seen = []
        async for token in generation.run():
            seen.append(token)
            if len(seen) == 10:
                link.block()
            if len(seen) == 30:
                delay = 0.1  # each way
                link.unblock()
                cloud = generation._cloud
                assert cloud is not None
                openings = cloud.openings
                await eventually(lambda: cloud.openings > openings)  # noqa: B023
            if len(seen) > 30 and token.origin == "cloud":
                break
        ids = [token.token_id for token in seen]
        assert seen[-1].origin == "cloud"
        assert ids[-1:] == full_answer([*PROMPT, *ids[:-1]], 1)


async def test_a_plan_may_change_between_looking_ahead_and_bursts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text is then neither plan's, and each word of the cloud's is the full model's."""
    ahead = Plan(0.4, 4, 0, TOKENS, least_chance=0.0, lookahead=8)
    coming = cycle([ahead, ahead, ahead, replace(ahead, lookahead=0, burst=3)])
    monkeypatch.setattr(
        edge.generation_run, "choose", lambda *_, **__: Choice(next(coming), str, None)
    )
    monkeypatch.setattr(steering, "CHOOSE_SECONDS", 0.0)
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address, lambda: 0.003) as link,
        edge_engine(link.address) as engine,
    ):
        for prompt in PROMPTS[:6]:
            result = await engine.generate(prompt, GenerationOptions(Mode.AUTO, max_tokens=40))
            assert not any(token.alone for token in result.tokens)
            text = list(prompt)
            for token in result.tokens:
                if token.origin == "cloud":
                    assert [token.token_id] == full_answer(text, 1)
                text.append(token.token_id)
