"""The cloud as a Ray Serve application: two replicas of the tiny bundle on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from edge.context_source import ContextCodec
from edge.generation import Mode
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import AuthenticationError, InvalidMessageError, SessionTakenOverError
from shared.messages import Context, Decision, Escalate, Truncate, error_of
from tests.cloud_harness import PROMPT, full_model
from tests.cloud_process import plain_edge
from tests.edge_harness import PROMPTS, BreakableLink, full_answer, ids_of, options_for
from tests.fault.test_slow_readers import (
    BURST,
    ask_and_do_not_read,
    comes_to_rest,
    read_to_the_end,
)
from tests.ray_cluster import MESSAGE_BYTES, SECONDS, Cluster, pids_in, serving_cluster

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install '.[ray]'")

from cloud.ray_replica import WINDOW_BYTES

pytestmark = pytest.mark.ray

EXACT = options_for(use_exits=False, context=ContextCodec.FLOAT32)
QUESTIONS = 400  # their answers are far more than a window and what gRPC keeps for a reader


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serving_cluster(tmp_path_factory.mktemp("ray"), replicas=2) as cluster:
        yield cluster


async def test_both_replicas_serve_and_every_text_is_right(cluster: Cluster) -> None:
    taken: set[int] = set()
    async with cluster.engine() as engine:
        for prompt in PROMPTS * 2:
            generation = engine.generation(prompt, EXACT)
            found = [token.token_id async for token in generation.run()]
            assert found == full_answer(prompt, 24)
            taken.add((await cluster.opened(generation))[0])
            if len(taken) == 2:
                return
    raise AssertionError(f"all on {taken}")


async def test_a_cut_connection_comes_back_to_the_replica_that_holds_the_session(
    cluster: Cluster,
) -> None:
    # before others kill replicas: a session may move when the ring changes
    async with (
        BreakableLink(cluster.address) as link,
        cluster.engine(link.address) as engine,
    ):
        generation = engine.generation(PROMPTS[6], EXACT)
        found = []
        async for token in generation.run():
            found.append(token.token_id)
            if len(found) == 9:
                first = await cluster.opened(generation)
                link.cut()
        assert found == full_answer(PROMPTS[6], 24)
        again = await cluster.opened(generation, 2)
    assert first[1] == 0
    assert again[0] == first[0]
    assert again[1] >= len(PROMPTS[6]) + 8


async def test_a_stream_takes_a_session_over_that_another_still_has(cluster: Cluster) -> None:
    async with cluster.edge() as first, cluster.edge() as second:
        second.session_id = first.session_id
        await first.open()
        await first.send(Context(0, PROMPT))
        assert await first.decide(len(PROMPT)) == full_model().continuation(PROMPT, 1)
        second.step = first.step
        assert (await second.open()).held_positions == len(PROMPT)
        reply, status = await first.failure()
        assert isinstance(error_of(reply), SessionTakenOverError)
        assert status is grpc.StatusCode.ABORTED
        await second.send(Truncate(2))
        await second.send(Context(2, (9, 8)))
        wanted = full_model().continuation([*PROMPT[:2], 9, 8], 1)
        assert await second.decide(4) == wanted
        await second.close()


async def test_a_call_without_a_valid_token_is_refused(cluster: Cluster) -> None:
    for token in (None, "tandem_wrong"):
        async with cluster.edge() as stranger:
            stranger.token = token
            stranger.connect()
            reply, status = await stranger.failure()
            assert isinstance(error_of(reply), AuthenticationError)
            assert status is grpc.StatusCode.UNAUTHENTICATED


async def test_bytes_that_are_no_message_end_their_session_alone(cluster: Cluster) -> None:
    async with cluster.edge() as rude, cluster.edge() as other:
        await rude.open()
        await other.open()
        await rude.send_bytes(b"\xff\xfe no protobuf")
        reply, status = await rude.failure()
        assert isinstance(error_of(reply), InvalidMessageError)
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        await other.send(Context(0, PROMPT))
        assert await other.decide(len(PROMPT)) == full_model().continuation(PROMPT, 1)
        await other.close()


async def test_the_proxy_refuses_a_message_beyond_the_limit(cluster: Cluster) -> None:
    async with cluster.edge() as rude:
        await rude.open()
        message = pb.EdgeMessage(step=2, context=pb.Context(token_ids=pb.TokenIds()))
        message.context.hidden_states.data = bytes(MESSAGE_BYTES)
        await rude.send_bytes(message.SerializeToString())
        assert await rude.status() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_replica_has_its_metrics(cluster: Cluster) -> None:
    pages = cluster.metrics()
    assert len(pages) == 2
    assert all("tandem_cloud_serving 1.0" in page for page in pages)


@pytest.mark.parametrize("asking", [False, True])
async def test_an_edge_that_vanishes_leaves_a_session_and_no_stream(
    cluster: Cluster, asking: bool
) -> None:
    async with cluster.edge() as edge:
        await edge.open()
        await edge.send(Context(0, PROMPT))
        await edge.decide(len(PROMPT))
        if asking:
            await edge.send(Escalate(len(PROMPT), burst=10_000))
            await edge.expect(Decision)
    async with asyncio.timeout(SECONDS):
        while any(  # noqa: ASYNC110  (another process's state)
            float(count)
            for page in await asyncio.to_thread(cluster.metrics)
            for count in re.findall(r"^tandem_cloud_streams{.*} (.+)$", page, re.MULTILINE)
        ):
            await asyncio.sleep(0.1)
    async with cluster.edge() as again:
        again.session_id, again.step = edge.session_id, edge.step
        assert (await again.open()).held_positions >= len(PROMPT)
        await again.close()


async def test_an_edge_that_reads_late_gets_every_answer_and_until_then_few_are_sent(
    cluster: Cluster,
) -> None:
    async def sent() -> float:
        pages = await asyncio.to_thread(cluster.metrics)
        counts = (re.findall(r"^tandem_cloud_sent_bytes_total{.*} (.+)$", p, re.M) for p in pages)
        return sum(float(count) for found in counts for count in found)

    before = await sent()
    async with plain_edge(cluster.address, token=cluster.token) as slow:
        await ask_and_do_not_read(slow, QUESTIONS)
        await slow.call.done_writing()
        await comes_to_rest(sent)
        assert WINDOW_BYTES <= await sent() - before < 2 * WINDOW_BYTES  # gRPC keeps some as well
        decisions = await read_to_the_end(slow)
        wanted = full_answer(PROMPT, BURST + 1) * QUESTIONS
        assert [decision.token_id for decision in decisions] == wanted
        assert await slow.status() is grpc.StatusCode.OK
    assert await sent() - before > 2 * WINDOW_BYTES


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
async def test_other_signals_do_not_end_it(cluster: Cluster, number: signal.Signals) -> None:
    cluster.process.send_signal(number)
    await asyncio.to_thread(cluster.logged, "signal ignored", number.name)
    async with cluster.engine() as engine:
        result = await engine.generate(PROMPTS[0], EXACT)
    assert ids_of(result) == full_answer(PROMPTS[0], 24)


async def test_the_proxy_says_that_it_is_healthy(cluster: Cluster) -> None:
    async with grpc.aio.insecure_channel(cluster.address) as channel:
        ask = channel.unary_unary("/ray.serve.RayServeAPIService/Healthz")
        assert b"success" in await ask(b"")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(EXACT, id="hidden"),
        pytest.param(options_for(threshold=0.3, context=ContextCodec.FLOAT32), id="exits"),
        pytest.param(options_for(Mode.CLOUD_ONLY), id="burst"),
    ],
)
async def test_a_replica_killed_in_the_middle_does_not_change_the_text(
    cluster: Cluster, options: Any
) -> None:
    prompt = PROMPTS[6]
    async with cluster.engine() as engine:
        wanted = ids_of(await engine.generate(prompt, options))
        assert len(wanted) > 12
        started = len(cluster.logged("replica started"))
        generation = engine.generation(prompt, options)
        found, killed = [], 0
        async for token in generation.run():
            found.append(token.token_id)
            if len(found) == 7:
                killed, _ = await cluster.opened(generation)
                os.kill(killed, signal.SIGKILL)
        assert found == wanted
        cloud = generation._cloud
        assert cloud is not None
        if cloud.openings > 1:  # else the answers to come had all arrived
            assert (await cluster.opened(generation, cloud.openings))[0] != killed
        else:
            assert options.mode is Mode.CLOUD_ONLY
    await asyncio.to_thread(cluster.logged, "replica started", count=started + 1)


async def test_a_proxy_killed_in_the_middle_does_not_change_the_text(cluster: Cluster) -> None:
    async with cluster.engine() as engine:
        generation = engine.generation(PROMPTS[6], EXACT)
        found = []
        async for token in generation.run():
            found.append(token.token_id)
            if len(found) == 7:
                os.kill(cluster.proxy(), signal.SIGKILL)
        assert found == full_answer(PROMPTS[6], 24)
        cloud = generation._cloud
        assert cloud is not None
        assert cloud.openings > 1
    assert not [line for line in cluster.lines if "code=INTERNAL" in line]


async def test_more_streams_than_a_replica_should_have_bring_another(tmp_path: Path) -> None:
    more = "max_replicas = 2\nstreams_per_replica = 1"
    with serving_cluster(tmp_path, replicas=1, more=more) as grows:
        async with contextlib.AsyncExitStack() as stack:
            edges = [await stack.enter_async_context(grows.edge()) for _ in range(3)]
            for edge in edges:
                await edge.open()
                await edge.send(Context(0, PROMPT))
            (first,) = pids_in(grows.logged("replica started"))
            both = pids_in(await asyncio.to_thread(grows.logged, "replica started", count=2))
            assert len(both) == 2
            async with grows.engine() as engine:
                taken = {first}
                while taken == {first}:  # the proxy hears of the new one a little later
                    generation = engine.generation(PROMPTS[0], EXACT)
                    assert [t.token_id async for t in generation.run()] == full_answer(
                        PROMPTS[0], 24
                    )
                    taken.add((await grows.opened(generation))[0])
            assert taken == both
            for edge in edges:  # nobody who was there before has noticed
                wanted = full_model().continuation(PROMPT, 1)
                assert await edge.decide(len(PROMPT)) == wanted
                await edge.close()
