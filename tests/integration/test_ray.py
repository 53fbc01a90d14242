"""The cloud as a Ray Serve application: two replicas of the tiny bundle on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cloud.auth import add_token
from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.generation import Mode
from edge.generation_run import Generation
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import AuthenticationError, InvalidMessageError, SessionTakenOverError
from shared.messages import Context, Decision, Escalate, Truncate, error_of
from tests.cloud_harness import PROMPT, Edge, full_model, tiny_bundle
from tests.cloud_process import plain_edge
from tests.edge_harness import PROMPTS, BreakableLink, edge_engine, full_answer, ids_of, options_for
from tests.fault.test_slow_readers import (
    BURST,
    ask_and_do_not_read,
    comes_to_rest,
    read_to_the_end,
)

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install '.[ray]'")

from cloud.ray_replica import WINDOW_BYTES

pytestmark = pytest.mark.ray

BUNDLE = tiny_bundle()
SECONDS = 180.0
MESSAGE_BYTES = 1 << 16
EXACT = options_for(use_exits=False, context=ContextCodec.FLOAT32)
QUESTIONS = 400  # their answers are far more than a window and what gRPC keeps for a reader
_PID = re.compile(r"pid=(\d+)")
_HELD = re.compile(r"held=(\d+)")


@dataclass
class Cluster:
    """The process that serves, and what its replicas log."""

    process: subprocess.Popen[str]
    address: str = ""
    token: str = ""
    lines: list[str] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        """Collect lines until the process ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._arrived:
                self.lines.append(line)
                self._arrived.notify_all()

    def logged(self, *words: str, count: int = 1) -> list[str]:
        """Wait for so many lines that hold all ``words``."""

        def found() -> list[str]:
            return [line for line in self.lines if all(word in line for word in words)]

        with self._arrived:
            done = self._arrived.wait_for(lambda: len(found()) >= count, SECONDS)
            assert done, "".join(self.lines)
            return found()

    async def opened(self, generation: Generation, count: int = 1) -> tuple[int, int]:
        """Which process has taken the stream (the ``count``-th) and what it held of the session."""
        assert generation._cloud is not None
        name = generation._cloud._open.session_id.hex()[:8]
        lines = await asyncio.to_thread(self.logged, "session opened", name, count=count)
        pid, held = _PID.search(lines[count - 1]), _HELD.search(lines[count - 1])
        assert pid is not None
        assert held is not None
        return int(pid[1]), int(held[1])

    def metrics(self) -> list[str]:
        """What the first two replicas count."""
        pages = []
        for line in self.logged("replica started", count=2)[:2]:
            url = line.strip().rpartition("metrics=")[2]
            with urllib.request.urlopen(url, timeout=60) as answer:
                pages.append(answer.read().decode())
        return pages

    def proxy(self) -> int:
        """The process that takes the streams: Serve's, a grandchild of ours."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                if (folder / "cmdline").read_text().startswith("ray::ProxyActor"):
                    pid = int(folder.name)
                    if _parent(_parent(pid)) == self.process.pid:
                        return pid
        raise AssertionError("no proxy runs")

    @contextlib.asynccontextmanager
    async def engine(self, address: str = "") -> AsyncIterator[EdgeEngine]:
        """An edge with a token, and patience for a replica that starts."""
        patience: dict[str, Any] = {"give_up_seconds": SECONDS, "connect_seconds": SECONDS}
        async with edge_engine(address or self.address, token=self.token, **patience) as engine:
            yield engine

    @contextlib.asynccontextmanager
    async def edge(self) -> AsyncIterator[Edge]:
        """A client that says what a test tells it to."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            yield Edge(channel, BUNDLE.manifest.fingerprint, token=self.token)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "cloud.toml").write_text(
        f"""
        engine = "ray"
        replicas = 2
        host = "0.0.0.0"
        insecure = true
        port = 0
        port_file = "port"
        bundle = {str(BUNDLE.folder)!r}
        tokens = "tokens"
        metrics = "127.0.0.1:0"
        max_message_bytes = {MESSAGE_BYTES}
        drain_seconds = 3
        debug_invariants = true
        """
    )
    token = add_token(folder / "tokens", "alice")
    command = [sys.executable, "-m", "shared.cli", "cloud", "serve"]
    process = subprocess.Popen(
        [*command, "--config", str(folder / "cloud.toml")], stderr=subprocess.PIPE, text=True
    )
    cluster = Cluster(process, token=token)
    reading = threading.Thread(target=cluster.read)
    reading.start()
    try:
        (line,) = cluster.logged("listening on")
        port = line.strip().rpartition(":")[2]
        assert (folder / "port").read_text() == f"0.0.0.0:{port}\n"
        cluster.address = f"127.0.0.1:{port}"
        replicas = _pids(cluster.logged("replica started", count=2))
        yield cluster
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(SECONDS)
        reading.join()
    assert code == 0, "".join(cluster.lines)
    assert not (folder / "port").exists()
    assert not [pid for pid in replicas if Path(f"/proc/{pid}").exists()]


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def _pids(lines: list[str]) -> set[int]:
    return {int(found[1]) for line in lines if (found := _PID.search(line))}


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
