"""The planner's trials: long enough for the answers that they are about."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from simulator.fleet.capacity import Scenario, find_capacity
from simulator.fleet.simulation import run_fleet
from simulator.fleet.target import parse_target
from tests.fleet_harness import invented_recording, write_machines


def scenario(folder: Path, target: str, think: float = 30.0, **edges: Any) -> Scenario:
    device, cloud = write_machines(folder)
    return Scenario(
        {"device": device, "link": "loopback"} | edges,
        {"profile": cloud},
        {"think_s": think},
        parse_target(target),
        most_edges=64,
    )


def test_a_trial_tells_the_rate_also_where_answers_are_as_long_as_it_used_to_be(
    tmp_path: Path,
) -> None:
    """By Little's law: each edge asks again when it has its answer and has thought."""
    asked = scenario(tmp_path, "p95 time per token <= 4000 ms", rtt_ms=3000.0)
    count = 20
    run = run_fleet(asked.config("blocking", count), recording=invented_recording())
    log = run.groups[0].log
    assert fmean(log.seconds) > 40.0
    rate = count / (asked.think_seconds + fmean(log.seconds))
    assert len(log.tokens) / run.config.counted_seconds == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("target", ["mean answer <= 200 s", "p95 time per token <= 2 s"])
def test_a_trial_outlasts_the_answers_that_keep_its_target(tmp_path: Path, target: str) -> None:
    config = scenario(tmp_path, target).config("cloud-only", 64)
    assert config.warmup_s >= 200.0
    assert config.counted_seconds >= 600.0


def test_an_answer_that_is_longer_than_a_short_trial_misses_its_target(tmp_path: Path) -> None:
    slow = {"rtt_ms": 5000.0}  # and so some 100 s an answer
    found = {
        seconds: find_capacity(
            scenario(tmp_path, f"mean answer <= {seconds} s", **slow), "blocking",
            invented_recording(),
        ).edges
        for seconds in (70, 700)
    }  # fmt: skip
    assert found[70] == 0
    assert found[700] > 0


def test_users_who_ask_twice_a_day_can_be_planned_for(tmp_path: Path) -> None:
    found = find_capacity(
        scenario(tmp_path, "p95 time per token <= 100 ms", think=43_200.0),
        "cloud-only",
        invented_recording(),
    )
    assert found.edges == 64
    assert found.limited
