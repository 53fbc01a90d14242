"""Whatever breaks between edge and cloud, the text is what it would have been, or the error says
what happened."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cloud.auth import add_token
from cloud.eviction import StoreLimits
from cloud.server import CloudServer
from edge.cloud_session import CloudSession
from edge.context_source import ContextCodec, TokenSource
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_run import Generation
from shared.errors import (
    AuthenticationError,
    BudgetExceededError,
    CloudUnavailableError,
    FingerprintMismatchError,
)
from shared.sampling import GREEDY
from simulator.local_cloud import LocalCloud
from tests.cloud_harness import eventually, settings_for, tiny_bundle
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
EXACT: dict[str, Any] = {"use_exits": False, "context": ContextCodec.FLOAT32}
VARIANTS = [
    pytest.param(options_for(**EXACT), id="hidden"),
    pytest.param(options_for(use_exits=False, context=ContextCodec.TOKENS), id="tokens"),
    pytest.param(options_for(threshold=0.3, context=ContextCodec.INT8), id="exits"),
    pytest.param(options_for(Mode.CLOUD_ONLY), id="cloud-only"),
]


async def undisturbed(options: GenerationOptions) -> list[int]:
    async with edge_and_cloud() as engine:
        return ids_of(await engine.generate(PROMPT, options))


@pytest.mark.parametrize("options", VARIANTS)
async def test_a_restart_of_the_cloud_in_the_middle_does_not_change_the_text(
    options: GenerationOptions,
) -> None:
    wanted = await undisturbed(options)
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        server = await first.enter_async_context(
            CloudServer(settings_for(tiny_bundle(), drain_seconds=0.0))
        )
        port = int(server.address.rpartition(":")[2])
        engine = await second.enter_async_context(edge_engine(server.address))
        found = []
        async for token in engine.generation(PROMPT, options).run():
            found.append(token.token_id)
            if len(found) == 7:  # an empty context store comes back at the same address
                await first.aclose()
                again = CloudServer(settings_for(tiny_bundle(), port=port))
                await second.enter_async_context(again)
    assert found == wanted


async def _queued(generation: Generation, answers: int) -> None:
    """Wait until the first question's so many answers have come, whether taken or not."""
    cloud = generation._cloud
    assert cloud is not None
    (question,) = cloud._questions.values() or [None]
    await eventually(lambda: question is None or question.answered >= answers)


async def _served(server: CloudServer) -> None:
    await eventually(lambda: server.service.open_streams == 1)


async def test_a_restart_behind_a_slow_reader_does_not_change_the_text() -> None:
    """Answers wait in the edge, taken by nobody yet, when the cloud forgets everything."""
    options = options_for(Mode.CLOUD_ONLY, max_tokens=40)
    wanted = await undisturbed(options)
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        settings = settings_for(tiny_bundle(), drain_seconds=0.0)
        server = await first.enter_async_context(CloudServer(settings))
        port = int(server.address.rpartition(":")[2])
        engine = await second.enter_async_context(edge_engine(server.address))
        generation = engine.generation(PROMPT, options)
        found = []
        async for token in generation.run():
            found.append(token.token_id)
            if len(found) == 3:
                await _queued(generation, 8)
                await first.aclose()
                again = CloudServer(settings_for(tiny_bundle(), port=port))
                await second.enter_async_context(again)
                await _served(again)
    assert found == wanted


async def test_a_link_cut_after_the_last_answer_arrived_is_no_error() -> None:
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as engine,
    ):
        generation = engine.generation(PROMPT, options_for(Mode.CLOUD_ONLY, max_tokens=6))
        found = []
        async for token in generation.run():
            found.append(token.token_id)
            if len(found) == 1:
                await _queued(generation, 6)
                link.cut()
                await eventually(lambda: link.connections == 2)
    assert found == full_answer(PROMPT, 6)


async def test_a_late_answer_about_withdrawn_text_is_not_taken_for_a_new_one() -> None:
    first, second = [*PROMPT, 50, 51, 52], [*PROMPT, 60, 61, 62]
    wanted = full_answer(second, 1)[0]
    async with edge_and_cloud() as engine:
        assert engine.endpoint is not None
        ids = list(first)
        fingerprint = tiny_bundle().manifest.fingerprint
        async with CloudSession(engine.endpoint, fingerprint, GREEDY, TokenSource(ids)) as cloud:
            for _ in range(25):
                ids[:] = first
                cloud.offer(len(ids))
                asking = asyncio.create_task(cloud.decide(len(ids)))
                await eventually(lambda: bool(cloud._questions))
                await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait([asking])
                cloud.truncate(len(PROMPT))
                ids[:] = second
                cloud.offer(len(ids))
                assert (await cloud.decide(len(ids))).token_id == wanted
                cloud.truncate(len(PROMPT))


async def test_a_killed_cloud_process_that_comes_back_does_not_change_the_text() -> None:
    wanted = await undisturbed(options_for(**EXACT))
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(LocalCloud(tiny_bundle().folder, threads=1))
        engine = await stack.enter_async_context(edge_engine(cloud.address, give_up_seconds=120.0))
        found = []
        async for token in engine.generation(PROMPT, options_for(**EXACT)).run():
            found.append(token.token_id)
            if len(found) == 9:
                await cloud.kill()
                await cloud.start()
    assert found == wanted


@pytest.mark.parametrize("options", VARIANTS)
async def test_cut_connections_do_not_change_the_text(options: GenerationOptions) -> None:
    wanted = await undisturbed(options)
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as engine,
    ):
        found = []
        async for token in engine.generation(PROMPT, options).run():
            found.append(token.token_id)
            if len(found) % 5 == 2:
                link.cut()
        assert link.connections > 1
    assert found == wanted


async def test_a_silent_connection_is_replaced() -> None:
    wanted = await undisturbed(options_for(**EXACT))
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address, answer_seconds=0.5) as engine,
    ):
        found = []
        async for token in engine.generation(PROMPT, options_for(**EXACT)).run():
            found.append(token.token_id)
            if len(found) == 5:
                link.fall_silent()
    assert found == wanted


async def test_a_cloud_that_is_gone_for_good_is_an_error_in_bounded_time() -> None:
    settings = settings_for(tiny_bundle(), drain_seconds=0.0)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(CloudServer(settings))
        async with edge_engine(server.address, answer_seconds=2.0, give_up_seconds=0.5) as engine:
            generation = engine.generation(PROMPT, options_for(**EXACT)).run()
            assert (await anext(generation)).token_id == full_answer(PROMPT, 1)[0]
            await stack.aclose()
            with pytest.raises(CloudUnavailableError, match="no answer from the cloud"):
                async for _ in generation:
                    pass


async def test_nothing_listening_is_an_error_in_bounded_time() -> None:
    async with edge_engine("127.0.0.1:9", give_up_seconds=0.3) as engine:
        with pytest.raises(CloudUnavailableError, match=r"127\.0\.0\.1:9 cannot be reached"):
            await engine.generate(PROMPT, options_for(**EXACT))


async def test_a_session_that_truncates_while_cut_off_replays_the_new_text() -> None:
    """The cloud still holds what the edge has since forgotten and rewritten."""
    first, second = [*PROMPT, 50, 51, 52], [*PROMPT, 60, 61, 62, 63]
    async with (
        CloudServer(settings_for(tiny_bundle())) as server,
        BreakableLink(server.address) as link,
        edge_engine(link.address) as engine,
    ):
        assert engine.endpoint is not None
        ids = list(first)
        fingerprint = tiny_bundle().manifest.fingerprint
        async with CloudSession(engine.endpoint, fingerprint, GREEDY, TokenSource(ids)) as cloud:
            cloud.offer(len(ids))
            decision = await cloud.decide(len(ids))
            assert decision.token_id == full_answer(first, 1)[0]
            link.cut()
            cloud.truncate(len(PROMPT))
            ids[:] = second
            cloud.offer(len(ids))
            decision = await cloud.decide(len(ids))
            assert decision.token_id == full_answer(second, 1)[0]
            # and once more to the very beginning, on a connection that holds
            cloud.truncate(0)
            ids[:] = first
            cloud.offer(len(ids))
            assert (await cloud.decide(len(ids))).token_id == full_answer(first, 1)[0]


async def test_a_store_that_missed_a_rewrite_is_not_trusted_with_what_it_holds() -> None:
    """Two replicas behind one address: the first holds a text that the second saw withdrawn."""
    first, second = [*PROMPT, 50, 51, 52], [*PROMPT, 60, 61, 62]
    async with (
        CloudServer(settings_for(tiny_bundle())) as one,
        CloudServer(settings_for(tiny_bundle())) as two,
        BreakableLink([one.address, two.address]) as link,
        edge_engine(link.address) as engine,
    ):
        assert engine.endpoint is not None
        ids = list(first)
        fingerprint = tiny_bundle().manifest.fingerprint
        async with CloudSession(engine.endpoint, fingerprint, GREEDY, TokenSource(ids)) as cloud:
            cloud.offer(len(ids))
            assert (await cloud.decide(len(ids))).token_id == full_answer(first, 1)[0]
            link.cut()
            cloud.truncate(len(PROMPT))
            ids[:] = second
            cloud.offer(len(ids))
            assert (await cloud.decide(len(ids))).token_id == full_answer(second, 1)[0]
            assert [len(server.store) for server in (one, two)] == [1, 1]
            link.cut()
            ids.append(70)
            cloud.offer(len(ids))
            assert (await cloud.decide(len(ids))).token_id == full_answer(ids, 1)[0]
            assert link.connections == 3


async def test_another_bundle_is_refused_by_its_fingerprint(tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", 9, ("float32",), full_depth=False)
    async with CloudServer(settings_for(tiny_bundle())) as server:
        async with edge_engine(server.address, other) as engine:
            with pytest.raises(FingerprintMismatchError, match="same model"):
                await engine.generate(PROMPT, options_for(**EXACT))
        async with edge_engine(server.address) as engine:  # the right one is served all the same
            result = await engine.generate(PROMPT, options_for(**EXACT))
    assert ids_of(result) == full_answer(PROMPT, 24)


async def test_tokens_open_the_door_and_only_they(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "team")
    async with CloudServer(settings_for(tiny_bundle(), tokens=tokens)) as server:
        for wrong in (None, "not-the-token"):
            async with edge_engine(server.address, token=wrong) as engine:
                with pytest.raises(AuthenticationError):
                    await engine.generate(PROMPT, options_for(**EXACT))
        async with edge_engine(server.address, token=token) as engine:
            result = await engine.generate(PROMPT, options_for(**EXACT))
    assert ids_of(result) == full_answer(PROMPT, 24)


async def test_a_context_beyond_the_clouds_budget_is_an_error() -> None:
    limits = StoreLimits(budget_bytes=1000)
    async with (
        CloudServer(settings_for(tiny_bundle(), limits=limits)) as server,
        edge_engine(server.address) as engine,
    ):
        with pytest.raises(BudgetExceededError, match="budget"):
            await engine.generate(PROMPT, options_for(**EXACT))


async def test_an_edge_that_vanishes_leaves_the_others_alone() -> None:
    async with CloudServer(settings_for(tiny_bundle())) as server:
        async with BreakableLink(server.address) as link, edge_engine(server.address) as steady:
            steady_text = asyncio.create_task(steady.generate(PROMPT, options_for(**EXACT)))
            async with edge_engine(link.address, give_up_seconds=0.1) as lost:
                stream = lost.generation(PROMPT, options_for(**EXACT)).run()
                await anext(stream)
                link.cut()
                await stream.aclose()
            assert ids_of(await steady_text) == full_answer(PROMPT, 24)
        await server.service.drain(20)
        assert server.service.open_streams == 0


async def test_many_edges_at_once_each_get_their_own_text() -> None:
    async with edge_and_cloud() as engine:
        answers = await asyncio.gather(*(_answer(engine, prompt) for prompt in PROMPTS[:8]))
    assert answers == [full_answer(prompt, 12) for prompt in PROMPTS[:8]]


async def _answer(engine: EdgeEngine, prompt: tuple[int, ...]) -> list[int]:
    return ids_of(await engine.generate(prompt, options_for(max_tokens=12, **EXACT)))
