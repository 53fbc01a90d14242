"""``auto`` mode when the link dies: the edge goes on alone, says so, and comes back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.auth import add_token
from cloud.eviction import StoreLimits
from cloud.server import CloudServer
from edge import cloud_session, generation_run, steering
from edge.context_source import ContextCodec
from edge.controller import Aim, Choice, Wishes
from edge.generation import EdgeGeneration, Mode
from edge.generation_options import GenerationOptions
from edge.plan import BURST_UNLIMITED, Plan
from shared.errors import AuthenticationError, FingerprintMismatchError
from tests.cloud_harness import WAIT_SECONDS, eventually, settings_for, tiny_bundle
from tests.edge_harness import (
    PROMPTS,
    BreakableLink,
    edge_and_cloud,
    edge_engine,
    full_answer,
    ids_of,
    options_for,
)
from tests.tiny_bundle import write_tiny_bundle

PROMPT = PROMPTS[6]
EXACT = Wishes(Aim.QUALITY)
# at the threshold that the tiny bundle's table has for this aim
PLAIN = Plan(0.9, 1, BURST_UNLIMITED, ContextCodec.TOKENS, plain=True)
LAYERS = tiny_bundle().manifest.architecture.layers


@pytest.fixture(autouse=True)
def much_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloud on a busy machine is late, and not dead."""
    monkeypatch.setattr(steering, "LEAST_PATIENCE_SECONDS", WAIT_SECONDS)


@pytest.fixture
def little_patience(much_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_patience(monkeypatch)


def lose_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait little from the next question on: no answer will come."""
    monkeypatch.setattr(steering, "LEAST_PATIENCE_SECONDS", 0.3)


def auto(wishes: Wishes = EXACT, **changes: Any) -> GenerationOptions:
    return options_for(Mode.AUTO, **({"wishes": wishes, "max_tokens": 24} | changes))


async def alone(count: int) -> list[int]:
    async with edge_engine(None) as engine:
        options = options_for(Mode.STANDALONE, threshold=1.0, max_tokens=count)
        return ids_of(await engine.generate(PROMPT, options))


@pytest.mark.parametrize("aim", Aim)
@pytest.mark.parametrize("private", [False, True])
async def test_each_aim_gives_an_answer(aim: Aim, private: bool) -> None:
    async with edge_and_cloud() as engine:
        for _ in range(3):  # the later ones with what the first has measured
            result = await engine.generate(PROMPT, auto(Wishes(aim, private=private)))
            assert not any(token.alone for token in result.tokens)
            assert not (private and result.plan.codec is ContextCodec.TOKENS)
            if aim is Aim.QUALITY and not private:
                assert ids_of(result) == full_answer(PROMPT, 24)


@pytest.mark.usefixtures("little_patience")
async def test_without_a_cloud_the_edge_goes_on_alone_and_says_so() -> None:
    async with edge_engine("127.0.0.1:9") as engine:
        result = await engine.generate(PROMPT, auto())
        assert ids_of(result) == await alone(24)
        assert all(token.alone for token in result.tokens)
        assert result.as_record()["alone"] == len(result.tokens)
        assert not engine.monitor.alive


@pytest.mark.parametrize("shared_channel", [False, True])
async def test_a_link_that_falls_silent_is_noticed_and_so_is_its_return(
    shared_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as engine,
    ):
        generation = engine.generation(PROMPT, auto(max_tokens=200))
        seen, dead_from, back_from = [], 10, 30
        stack = engine.connected() if shared_channel else _nothing()
        async with stack:
            async for token in generation.run():
                seen.append(token)
                if len(seen) == dead_from:
                    lose_patience(monkeypatch)
                    link.block()
                if len(seen) == back_from:
                    link.unblock()
                    connections = link.connections
                    await eventually(lambda: link.connections > connections)  # noqa: B023
                if len(seen) > back_from and not token.alone:
                    break
        marks = [token.alone for token in seen]
        assert not any(marks[:dead_from])
        assert any(marks)
        assert not marks[-1]
        # what comes after follows from all that was said before, whoever said it
        ids = [token.token_id for token in seen]
        assert ids[-1:] == full_answer([*PROMPT, *ids[:-1]], 1)
        assert engine.monitor.alive


@pytest.mark.usefixtures("little_patience")
async def test_all_that_is_said_in_a_plain_clouds_place_is_marked() -> None:
    async with edge_engine("127.0.0.1:9") as engine:
        engine.last_plan = PLAIN
        result = await engine.generate(PROMPT, auto())
        assert all(token.alone for token in result.tokens)


async def test_on_the_way_a_plan_is_chosen_for_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[tuple[int, int]] = []

    def choose(*_: Any, prompt_tokens: int, answer_tokens: int, **__: Any) -> Choice:
        left.append((prompt_tokens, answer_tokens))
        return Choice(replace(PLAIN, burst=0, plain=False, window=4, threshold=1.0), str, None)

    monkeypatch.setattr(generation_run, "choose", choose)
    monkeypatch.setattr(steering, "CHOOSE_SECONDS", 0.0)
    async with edge_and_cloud() as engine:
        await engine.generate(PROMPT, auto())
    assert left[0] == (len(PROMPT), 24)
    assert {prompt for prompt, _ in left[2:]} == {0}
    assert left[-1][1] < 24


async def test_where_the_cloud_decides_all_the_text_is_its_own() -> None:
    async with edge_and_cloud() as engine:
        engine.last_plan = PLAIN
        result = await engine.generate(PROMPT, auto())
        assert result.plan.plain
        assert ids_of(result) == full_answer(PROMPT, 24)
        assert {token.origin for token in result.tokens} == {"cloud"}
        assert (result.statistics.escalations, result.statistics.discarded) == (1, 0)
        assert result.prompt_tokens + 23 <= (result.cloud_layer_positions or 0) / LAYERS


async def test_the_cloud_may_take_over_where_it_has_spoken_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asks = 0

    def choose(*_: Any, **__: Any) -> Choice:
        nonlocal asks
        asks += 1
        ahead = replace(PLAIN, burst=0, plain=False, window=4, threshold=1.0, lookahead=16)
        return Choice(ahead if asks <= 8 else PLAIN, str, None)

    take_in = EdgeGeneration._take_in

    async def slowly(self: EdgeGeneration) -> None:
        await asyncio.sleep(0.02)  # an edge that is slower than its cloud
        await take_in(self)

    monkeypatch.setattr(generation_run, "choose", choose)
    monkeypatch.setattr(steering, "CHOOSE_SECONDS", 0.0)
    monkeypatch.setattr(EdgeGeneration, "_take_in", slowly)
    async with edge_and_cloud() as engine, asyncio.timeout(60):
        result = await engine.generate(PROMPT, auto())
    assert ids_of(result) == full_answer(PROMPT, 24)
    assert result.plan.plain


@pytest.mark.parametrize("dead_from", [1, 10])
async def test_a_cloud_that_decides_all_may_fall_silent_too(
    dead_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as engine,
    ):
        engine.last_plan = PLAIN
        seen, back_from = [], dead_from + 15
        async for token in engine.generation(PROMPT, auto(max_tokens=200)).run():
            seen.append(token)
            if len(seen) == dead_from:
                lose_patience(monkeypatch)
                link.block()
            if len(seen) == back_from:
                link.unblock()
                connections = link.connections
                await eventually(lambda: link.connections > connections)  # noqa: B023
            if len(seen) > back_from + 3 and not token.alone:
                break
        ids, marks = [token.token_id for token in seen], [token.alone for token in seen]
        told = marks.index(True)  # what was on its way when the link died came, too
        assert ids[:told] == full_answer(PROMPT, told)
        assert not marks[-1]
        assert ids[-1:] == full_answer([*PROMPT, *ids[:-1]], 1)


class _nothing:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.usefixtures("little_patience")
async def test_a_full_cloud_is_no_reason_to_stop() -> None:
    settings = settings_for(tiny_bundle(), limits=StoreLimits(budget_bytes=1))
    async with CloudServer(settings) as server, edge_engine(server.address) as engine:
        result = await engine.generate(PROMPT, auto())
        assert ids_of(result) == await alone(24)


async def test_what_the_user_must_mend_is_an_error_all_the_same(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    add_token(tokens, "team")
    async with (
        CloudServer(settings_for(tiny_bundle(), tokens=tokens)) as server,
        edge_engine(server.address, token="not-the-token") as engine,
    ):
        with pytest.raises(AuthenticationError):
            await engine.generate(PROMPT, auto())
    other = write_tiny_bundle(tmp_path / "other", 9, ("float32",), full_depth=False)
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        edge_engine(server.address, other) as engine,
    ):
        with pytest.raises(FingerprintMismatchError):
            await engine.generate(PROMPT, auto())


@pytest.mark.usefixtures("little_patience")
async def test_leaving_does_not_wait_for_a_link_that_is_dead() -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address, answer_seconds=60.0) as engine,
    ):
        link.block()
        async with asyncio.timeout(30):
            result = await engine.generate(PROMPT, auto())
        assert ids_of(result) == await alone(24)


@pytest.mark.usefixtures("little_patience")
async def test_a_full_cloud_is_asked_again_when_it_may_have_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cloud_session, "_REFUSED_SECONDS", 0.05)
    settings = settings_for(tiny_bundle(), limits=StoreLimits(max_sessions=1))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(CloudServer(settings))
        engine = await stack.enter_async_context(edge_engine(server.address))
        other = await stack.enter_async_context(edge_engine(server.address))
        first = other.generation(PROMPT, options_for(Mode.CLOUD_ONLY, max_tokens=400)).run()
        await anext(first)  # it holds the only session
        seen = []
        generation = engine.generation(PROMPT, auto(max_tokens=300))
        async for token in generation.run():
            seen.append(token.alone)
            if len(seen) == 5:
                await first.aclose()
                session = generation._cloud
                assert session is not None
                await eventually(lambda: session.openings > 0)  # noqa: B023
            if len(seen) > 5 and not token.alone:
                break
        assert all(seen[:5])
        assert not seen[-1]


async def test_a_connection_that_one_answer_gives_up_is_left_to_the_others() -> None:
    async with edge_and_cloud() as engine, engine.connected():
        assert engine.channels is not None
        options = options_for(Mode.COLLABORATIVE, threshold=1.0, max_tokens=24)
        generation = engine.generation(PROMPT, options)
        found = []
        async for token in generation.run():
            found.append(token.token_id)
            if len(found) == 3:  # what a session does whose answer did not come in time
                engine.channels.retire(engine.channels.current())
                result = await engine.generate(PROMPT, options)
                assert ids_of(result) == full_answer(PROMPT, 24)
        assert found == full_answer(PROMPT, 24)
        cloud = generation._cloud
        assert cloud is not None
        assert cloud.reconnects == 0


@pytest.mark.usefixtures("little_patience")
async def test_leaving_does_not_wait_for_a_cloud_that_fell_silent_at_the_end() -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address, answer_seconds=60.0) as engine,
    ):
        async with asyncio.timeout(30):
            count = 0
            async for _ in engine.generation(PROMPT, auto()).run():
                count += 1
                if count == 23:
                    link.block()
        assert count == 24
