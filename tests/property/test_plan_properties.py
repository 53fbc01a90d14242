"""Plans that change in the middle of an answer (``auto``), links that delay and break: every word
is the full model's, or was accepted by an exit under one of the plans."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloud.server import CloudServer
from edge import generation_run, steering
from edge.context_source import ContextCodec
from edge.controller import Choice
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from edge.plan import BURST_UNLIMITED, Plan
from shared.sampling import GREEDY, Sampling
from tests.cloud_harness import full_model, settings_for, tiny_bundle
from tests.edge_harness import PROMPTS, BreakableLink, edge_engine, full_answer, ids_of
from tests.exit_decisions import exit_decision

MAX_TOKENS = 24
PLAIN = Plan(1.0, 1, BURST_UNLIMITED, ContextCodec.TOKENS, plain=True)
AHEAD = Plan(1.0, 4, 0, ContextCodec.TOKENS, lookahead=16)
VERIFIED = Plan(0.1, 4, 0, ContextCodec.TOKENS, verified=True)
thresholds = st.sampled_from([0.0, 0.05, 0.1, 0.4, 1.0])
windows = st.sampled_from([1, 2, 4, 12])
drafting = st.builds(
    Plan, thresholds, windows, st.just(0), st.just(ContextCodec.TOKENS), st.booleans()
)
PLANS = st.one_of(
    st.just(PLAIN),
    drafting,
    st.builds(replace, drafting, lookahead=st.sampled_from([1, 5, 16])),
    st.builds(replace, drafting, burst=st.sampled_from([1, 3, BURST_UNLIMITED])),
    st.builds(replace, drafting, window=st.just(0)),
    st.builds(replace, drafting, least_chance=st.just(0.0)),
)


@dataclass(frozen=True)
class Case:
    """What hypothesis varies; ``plans`` take turns, each for so many tokens."""

    prompt: int
    plans: tuple[tuple[Plan, int], ...]
    sampling: Sampling
    delays: tuple[float, ...]
    cuts: tuple[int, ...]
    seed: int = 0


CASES = st.builds(
    Case,
    prompt=st.integers(0, len(PROMPTS) - 1),
    plans=st.lists(st.tuples(PLANS, st.integers(1, 8)), min_size=2, max_size=5).map(tuple),
    sampling=st.sampled_from([GREEDY, Sampling(0.7, 0.95, 3)]),
    delays=st.lists(st.sampled_from([0.0, 0.0005, 0.003, 0.01]), min_size=1, max_size=6).map(tuple),
    cuts=st.lists(st.integers(6, 60), max_size=2, unique=True).map(tuple),
    seed=st.integers(0, 1000),
)


async def answer(case: Case) -> GenerationResult:
    """An answer of ``auto`` whose controller is the case's plans."""
    turns = itertools.cycle([plan for plan, count in case.plans for _ in range(count)])
    delays = random.Random(case.seed)
    options = GenerationOptions(Mode.AUTO, max_tokens=MAX_TOKENS, sampling=case.sampling)
    with pytest.MonkeyPatch.context() as patch:

        def choose(*_: Any, **__: Any) -> Choice:
            return Choice(next(turns), str, None)

        patch.setattr(generation_run, "choose", choose)
        patch.setattr(steering, "CHOOSE_SECONDS", 0.0)
        patch.setattr(steering, "LEAST_PATIENCE_SECONDS", 60.0)
        async with (
            CloudServer(settings_for(tiny_bundle())) as server,
            BreakableLink(server.address, lambda: delays.choice(case.delays), case.cuts) as link,
            edge_engine(link.address) as engine,
        ):
            return await engine.generate(PROMPTS[case.prompt], options)


def check(case: Case) -> GenerationResult:
    """The answer, each of whose words has a reason."""
    result = asyncio.run(answer(case))
    prompt, ids = list(PROMPTS[case.prompt]), ids_of(result)
    plans = [plan for plan, _ in case.plans]
    trusting = {plan.threshold for plan in plans if not plan.verified and not plan.plain}
    if not trusting:
        assert ids == full_answer(prompt, MAX_TOKENS, case.sampling)
    stop = set(tiny_bundle().manifest.tokenizer.stop_token_ids)
    assert len(ids) == MAX_TOKENS or ids[-1] in stop
    for index, token in enumerate(result.tokens):
        text = prompt + ids[:index]
        full = full_model().continuation(text, 1, case.sampling)[0]
        decisions = [exit_decision(text, threshold, case.sampling) for threshold in trusting]
        accepted = {guess for guess, is_sure in decisions if is_sure}
        assert not token.alone
        assert token.token_id == full or token.token_id in accepted
        assert token.origin != "cloud" or token.token_id == full
    return result


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=CASES)
@example(case=Case(6, ((AHEAD, 8), (PLAIN, 8)), GREEDY, (0.01,), ()))
@example(
    case=Case(3, ((VERIFIED, 3), (PLAIN, 3), (AHEAD, 3)), Sampling(0.0, 1.0, 0), (0.0,), (20,))
)
def test_every_word_has_a_reason(case: Case) -> None:
    check(case)


def test_the_cases_hold_more_than_one_kind_of_word() -> None:
    """Or the property above would be about nothing."""
    trusting = Plan(0.05, 4, 0, ContextCodec.TOKENS)
    case = Case(6, ((trusting, 6), (VERIFIED, 6)), GREEDY, (0.003,), ())
    result = check(case)
    assert len({token.origin for token in result.tokens}) > 1
    assert ids_of(result) != full_answer(PROMPTS[6], MAX_TOKENS)
