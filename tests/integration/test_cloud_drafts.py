"""What the cloud makes of an edge's guesses: agreement, correction, bursts after one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.server import CloudServer
from shared.errors import BudgetExceededError
from shared.messages import Ahead, Context, ContextKind, Decision, ErrorCode, Escalate, Truncate
from shared.tensor_codec import Encoding, encode
from tests.cloud_harness import (
    Edge,
    closed_gate,
    edge,
    eventually,
    full_model,
    serving,
    tiny_bundle,
)

BUNDLE, FULL = tiny_bundle(), full_model()
PROMPT = (3, 14, 15, 92, 65, 35, 89)
START = len(PROMPT)
RIGHT = FULL.continuation(PROMPT, 12)
WRONG = (RIGHT[0] + 1) % 250


async def opened(client: Edge) -> None:
    await client.open()
    await client.send(Context(0, PROMPT))


async def arrived(server: CloudServer, held: int) -> None:
    """Wait until the cloud holds so much context of its only session."""
    (session,) = server.store._sessions.values()
    await eventually(lambda: session.held == held)


async def test_right_guesses_are_answered_and_gone_on_from() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        for index, token in enumerate(RIGHT):
            await client.send(Escalate(START + index, burst=5, guess=token))
            await client.send(Context(START + index, (token,)))
        answers = [await client.expect(Decision) for _ in RIGHT]
        assert [a.token_id for a in answers] == RIGHT  # and nothing in between: no burst
        assert await client.decide(START + len(RIGHT)) == FULL.continuation((*PROMPT, *RIGHT), 1)
        await client.close()


async def test_after_a_correction_nothing_counts_before_the_truncation() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, guess=WRONG))
        await client.send(Context(START, (WRONG, 77)))
        await client.send(Escalate(START + 2, guess=5))
        assert (await client.expect(Decision)).token_id == RIGHT[0]
        # what would be gaps and errors at any other time, is about a text that is no more
        await client.send(Context(START + 9, (1, 2)))
        await client.send(Escalate(START + 11))
        await client.send(Truncate(START))
        await client.send(Context(START, (RIGHT[0],)))
        assert await client.decide(START + 1) == RIGHT[1:2]
        await client.close()


async def test_questions_behind_a_correction_are_not_answered() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        with closed_gate(server.batcher.model) as gate:
            await opened(client)
            await client.send(Escalate(2))
            await gate.entered.wait()
            await client.send(Escalate(START, guess=WRONG))
            await client.send(Context(START, (WRONG, 77)))
            await client.send(Escalate(START + 1, guess=77))
            await client.send(Escalate(START + 2, guess=78))
        positions = [(await client.expect(Decision)).position for _ in range(2)]
        assert positions == [2, START]
        await client.send(Truncate(START))
        await client.send(Context(START, tuple(RIGHT[:3])))
        assert await client.decide(START + 3) == RIGHT[3:4]
        await client.close()


@pytest.mark.parametrize("stale", [(), (WRONG,), (WRONG, 77, 78)])
async def test_a_burst_follows_a_correction_and_replaces_what_was_drafted(
    stale: tuple[int, ...],
) -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        with closed_gate(server.batcher.model) as gate:
            await opened(client)
            await client.send(Escalate(2))
            await gate.entered.wait()
            if stale:
                await client.send(Context(START, stale))
            await client.send(Escalate(START, burst=4, guess=WRONG))
        await client.expect(Decision)
        answers = [await client.expect(Decision) for _ in range(5)]
        assert [a.token_id for a in answers] == RIGHT[:5]
        # the edge goes on behind the burst, of whose last token the cloud holds no context
        await client.send(Truncate(START + 4))
        await client.send(Context(START + 4, tuple(RIGHT[4:6])))
        assert await client.decide(START + 6) == RIGHT[6:7]
        await client.close()


async def test_a_truncation_ends_the_burst_of_a_correction() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, burst=400, guess=WRONG))
        assert (await client.expect(Decision)).token_id == RIGHT[0]
        await client.send(Truncate(START))
        await client.send(Context(START, (9, 44)))
        await client.send(Escalate(START + 2))
        last = client.step
        while (message := await client.receive()).step < last:
            pass
        assert isinstance(message.body, Decision)
        assert [message.body.token_id] == FULL.continuation((*PROMPT, 9, 44), 1)


async def test_a_reconnect_right_after_a_correction_gets_it_again() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Context(START, (WRONG, 77)))
        await client.send(Escalate(START, burst=3, guess=WRONG))
        first = [(await client.expect(Decision)).token_id for _ in range(4)]
        await client.open()
        await client.send(Escalate(START, burst=3, guess=WRONG))
        assert [(await client.expect(Decision)).token_id for _ in range(4)] == first == RIGHT[:4]


async def test_a_run_of_questions_costs_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        passes: list[int] = []
        forward = server.batcher.model.forward

        def counted(chunks: Any) -> Any:
            passes.append(len(chunks))
            return forward(chunks)

        monkeypatch.setattr(server.batcher.model, "forward", counted)
        with closed_gate(server.batcher.model) as gate:
            await opened(client)
            await client.send(Escalate(2))
            await gate.entered.wait()
            for index, token in enumerate(RIGHT):
                await client.send(Escalate(START + index, guess=token))
                await client.send(Context(START + index, (token,)))
            await arrived(server, START + len(RIGHT))
        answers = [await client.expect(Decision) for _ in range(1 + len(RIGHT))]
        assert [a.token_id for a in answers[1:]] == RIGHT
        assert passes == [1, 1]  # the first question, and all the others


async def test_a_burst_needs_token_ids_whatever_was_guessed() -> None:
    states, _ = FULL.run(PROMPT)
    async with (
        serving() as server,
        edge(server, BUNDLE, kind=ContextKind.HIDDEN_STATES) as client,
    ):
        await client.open()
        await client.send(Context(0, encode(states, Encoding.FLOAT32)))
        await client.send(Escalate(START, burst=1, guess=3))
        reply, _ = await client.failure()
        assert reply.code is ErrorCode.INVALID_MESSAGE


async def said_ahead(client: Edge, count: int) -> list[Ahead]:
    return [await client.expect(Ahead) for _ in range(count)]


async def decided(client: Edge, position: int) -> int:
    """The answer at ``position``, what was said unasked before it left aside."""
    await client.send(Escalate(position))
    while not isinstance(body := (await client.receive()).body, Decision):
        assert isinstance(body, Ahead)
    assert body.position == position
    return body.token_id


async def test_while_nobody_asks_the_cloud_goes_on() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, guess=RIGHT[0], lookahead=3))
        assert (await client.expect(Decision)).token_id == RIGHT[0]
        ahead = await said_ahead(client, 3)
        assert [a.decision.position for a in ahead] == [START + 1, START + 2, START + 3]
        assert [a.decision.token_id for a in ahead] == RIGHT[1:4]
        assert {a.base for a in ahead} == {START}
        # it knows more of the text, and goes on as far from there
        await client.send(Context(START, tuple(RIGHT[:2])))
        ahead = await said_ahead(client, 2)
        assert [a.decision.token_id for a in ahead] == RIGHT[4:6]
        assert {a.base for a in ahead} == {START + 2}
        # a question about what it knows is answered among it
        await client.send(Context(START + 2, (RIGHT[2],)))
        assert await decided(client, START + 3) == RIGHT[3]
        server.store.check()


async def test_the_clouds_own_words_give_way_to_the_edges() -> None:
    other = (*PROMPT, RIGHT[0], (RIGHT[1] + 1) % 250)
    truth = FULL.continuation(other, 3)
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, lookahead=4))
        await client.expect(Decision)
        await said_ahead(client, 4)
        await client.send(Context(START, other[START:]))
        ahead = await said_ahead(client, 3)
        assert [a.decision.position - START for a in ahead] == [2, 3, 4]
        assert [a.decision.token_id for a in ahead] == truth
        assert {a.base for a in ahead} == {START + 2}
        server.store.check()


@pytest.mark.parametrize("stale", [(), (WRONG,), (WRONG, 77, 78)])
async def test_it_looks_ahead_of_a_correction(stale: tuple[int, ...]) -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, guess=WRONG, lookahead=2))
        if stale:
            await client.send(Context(START, stale))
        assert (await client.expect(Decision)).token_id == RIGHT[0]
        assert [a.decision.token_id for a in await said_ahead(client, 2)] == RIGHT[1:3]
        await client.send(Truncate(START))
        await client.send(Context(START, tuple(RIGHT[:1])))
        assert (await said_ahead(client, 1))[0].decision.token_id == RIGHT[3]
        await client.send(Context(START + 1, tuple(RIGHT[1:4])))
        assert await decided(client, START + 4) == RIGHT[4]


async def test_what_was_said_ahead_does_not_outlive_the_stream() -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, lookahead=8))
        await client.expect(Decision)
        await said_ahead(client, 4)
        assert (await client.open()).held_positions == START
        await client.send(Context(START, tuple(RIGHT[:1])))
        assert await decided(client, START + 1) == RIGHT[1]
        server.store.check()


async def test_the_cloud_looks_no_further_than_the_stop_token() -> None:
    stop = BUNDLE.manifest.tokenizer.stop_token_ids[0]
    prompt = next(
        (start, 3, 5) for start in range(200) if stop in FULL.continuation((start, 3, 5), 12)[1:]
    )
    text = FULL.continuation(prompt, 12)
    text = text[: text.index(stop) + 1]
    async with serving() as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, prompt))
        await client.send(Escalate(3, lookahead=64))
        await client.expect(Decision)
        ahead = await said_ahead(client, len(text) - 1)
        assert [a.decision.token_id for a in ahead] == text[1:]
        # and stands still: the next word is an answer
        await client.send(Escalate(3))
        await client.expect(Decision)


async def test_a_lookahead_needs_token_ids() -> None:
    states, _ = FULL.run(PROMPT)
    async with (
        serving() as server,
        edge(server, BUNDLE, kind=ContextKind.HIDDEN_STATES) as client,
    ):
        await client.open()
        await client.send(Context(0, encode(states, Encoding.FLOAT32)))
        await client.send(Escalate(START, lookahead=1))
        reply, _ = await client.failure()
        assert reply.code is ErrorCode.INVALID_MESSAGE


async def knows_ahead(client: Edge, count: int) -> None:
    """The cloud has said so many words beyond the first of the answer, which the edge confirms."""
    await opened(client)
    await client.send(Escalate(START, guess=RIGHT[0], lookahead=count))
    await client.expect(Decision)
    await said_ahead(client, count)
    await client.send(Context(START, (RIGHT[0],)))
    await said_ahead(client, 1)


@pytest.mark.parametrize("burst", [2, 6])
async def test_a_burst_goes_over_what_was_said_ahead(burst: int) -> None:
    async with serving() as server, edge(server, BUNDLE) as client:
        await knows_ahead(client, 4)
        await client.send(Escalate(START + 1, burst=burst, guess=(RIGHT[1] + 1) % 250))
        answers = [await client.expect(Decision) for _ in range(burst + 1)]
        assert [a.token_id for a in answers] == RIGHT[1 : burst + 2]
        # the edge goes on behind it
        await client.send(Truncate(START + burst + 1))
        await client.send(Context(START + burst + 1, (RIGHT[burst + 1],)))
        assert await client.decide(START + burst + 2) == RIGHT[burst + 2 : burst + 3]
        server.store.check()


async def test_context_behind_a_question_that_is_corrected_is_not_taken() -> None:
    other = (RIGHT[1] + 1) % 250
    async with serving() as server, edge(server, BUNDLE) as client:
        await knows_ahead(client, 4)
        await client.send(Context(START + 1, (other, 9)))
        await eventually_ahead(client, START + 3)
        with closed_gate(server.batcher.model) as gate:
            (session,) = server.store._sessions.values()
            del session.decisions[START + 1]  # as if it had never been said
            await client.send(Escalate(START + 1, guess=other, lookahead=4))
            await gate.entered.wait()
            await client.send(Context(START + 3, (5,)))
        while not isinstance(body := (await client.receive()).body, Decision):
            assert isinstance(body, Ahead)
        assert body.token_id == RIGHT[1]
        await client.send(Truncate(START + 1))
        await client.send(Context(START + 1, tuple(RIGHT[1:3])))
        assert await decided(client, START + 3) == RIGHT[3]
        server.store.check()


async def eventually_ahead(client: Edge, position: int) -> None:
    while (body := await client.expect(Ahead)).decision.position < position:
        pass
    assert body.decision.position == position


async def test_what_waits_behind_looking_ahead_makes_it_urgent() -> None:
    async with (
        serving() as server,
        edge(server, BUNDLE) as client,
        edge(server, BUNDLE) as other,
    ):
        await knows_ahead(client, 4)
        await opened(other)
        with closed_gate(server.batcher.model) as gate:
            await other.send(Escalate(START))
            await gate.entered.wait()
            await client.send(Context(START + 1, (RIGHT[1],)))  # the cloud may go on, and queues
            queue = server.batcher._queue
            await eventually(lambda: len(queue) == 1)
            await client.send(Context(START + 2, (RIGHT[2],)))
            await eventually(lambda: all(w.urgent for ws in queue._waiting.values() for w in ws))


async def test_looking_ahead_takes_only_what_the_quota_has_left(tmp_path: Path) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text("[default]\nescalations_per_second = 0.01\nescalation_burst = 4\n")
    async with serving(quotas=quotas) as server, edge(server, BUNDLE) as client:
        await opened(client)
        await client.send(Escalate(START, lookahead=16))
        await client.expect(Decision)
        await said_ahead(client, 3)
        await client.send(Escalate(START))
        reply, _ = await client.failure()  # and not an Ahead
        assert reply.code is ErrorCode.BUDGET_EXCEEDED


async def test_a_cloud_that_is_full_does_not_look_ahead_and_answers_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise BudgetExceededError("no room for words that nobody asked for")

    async with serving() as server, edge(server, BUNDLE) as client:
        monkeypatch.setattr(server.store, "append_own", full)
        await opened(client)
        await client.send(Escalate(START, lookahead=8))
        await client.expect(Decision)
        await client.send(Context(START, tuple(RIGHT[:1])))
        assert await client.decide(START + 1) == RIGHT[1:2]
