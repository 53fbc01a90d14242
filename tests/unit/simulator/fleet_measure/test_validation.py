"""The comparison: paces, errors, and the simulator on a schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.fleet.profiles import CloudProfile, PassModel, Power
from simulator.fleet.recordings import ModelFacts, RecordedAnswer, Recording
from simulator.fleet.validation import slowed
from simulator.fleet.validation_real import turns_of
from simulator.fleet.validation_replay import instant_device
from simulator.fleet.validation_report import (
    Pace,
    Round,
    Row,
    Validation,
    markdown_table,
    pace_of,
)
from simulator.fleet.validation_simulated import simulate
from simulator.link_presets import preset

_PASS = PassModel(
    base_seconds=0.04,
    knots=(1,),
    beyond_seconds=(0.0,),
    session_seconds=0.0,
    r_squared=1.0,
    samples=1,
)
_POWER = Power(idle_watts=0.0, active_watts=0.0, source="made up")
CLOUD = CloudProfile(
    name="made-up", source="made up", measured=False, whole=_PASS, deep=_PASS, power=_POWER,
    price_per_hour=0.0, price_source="made up",
)  # fmt: skip
DEVICE = instant_device(2).model_copy(
    update={"segment_seconds": (0.1, 0.0), "pending_seconds": (0.0, 0.0)}
)


def recording(unsure: bool) -> Recording:
    """Three answers of 10 tokens, which the deepest exit always guesses wrong."""
    shape = (10, 2)
    confidences = np.full(shape, 0.1 if unsure else 0.9, np.float32)
    answers = [RecordedAnswer(20, confidences, np.zeros(shape, np.bool_)) for _ in range(3)]
    facts = ModelFacts(
        bundle="x", fingerprint="ab" * 32, prompts="x", layers=6, cut=2, hidden_size=64
    )
    return Recording(facts, tuple(answers))


def test_a_pace_is_of_tokens_and_its_percentile_of_answers() -> None:
    answers = [(0.25, 1.0, 10)] * 19 + [(0.5, 4.0, 10)]
    pace = pace_of(answers)
    assert pace.mean == pytest.approx(23 / 200)
    assert pace.p95 == pytest.approx(0.1)
    assert pace.first == pytest.approx(0.2625)
    assert pace_of([*answers[:18], *[(0.5, 4.0, 10)] * 2]).p95 == pytest.approx(0.4)


def row(mean: float, p95: float) -> Row:
    return Row("blocking@0.8", 4, 24, (Round(Pace(0.1, 0.2, 0.5), Pace(mean, p95, 0.5)),))


def test_a_slower_machine_is_the_same_cloud_with_longer_passes() -> None:
    slow = slowed(CLOUD, 1.5)
    work = (3, 2, 1, 0)
    assert slow.pass_seconds(whole=work) == pytest.approx(1.5 * CLOUD.pass_seconds(whole=work))
    assert slow.pass_seconds(deep=work) == pytest.approx(1.5 * CLOUD.pass_seconds(deep=work))
    assert slow.message_seconds == CLOUD.message_seconds
    assert slow.name == CLOUD.name


@pytest.mark.parametrize(
    ("mean", "p95", "within"),
    [(0.1, 0.2, True), (0.109, 0.181, True), (0.112, 0.2, False), (0.1, 0.179, False)],
)
def test_within_is_both_within_a_tenth(mean: float, p95: float, within: bool) -> None:
    found = row(mean, p95)
    assert found.within is within
    assert Validation((row(0.1, 0.2), found), DEVICE, CLOUD).within is within


def test_the_table_tells_the_errors() -> None:
    table = markdown_table([row(0.105, 0.19)])
    assert "+5.0%" in table
    assert "-5.0%" in table
    assert "100.0" in table


def test_a_comparison_is_the_median_of_its_rounds() -> None:
    found = row(0.1, 0.2)
    real = Pace(0.1, 0.2, 0.5)
    worse = Round(real, Pace(0.2, 0.1, 0.5), 1.5)
    slower = Round(Pace(0.2, 0.4, 0.5), Pace(0.21, 0.38, 0.5), 2.0)
    several = replace(found, rounds=(*found.rounds, worse, slower))
    assert several.errors == pytest.approx((0.05, -0.05))
    assert several.median(lambda one: one.slowdown) == 1.5
    assert several.within
    assert not replace(found, rounds=(*several.rounds, worse, worse)).within
    table = markdown_table([several])
    assert "+5.0% (+0.0% to +100.0%)" in table
    assert "-5.0% (-50.0% to +0.0%)" in table


def test_an_answer_whose_every_token_is_accepted_takes_the_device_alone() -> None:
    turns = turns_of(1, 3, 0.0)
    (log,) = simulate(
        recording(unsure=False), "blocking@0.8", turns, DEVICE, CLOUD, preset("loopback"), 0
    )
    # segment 0 takes in the prompt in no time, and then 9 tokens
    assert list(log.seconds) == pytest.approx([0.9] * 3, abs=0.02)
    assert list(log.tokens) == [10] * 3


def test_cloud_only_takes_a_pass_a_token() -> None:
    turns = turns_of(2, 3, 0.0)
    logs = simulate(
        recording(unsure=True), "cloud-only", turns, DEVICE, CLOUD, preset("loopback"), 0
    )
    assert [len(log.seconds) for log in logs] == [3, 3]
    for log in logs:
        assert min(log.seconds) >= 0.4
        assert max(log.seconds) < 0.9


def test_blocking_waits_for_a_pass_and_the_way_at_every_unsure_token() -> None:
    link = preset("4g")
    turns = turns_of(1, 3, 0.0)
    (log,) = simulate(recording(unsure=True), "blocking@0.8", turns, DEVICE, CLOUD, link, 0)
    least = 0.9 + 10 * (0.04 + link.rtt_ms / 1e3)
    assert min(log.seconds) >= least
    assert max(log.seconds) < 1.5 * least


def test_the_same_seed_gives_the_same() -> None:
    turns = turns_of(3, 3, 1.0)
    runs = [
        [
            list(log.seconds)
            for log in simulate(
                recording(unsure=True), "optimistic@0.8", turns, DEVICE, CLOUD, preset("4g"), seed
            )
        ]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
