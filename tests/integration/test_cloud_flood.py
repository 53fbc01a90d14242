"""Edges that send as much as they can: what they may cost the others is bounded, in passes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cloud import row_decoder
from cloud.auth import add_token
from cloud.batcher import Batcher, Outcome, Work
from cloud.deep_model import Chunk
from cloud.server import CloudServer
from shared import tensor_codec
from shared.clock import ManualClock
from shared.errors import InvalidMessageError
from shared.messages import (
    MAX_ROWS,
    Context,
    ContextKind,
    Decision,
    Escalate,
    Truncate,
    error_of,
)
from shared.tensor_codec import EncodedTensor, Encoding
from tests.cloud_harness import (
    PROMPT,
    WAIT_SECONDS,
    Edge,
    bystander,
    edge,
    eventually,
    full_model,
    hidden_context,
    serving,
    settings_for,
    tiny_bundle,
)

BUNDLE, FULL = tiny_bundle(), full_model()
START = len(PROMPT)
HIDDEN = ContextKind.HIDDEN_STATES
LONG = tuple(i * 7 % 250 for i in range(500))
FLOODS = 6


# ---- passes --------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Passes and their rows, and how many passes began until work of ``tenant`` was in one."""

    tenant: str
    rows: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    others_waiting: int = 0
    _asked: dict[int, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        run, forward = batcher.run, batcher.model.forward

        async def watched_run(work: Work) -> Outcome:
            if work.tenant == self.tenant:
                self._asked[id(work.cache)] = len(self.rows)
                self.others_waiting += len(batcher._queue)
            return await run(work)

        def watched_forward(chunks: Sequence[Chunk]) -> Any:
            self.rows.append(sum(len(chunk.rows) for chunk in chunks))
            for chunk in chunks:
                asked = self._asked.pop(id(chunk.cache), None)
                if asked is not None:
                    self.waits.append(len(self.rows) - asked)
            return forward(chunks)

        with monkeypatch.context() as patch:
            patch.setattr(batcher, "run", watched_run)
            patch.setattr(batcher.model, "forward", watched_forward)
            yield


async def ask_again_and_again(client: Edge) -> None:
    await client.open()
    while True:
        await client.send(Context(0, LONG))
        await client.send(Escalate(len(LONG)))
        await client.expect(Decision)
        await client.send(Truncate(0))


async def write_and_do_not_read(client: Edge) -> None:
    await client.open()
    while True:
        await client.send(Context(0, LONG))
        await client.send(Truncate(0))


async def test_a_flood_holds_a_question_up_by_the_pass_under_way_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the flood has waiting is 24 passes, whenever bob asks."""
    tokens = tmp_path / "tokens"
    alice, bob = add_token(tokens, "alice"), add_token(tokens, "bob")
    watch = Watch("bob")
    async with (
        serving(tokens=tokens, max_sessions=FLOODS + 3) as server,
        contextlib.AsyncExitStack() as stack,
        edge(server, BUNDLE, token=bob) as client,
    ):
        with watch.of(server.batcher, monkeypatch):
            floods = []
            for number in range(FLOODS + 2):
                flood = await stack.enter_async_context(edge(server, BUNDLE, token=alice))
                act = ask_again_and_again if number < FLOODS else write_and_do_not_read
                floods.append(asyncio.create_task(act(flood)))
            await eventually(lambda: len(watch.rows) >= FLOODS)
            await client.open()
            ids = list(PROMPT)
            await client.send(Context(0, PROMPT))
            for _ in range(12):
                ids += await client.decide(len(ids))
                await client.send(Context(len(ids) - 1, (ids[-1],)))
            assert not any(task.done() for task in floods)
            for task in floods:
                task.cancel()
            await asyncio.wait(floods)
    assert ids[START:] == FULL.continuation(PROMPT, 12)
    assert watch.others_waiting > 0
    # one that was put together when the question came, and its own
    assert len(watch.waits) == 12
    assert max(watch.waits) <= 2
    assert max(watch.rows) <= 128


# ---- rows ----------------------------------------------------------------------------------------


async def test_rows_beyond_a_tenants_rate_wait_for_it_and_nobody_else_does(tmp_path: Path) -> None:
    clock = ManualClock()
    tokens, quotas = tmp_path / "tokens", tmp_path / "quotas.toml"
    alice, bob = add_token(tokens, "alice"), add_token(tokens, "bob")
    quotas.write_text("[tenants.alice]\nrows_per_second = 10\nrow_burst = 64\n")
    async with (
        CloudServer(settings_for(BUNDLE, tokens=tokens, quotas=quotas), clock=clock) as server,
        edge(server, BUNDLE, token=alice) as greedy,
    ):
        await greedy.open()
        (session,) = server.store._sessions.values()
        for start in range(0, 240, 60):
            await greedy.send(Context(start, LONG[start : start + 60]))
        await greedy.send(Escalate(240))
        rate = server.service._rates.of("alice")
        async with bystander(server, BUNDLE, FULL, token=bob):
            # 64 at once, and the message that they end in
            await eventually(lambda: session.held == 120)
        assert session.held == 120
        assert rate.seconds_to_rows() == pytest.approx(5.7)
        clock.advance(5.8)
        await eventually(lambda: session.held == 180)
        assert rate.seconds_to_rows() == pytest.approx(5.9)
        clock.advance(3600.0)
        # late, and nothing is lost or refused
        assert (await greedy.expect(Decision)).token_id == FULL.continuation(LONG[:240], 1)[0]
        await greedy.close()


async def test_unpacking_a_flood_of_hidden_states_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The threads that unpack are stuck, all of them; the event loop and the model are not."""
    let_go, stuck = threading.Event(), itertools.count(1)
    seen = 0
    decode = tensor_codec.decode

    def held_up(*args: Any, **options: Any) -> Any:
        nonlocal seen
        if threading.current_thread() is not threading.main_thread():
            seen = next(stuck)
            assert let_go.wait(WAIT_SECONDS)
        return decode(*args, **options)

    monkeypatch.setattr(row_decoder, "decode", held_up)
    hidden, logits = FULL.run(LONG)
    few, few_logits = FULL.run(PROMPT)
    async with serving() as server, contextlib.AsyncExitStack() as stack:
        floods = [
            await stack.enter_async_context(edge(server, BUNDLE, kind=HIDDEN))
            for _ in range(FLOODS)
        ]
        for flood in floods:
            await flood.open()
            await flood.send(hidden_context(hidden, 0))
            await flood.send(Escalate(len(LONG)))
        await eventually(lambda: seen == row_decoder._THREADS)
        async with bystander(server, BUNDLE, FULL), edge(server, BUNDLE, kind=HIDDEN) as other:
            await other.open()
            await other.send(hidden_context(few, 0))
            assert await other.decide(START) == [int(few_logits[-1].argmax())]
            await other.close()
        assert seen == row_decoder._THREADS
        let_go.set()
        for flood in floods:
            assert (await flood.expect(Decision)).token_id == logits[-1].argmax()
            await flood.close()


@pytest.mark.parametrize("kind", list(ContextKind))
async def test_a_message_of_too_many_rows_ends_its_session_alone(kind: ContextKind) -> None:
    rows = MAX_ROWS + 1
    if kind is HIDDEN:
        width = BUNDLE.manifest.architecture.hidden_size
        payload = np.zeros((rows, width), "<f2").tobytes()
        flood = Context(0, EncodedTensor(rows, width, Encoding.FLOAT16, False, payload))
    else:
        flood = Context(0, (1,) * rows)
    async with (
        serving() as server,
        edge(server, BUNDLE, kind=kind) as rude,
        bystander(server, BUNDLE, FULL),
    ):
        await rude.open()
        await rude.send(flood)
        reply, status = await rude.failure()
        assert isinstance(error_of(reply), InvalidMessageError)
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        assert str(MAX_ROWS) in reply.message
        assert len(server.store) == 1  # the bystander's
