"""Whatever shares its passes, a session gets what it would get alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.batcher import Batcher, Outcome, Work
from cloud.deep_model import DeepModel
from shared.sampling import Choice, Sampling
from tests.cloud_harness import closed_gate, eventually, full_model, tiny_bundle

FULL = full_model()
MODEL = DeepModel.load(tiny_bundle())
WHOLE = 1 << 20  # a pass that everything fits into
# attention over a past is another kernel than attention without one, so a cut shows in last digits
TOLERANCE = 5e-4


@dataclass(frozen=True)
class Talk:
    """One session: its tokens, whether it sends hidden states, and after which tokens its work
    ends: a prefill, single tokens, runs of drafts; what is decided of each."""

    tenant: str
    ids: tuple[int, ...]
    by_hidden: bool
    ends: tuple[int, ...]
    decided: tuple[bool, ...]
    urgent: tuple[bool, ...]
    sampling: Sampling

    def works(self, model: DeepModel) -> list[Work]:
        cache = model.new_cache(model.cut if self.by_hidden else 0)
        rows = FULL.run(self.ids)[0] if self.by_hidden else np.array(self.ids, np.int32)
        works, start = [], 0
        for number, end in enumerate(sorted({*self.ends, len(self.ids)})):
            asked = self.decided[number % len(self.decided)]
            decide = tuple(range(max(start, 1) + (start > 0), end + 1)) if asked else ()
            urgent = self.urgent[number % len(self.urgent)]
            works.append(
                Work(
                    cache,
                    start,
                    rows[start:end],
                    decide,
                    None,
                    self.sampling,
                    urgent,
                    self.tenant,
                )
            )
            start = end
        return works


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    ids = draw(st.lists(st.integers(2, 249), min_size=1, max_size=40))
    return Talk(
        draw(st.sampled_from(["alice", "bob", "carol"])),
        tuple(ids),
        draw(st.booleans()),
        tuple(draw(st.lists(st.integers(1, len(ids)), max_size=6))),
        tuple(draw(st.lists(st.booleans(), min_size=1, max_size=3))),
        tuple(draw(st.lists(st.booleans(), min_size=1, max_size=3))),
        Sampling(draw(st.sampled_from([0.0, 0.8])), 0.95, draw(st.integers(0, 99))),
    )


async def say(batcher: Batcher, talk: Talk) -> list[Outcome]:
    """One piece of work after the other, as a session has it."""
    return [await batcher.run(work) for work in talk.works(batcher.model)]


async def alone(everybody: list[Talk]) -> list[list[Outcome]]:
    answers = []
    for talk in everybody:
        async with Batcher(MODEL, max_rows=WHOLE, threads=1) as batcher:
            answers.append(await say(batcher, talk))
    return answers


async def together(
    everybody: list[Talk], max_rows: int, model: DeepModel = MODEL
) -> list[list[Outcome]]:
    async with Batcher(model, max_rows=max_rows, threads=1) as batcher:
        with closed_gate(model) as gate:
            stopper = Work(
                model.new_cache(0), 0, np.array([1], np.int32), (), None, Sampling(), True, "zoe"
            )
            stopping = asyncio.create_task(batcher.run(stopper))
            await gate.entered.wait()
            tasks = [asyncio.create_task(say(batcher, talk)) for talk in everybody]
            await eventually(lambda: len(batcher._queue) == len(everybody))
        await stopping
        return list(await asyncio.gather(*tasks))


def state(outcome: Outcome) -> torch.Tensor:
    assert outcome.final_state is not None
    return outcome.final_state


@settings(max_examples=60, deadline=None, derandomize=True)
@given(everybody=st.lists(talks(), min_size=2, max_size=9))
def test_packed_work_is_to_the_bit_what_it_is_alone(everybody: list[Talk]) -> None:
    for one, other in zip(
        asyncio.run(alone(everybody)), asyncio.run(together(everybody, WHOLE)), strict=True
    ):
        assert [o.choices for o in one] == [o.choices for o in other]
        assert all(torch.equal(state(a), state(b)) for a, b in zip(one, other, strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(everybody=st.lists(talks(), min_size=2, max_size=9), max_rows=st.integers(1, 24))
def test_work_that_is_cut_to_fit_decides_the_same(everybody: list[Talk], max_rows: int) -> None:
    for one, other in zip(
        asyncio.run(alone(everybody)), asyncio.run(together(everybody, max_rows)), strict=True
    ):
        for a, b in zip(one, other, strict=True):
            assert [c.token_id for c in a.choices] == [c.token_id for c in b.choices]
            torch.testing.assert_close(state(a), state(b), atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(_logprobs(a.choices), _logprobs(b.choices), atol=TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(everybody=st.lists(talks(), min_size=2, max_size=9), max_rows=st.integers(1, 24))
def test_on_a_gpu_packed_and_cut_work_decides_what_it_does_alone_on_the_cpu(
    everybody: list[Talk], max_rows: int
) -> None:
    on_gpu = DeepModel.load(tiny_bundle(), torch.device("cuda"), torch.float32)
    for one, other in zip(
        asyncio.run(alone(everybody)),
        asyncio.run(together(everybody, max_rows, on_gpu)),
        strict=True,
    ):
        for a, b in zip(one, other, strict=True):
            assert [c.token_id for c in a.choices] == [c.token_id for c in b.choices]
            torch.testing.assert_close(state(a), state(b).cpu(), atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(_logprobs(a.choices), _logprobs(b.choices), atol=TOLERANCE)


def _logprobs(choices: tuple[Choice, ...]) -> list[float]:
    return [choice.logprob for choice in choices]
