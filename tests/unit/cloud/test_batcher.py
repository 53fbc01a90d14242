"""The batcher: which work shares a pass, in which order, and what a fault or a leaver reaches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cloud.batcher import Batcher, Outcome, Work
from cloud.deep_model import DeepModel
from shared.errors import CloudInternalError
from shared.sampling import GREEDY, Sampling
from tests.cloud_harness import PROMPT, closed_gate, eventually, failing, full_model, tiny_bundle

FULL = full_model()
MODEL = DeepModel.load(tiny_bundle())


def work(
    ids: Sequence[int] = PROMPT,
    decide: tuple[int, ...] | None = None,
    *,
    urgent: bool = True,
    sampling: Sampling = GREEDY,
    tenant: str = "alice",
) -> Work:
    """A new session's ids; decides the token after them unless told otherwise."""
    asked = (len(ids),) if decide is None else decide
    rows = np.array(ids, np.int32)
    return Work(MODEL.new_cache(0), 0, rows, asked, None, sampling, urgent, tenant)


def token_of(outcome: Outcome) -> int:
    (choice,) = outcome.choices
    return choice.token_id


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows of each chunk, pass by pass."""
    seen: list[list[int]] = []
    forward = MODEL.forward

    def watched(chunks: Any) -> Any:
        seen.append([len(chunk.rows) for chunk in chunks])
        return forward(chunks)

    monkeypatch.setattr(MODEL, "forward", watched)
    return seen


async def test_work_decides_each_position_that_is_asked_for() -> None:
    logits = FULL.run(PROMPT)[1]
    async with Batcher(MODEL, threads=1) as batcher:
        outcome = await batcher.run(work(decide=(2, 3, 6)))
    assert [choice.token_id for choice in outcome.choices] == [
        int(logits[row].argmax()) for row in (1, 2, 5)
    ]
    assert all(choice.logprob <= 0 for choice in outcome.choices)
    assert outcome.seconds > 0


async def test_a_known_final_state_decides_without_a_pass(passes: list[list[int]]) -> None:
    async with Batcher(MODEL, threads=1) as batcher:
        first = work(decide=())
        state = (await batcher.run(first)).final_state
        again = Work(first.cache, 6, np.empty(0, np.int32), (6,), state, GREEDY, True, "alice")
        assert [token_of(await batcher.run(again))] == FULL.continuation(PROMPT, 1)
    assert passes == [[6]]


async def test_what_waits_shares_a_pass_up_to_its_rows(passes: list[list[int]]) -> None:
    texts = [PROMPT[:n] for n in (6, 3, 5, 4)]
    async with Batcher(MODEL, max_rows=9, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            first = asyncio.create_task(batcher.run(work((1,))))
            await gate.entered.wait()
            rest = [asyncio.create_task(batcher.run(work(text))) for text in texts]
            await eventually(lambda: len(batcher._queue) == 4)
        outcomes = await asyncio.gather(*rest)
        await first
    assert passes == [[1], [6, 3], [5, 4]]
    for text, outcome in zip(texts, outcomes, strict=True):
        assert [token_of(outcome)] == FULL.continuation(text, 1)


async def test_catch_up_waits_for_urgent_work_and_may_become_urgent(
    passes: list[list[int]],
) -> None:
    async with Batcher(MODEL, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            tasks = [asyncio.create_task(batcher.run(work((1,))))]
            await gate.entered.wait()
            late, raised = work(PROMPT[:2], (), urgent=False), work(PROMPT[:3], (), urgent=False)
            for waiting in (late, raised, work(PROMPT[:4])):
                tasks.append(asyncio.create_task(batcher.run(waiting)))
            await eventually(lambda: len(batcher._queue) == 3)
            raised.urgent = True
        await asyncio.gather(*tasks)
    assert passes == [[1], [3, 4], [2]]


async def test_a_fault_reaches_the_work_that_causes_it() -> None:
    async with Batcher(MODEL, threads=1) as batcher:
        with failing(MODEL, RuntimeError("bad rows"), rows=3), closed_gate(MODEL) as gate:
            first = asyncio.create_task(batcher.run(work((1,))))
            await gate.entered.wait()
            texts = [PROMPT[:n] for n in (2, 3, 4)]
            rest = [asyncio.create_task(batcher.run(work(text))) for text in texts]
            await eventually(lambda: len(batcher._queue) == 3)
            gate.open()
            good, bad, fine = await asyncio.gather(*rest, return_exceptions=True)
            await first
        assert isinstance(bad, RuntimeError)
        for outcome, text in ((good, texts[0]), (fine, texts[2])):
            assert isinstance(outcome, Outcome)
            assert [token_of(outcome)] == FULL.continuation(text, 1)
        assert [token_of(await batcher.run(work()))] == FULL.continuation(PROMPT, 1)


async def test_work_that_is_cancelled_in_the_queue_never_runs(passes: list[list[int]]) -> None:
    async with Batcher(MODEL, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            first = asyncio.create_task(batcher.run(work((1,))))
            await gate.entered.wait()
            leaver = asyncio.create_task(batcher.run(work()))
            await eventually(lambda: len(batcher._queue) == 1)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
        await first
        assert [token_of(await batcher.run(work(PROMPT[:2])))] == FULL.continuation(PROMPT[:2], 1)
    assert passes == [[1], [2]]


async def test_work_that_is_cancelled_in_its_pass_ends_with_the_pass() -> None:
    leaving = work()
    async with Batcher(MODEL, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            leaver = asyncio.create_task(batcher.run(leaving))
            await gate.entered.wait()
            for _ in range(2):  # however often it is cancelled
                leaver.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert not leaver.done()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert leaving.cache.length == len(PROMPT)  # the pass is over, its cache is free


async def test_the_end_of_the_batcher_cancels_what_waits() -> None:
    async with Batcher(MODEL, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            running = asyncio.create_task(batcher.run(work((1,))))
            await gate.entered.wait()
            waiting = asyncio.create_task(batcher.run(work()))
            await eventually(lambda: len(batcher._queue) == 1)
            ending = asyncio.create_task(batcher.__aexit__(None, None, None))
            await asyncio.sleep(0)
        await ending
        for task in (running, waiting):
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_a_batcher_that_fails_leaves_nobody_waiting() -> None:
    """What was in the pass, what waited for the next, and what comes later."""
    async with Batcher(MODEL, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            first = asyncio.create_task(batcher.run(work()))
            await gate.entered.wait()
            second = asyncio.create_task(batcher.run(work()))
            await eventually(lambda: len(batcher._queue) == 1)
            batcher._metrics = None  # type: ignore[assignment]
        for waiting in (first, second):
            with pytest.raises(CloudInternalError):
                await waiting
        assert batcher.failed.is_set()
        with pytest.raises(CloudInternalError):
            await batcher.run(work())
        with pytest.raises(RuntimeError):
            batcher.check()


async def test_sampled_tokens_do_not_depend_on_company() -> None:
    sampling = Sampling(1.3, 0.9, seed=5)
    async with Batcher(MODEL, threads=1) as batcher:
        alone = token_of(await batcher.run(work(sampling=sampling)))
        together = await asyncio.gather(
            batcher.run(work((9, 8, 7))), batcher.run(work(sampling=sampling))
        )
    assert token_of(together[1]) == alone
    assert [alone] == FULL.continuation(PROMPT, 1, sampling)


def test_threads_are_the_workers_own() -> None:
    async def used() -> int:
        async with Batcher(MODEL, threads=2) as batcher:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(batcher._executor, torch.get_num_threads)

    before = torch.get_num_threads()
    assert asyncio.run(used()) == 2
    assert torch.get_num_threads() == before


async def test_a_tenant_with_a_hundred_sessions_lets_a_single_one_in(
    passes: list[list[int]],
) -> None:
    """Alice's sessions bring a row each, and bob's two: each pass has room for both tenants."""
    async with Batcher(MODEL, max_rows=4, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            tasks = [asyncio.create_task(batcher.run(work((1,))))]
            await gate.entered.wait()
            for waiting in [work((7,)) for _ in range(100)] + [
                work((9, 9), tenant="bob") for _ in range(5)
            ]:
                tasks.append(asyncio.create_task(batcher.run(waiting)))
            await eventually(lambda: len(batcher._queue) == 105)
        await asyncio.gather(*tasks)
    assert all(sorted(rows) == [1, 1, 2] for rows in passes[1:6])
    assert all(rows == [1, 1, 1, 1] for rows in passes[6:-1])
    assert sum(map(sum, passes)) == 1 + 100 + 10


async def test_work_that_does_not_fit_goes_on_in_the_next_passes(
    passes: list[list[int]],
) -> None:
    ids = tuple(i * 7 % 250 for i in range(10))
    logits = FULL.run(ids)[1]
    async with Batcher(MODEL, max_rows=4, threads=1) as batcher:
        outcome = await batcher.run(work(ids, decide=(1, 4, 5, 10)))
        assert passes == [[4], [4], [2]]
        assert [choice.token_id for choice in outcome.choices] == [
            int(logits[row].argmax()) for row in (0, 3, 4, 9)
        ]


async def test_work_that_is_cancelled_between_its_pieces_leaves_the_rest() -> None:
    leaving = work(tuple(range(1, 11)))
    async with Batcher(MODEL, max_rows=4, threads=1) as batcher:
        with closed_gate(MODEL) as gate:
            leaver = asyncio.create_task(batcher.run(leaving))
            await gate.entered.wait()
            leaver.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert leaving.cache.length == 4
        assert not len(batcher._queue)
        assert [token_of(await batcher.run(work()))] == FULL.continuation(PROMPT, 1)


async def test_sessions_that_go_on_stay_in_the_same_passes(passes: list[list[int]]) -> None:
    """Both bring their next token only when they have heard of the one before."""
    now = itertools.count(0, 600)  # by this clock passes take so long that a pause is long, too

    async def burst(batcher: Batcher, first: int) -> list[int]:
        tokens, cache = [first], MODEL.new_cache(0)
        for start in range(5):
            piece = np.array(tokens[-1:], np.int32)
            asked = (start + 1,)
            waiting = Work(cache, start, piece, asked, None, GREEDY, True, "alice", start < 4)
            tokens.append(token_of(await batcher.run(waiting)))
        return tokens[1:]

    async with Batcher(MODEL, threads=1, clock=lambda: float(next(now))) as batcher:
        with closed_gate(MODEL) as gate:
            running = asyncio.create_task(batcher.run(work((1,))))
            await gate.entered.wait()
            bursts = [asyncio.create_task(burst(batcher, first)) for first in (7, 9)]
            await eventually(lambda: len(batcher._queue) == 2)
        await running
        assert await asyncio.gather(*bursts) == [FULL.continuation((t,), 5) for t in (7, 9)]
    assert passes == [[1], *[[1, 1]] * 5]


async def test_a_pass_in_which_the_machine_slept_holds_nobody_up(passes: list[list[int]]) -> None:
    now = itertools.count(0, 100_000)  # a tenth of it would be hours
    async with asyncio.timeout(60), Batcher(MODEL, threads=1, clock=lambda: float(next(now))) as b:
        leaving = work((7,))
        leaving.continues = True
        await b.run(leaving)
        assert [token_of(await b.run(work()))] == FULL.continuation(PROMPT, 1)
    assert passes == [[1], [6]]


async def test_a_session_that_does_not_come_back_holds_nobody_up(passes: list[list[int]]) -> None:
    async with Batcher(MODEL, threads=1) as batcher:
        leaving = work((7,))
        leaving.continues = True
        await batcher.run(leaving)
        assert [token_of(await batcher.run(work()))] == FULL.continuation(PROMPT, 1)
    assert passes == [[1], [6]]
