"""Whatever schedule, link and luck: the text is the policy's, and what was shown never changes.

The policy is written down once more here, without sessions, drafts or time, and both schedules must
say what it says.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloud.server import CloudServer
from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from edge.plan import BURST_UNLIMITED
from shared.sampling import Sampling
from tests.cloud_harness import full_model, settings_for, tiny_bundle
from tests.edge_harness import PROMPTS, BreakableLink, Reckless, edge_engine, full_answer, ids_of
from tests.exit_decisions import exit_decision

MAX_TOKENS = 20
STOP = tiny_bundle().manifest.tokenizer.stop_token_ids


@dataclass(frozen=True)
class Case:
    """What hypothesis varies."""

    prompt: int
    threshold: float
    burst: int
    verified: bool
    lookahead: int | None
    temperature: float
    seed: int
    tokens: bool
    window: int
    credits: int
    reckless: bool
    delays: tuple[float, ...]
    cuts: tuple[int, ...]
    replicas: int = 1

    def that_can_be(self) -> Case:
        """Without what needs token ids, or no burst."""
        burst = self.burst if self.tokens else 0
        return replace(
            self, burst=burst, lookahead=self.lookahead if self.tokens and not burst else None
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, 0.95 if self.temperature else 1.0, self.seed)

    @property
    def options(self) -> GenerationOptions:
        return (Reckless if self.reckless else GenerationOptions)(
            Mode.COLLABORATIVE,
            threshold=self.threshold,
            max_tokens=MAX_TOKENS,
            sampling=self.sampling,
            context=ContextCodec.TOKENS if self.tokens else ContextCodec.FLOAT32,
            window=self.window,
            burst=self.burst,
            verified=self.verified,
            lookahead=self.lookahead,
        )


CASES = st.builds(
    Case,
    prompt=st.integers(0, len(PROMPTS) - 1),
    threshold=st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0]),
    burst=st.sampled_from([0, 0, 1, 3, BURST_UNLIMITED]),
    verified=st.booleans(),
    lookahead=st.sampled_from([None, 0, 1, 2, 5, 16]),
    temperature=st.sampled_from([0.0, 0.0, 0.7]),
    seed=st.integers(0, 2**64 - 1),
    tokens=st.booleans(),
    window=st.integers(1, 12),
    credits=st.sampled_from([1, 2, 5, 64]),
    reckless=st.booleans(),
    delays=st.lists(st.sampled_from([0.0, 0.0005, 0.003, 0.01]), min_size=1, max_size=6).map(tuple),
    cuts=st.lists(st.integers(6, 60), max_size=3, unique=True).map(tuple),
    replicas=st.sampled_from([1, 2]),
).map(lambda case: case.that_can_be())


def policy_says(case: Case) -> list[int]:
    """The text by its definition, every token from nothing but the text before it."""
    text, burst_left = list(PROMPTS[case.prompt]), 0
    end = len(text) + MAX_TOKENS
    while len(text) < end and (len(text) == len(PROMPTS[case.prompt]) or text[-1] not in STOP):
        full = full_model().continuation(text, 1, case.sampling)[0]
        if burst_left or case.verified:
            burst_left = max(0, burst_left - 1)
            text.append(full)
            continue
        guess, accepted = exit_decision(text, case.threshold, case.sampling)
        text.append(guess if accepted else full)
        if not accepted and guess != full:
            burst_left = case.burst
    return text[len(PROMPTS[case.prompt]) :]


async def answers(case: Case) -> tuple[GenerationResult, GenerationResult, list[int]]:
    """Blocking on a quiet link, optimistic on the case's own, and what that one showed."""
    delays = random.Random(case.seed)
    async with (
        CloudServer(settings_for(tiny_bundle(), credits=case.credits)) as server,
        CloudServer(settings_for(tiny_bundle(), credits=case.credits)) as other,
        BreakableLink(
            [server.address, other.address][: case.replicas],
            lambda: delays.choice(case.delays),
            case.cuts,
        ) as link,
        edge_engine(server.address) as quiet,
        edge_engine(link.address) as troubled,
    ):
        prompt = PROMPTS[case.prompt]
        blocking = await quiet.generate(prompt, replace(case.options, window=0, lookahead=None))
        generation = troubled.generation(prompt, case.options)
        shown = [token.token_id async for token in generation.run()]
        return blocking, generation.result(), shown


PLAIN = Case(6, 0.1, 0, False, None, 0.0, 0, True, 4, 64, True, (0.003,), ())
THERE_AND_BACK = replace(PLAIN, prompt=3, threshold=1.0, window=12, verified=True, replicas=2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(case=CASES)
@example(case=PLAIN)
@example(case=replace(PLAIN, tokens=False, cuts=(12, 30)))
@example(case=replace(PLAIN, burst=3, cuts=(9, 21, 40)))
# there and back: each replica holds what the other has seen withdrawn
@example(case=replace(THERE_AND_BACK, cuts=(17, 31, 35, 43, 61, 47, 60, 83, 101, 111, 121)))
@example(
    case=replace(THERE_AND_BACK, tokens=False, cuts=(18, 31, 38, 47, 61, 41, 67, 91, 92, 71, 110))
)
# the burst's answers lie there before the correction is read
@example(case=replace(PLAIN, burst=3, verified=True, temperature=0.7, seed=3, delays=(0.01,)))
@example(case=replace(PLAIN, burst=BURST_UNLIMITED, cuts=(15,)))
@example(case=replace(PLAIN, verified=True, threshold=0.0, cuts=(20,)))
@example(case=replace(PLAIN, lookahead=5, delays=(0.01,)))
@example(case=replace(PLAIN, lookahead=16, threshold=0.05, cuts=(10, 25), delays=(0.01, 0.0)))
@example(case=replace(PLAIN, lookahead=16, threshold=0.02, temperature=0.7, delays=(0.01,)))
@example(case=replace(PLAIN, lookahead=8, verified=True, window=1, delays=(0.01,)))
@example(case=replace(PLAIN, prompt=3, threshold=1.0, lookahead=16, cuts=(12, 40)))
@example(case=replace(PLAIN, prompt=3, threshold=1.0, lookahead=3, window=12, credits=2))
@example(case=replace(PLAIN, verified=True, window=12, credits=1, burst=3, cuts=(20,)))
def test_optimistic_says_what_blocking_says(case: Case) -> None:
    blocking, optimistic, shown = asyncio.run(answers(case))
    assert ids_of(blocking) == policy_says(case)
    assert ids_of(optimistic) == shown == ids_of(blocking)
    assert [t.origin for t in optimistic.tokens] == [t.origin for t in blocking.tokens]
    if case.verified:
        assert shown == full_answer(PROMPTS[case.prompt], MAX_TOKENS, case.sampling)


def test_the_cases_hold_agreements_and_corrections_both() -> None:
    """Or the property above would be about nothing."""
    _, agreeing, _ = asyncio.run(answers(replace(PLAIN, threshold=1.0, prompt=3)))
    statistics = agreeing.statistics
    assert statistics.rollbacks > 0
    assert statistics.escalations > statistics.rollbacks


@pytest.mark.parametrize("burst", [1, 5])
def test_a_burst_changes_the_text_only_by_its_definition(burst: int) -> None:
    case = replace(PLAIN, burst=burst, threshold=0.05)
    blocking, optimistic, _ = asyncio.run(answers(case))
    assert ids_of(blocking) == ids_of(optimistic) == policy_says(case)


async def test_what_the_cloud_says_ahead_answers_questions_that_were_not_asked() -> None:
    case = replace(PLAIN, threshold=1.0, delays=(0.02,), reckless=False)
    counted = []
    for lookahead in (0, 16):
        _, result, _ = await answers(replace(case, lookahead=lookahead))
        counted.append(result.statistics.rollbacks)
    assert counted[1] < counted[0]
