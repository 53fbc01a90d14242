"""Whole fleets: what holds for every policy, link and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.fleet.recordings import Recording
from simulator.fleet.report import fleet_report
from simulator.fleet.simulation import FleetRun, run_fleet
from simulator.fleet.summary import summarise, to_json
from tests.fleet_harness import invented_recording, make_config

POLICIES: dict[str, dict[str, Any]] = {
    "standalone": {"policy": "standalone"},
    "cloud-only": {"policy": "cloud-only"},
    "blocking": {"policy": "blocking"},
    "optimistic": {"policy": "optimistic"},
    "burst": {"policy": "optimistic", "codec": "tokens", "burst": 1000},
    "ahead": {"policy": "optimistic", "codec": "tokens", "lookahead": 16},
    "verified": {"policy": "verified"},
    "verified ahead": {"policy": "verified", "lookahead": 8},
    "latency": {"policy": "auto", "aim": "latency"},
    "cost": {"policy": "auto", "aim": "cost"},
    "quality": {"policy": "auto", "aim": "quality"},
    "private": {"policy": "auto", "private": True},
}
LINKS: dict[str, dict[str, Any]] = {
    "loopback": {},
    "wifi": {"link": "wifi"},
    "3g": {"link": "3g"},
    "lossy": {"link": "lossy-wifi"},
    "train": {"link": "train"},
}
RECORDING = invented_recording()


def run(tmp_path: Path, *edges: dict[str, Any], seed: int = 0, **others: Any) -> FleetRun:
    return run_fleet(make_config(tmp_path, list(edges), **others), seed=seed, recording=RECORDING)


def check(done: FleetRun) -> None:
    """What is true of any run."""
    for replica in done.replicas:
        assert 0.0 <= replica.busy_seconds <= done.config.duration_s
        assert all(wait >= 0.0 for wait in replica.waits)
    lengths = {answer.length for answer in RECORDING.answers}
    for group in done.groups:
        log = group.log
        assert set(log.tokens) <= lengths, "an answer lost tokens, or gained some"
        for tokens, wrong, alone, first, seconds, work in zip(
            log.tokens,
            log.wrong,
            log.alone,
            log.first_seconds,
            log.seconds,
            log.work_seconds,
            strict=True,
        ):
            assert 0 <= wrong <= tokens
            assert 0 <= alone <= tokens
            assert 0.0 < first <= seconds + 1e-9
            assert 0.0 <= work <= seconds + 1e-6
        assert all(size >= 0.0 for size in [*log.bytes_up, *log.bytes_down])
        assert all(number >= 0 for number in [*log.questions, *log.discarded])


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_answer_ends_and_adds_up(tmp_path: Path, policy: str, link: str) -> None:
    done = run(tmp_path, {"count": 4} | POLICIES[policy] | LINKS[link])
    check(done)
    # 4 edges that ask every 20 s, and a little, for 300 s
    assert len(done.groups[0].log.tokens) > 20, "edges have got stuck"


def test_verified_and_plain_text_is_the_full_models(tmp_path: Path) -> None:
    for policy in ("cloud-only", "verified", "verified ahead", "quality"):
        log = run(tmp_path, {"count": 3, "link": "wifi"} | POLICIES[policy]).groups[0].log
        assert sum(log.wrong) == 0


@pytest.mark.parametrize("number", range(3))
def test_text_does_not_depend_on_window_lookahead_or_link(tmp_path: Path, number: int) -> None:
    one = Recording(RECORDING.model, (RECORDING.answers[number],))
    wrong = set()
    for policy in ("blocking", "optimistic", "ahead"):
        for link in LINKS.values():
            config = make_config(tmp_path, [{"count": 2} | POLICIES[policy] | link])
            wrong |= set(run_fleet(config, recording=one).groups[0].log.wrong)
    assert len(wrong) == 1


def test_a_cloud_that_is_too_small_is_busy_and_slow(tmp_path: Path) -> None:
    few = run(tmp_path, {"count": 2} | POLICIES["cloud-only"], workload={"think_s": 1.0})
    many = run(tmp_path, {"count": 400} | POLICIES["cloud-only"], workload={"think_s": 1.0})
    check(many)
    assert many.replicas[0].busy_seconds > 0.95 * many.config.duration_s
    slow, fast = (summarise(done)["all"]["seconds_per_token"]["p50"] for done in (many, few))
    assert slow > 2 * fast


def test_auto_goes_on_alone_where_the_cloud_is_overrun(tmp_path: Path) -> None:
    edges = {"count": 600} | POLICIES["latency"]
    done = run(tmp_path, edges, workload={"think_s": 1.0}, duration_s=120.0)
    check(done)
    assert sum(done.groups[0].log.alone) > 0


def test_more_replicas_share_the_edges(tmp_path: Path) -> None:
    done = run(tmp_path, {"count": 12} | POLICIES["blocking"], replicas=3)
    check(done)
    assert all(replica.passes > 0 for replica in done.replicas)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    edges = [{"count": 3} | POLICIES[p] | LINKS[k] for p in ("latency", "cost") for k in LINKS]
    first, again = (run(tmp_path, *edges, seed=5) for _ in range(2))
    other = run(tmp_path, *edges, seed=6)
    assert to_json(summarise(first)) == to_json(summarise(again))
    assert fleet_report(summarise(first)) == fleet_report(summarise(again))
    assert to_json(summarise(first)) != to_json(summarise(other))


def test_the_day_moves_the_questions(tmp_path: Path) -> None:
    night, evening = (
        run(
            tmp_path,
            {"count": 50} | POLICIES["standalone"],
            workload={"think_s": 60.0, "diurnal": 1.0, "peak_h": 20.0, "begin_h": begin},
            duration_s=1800.0,
        )
        for begin in (8.0, 20.0)
    )
    counts = [len(done.groups[0].log.tokens) for done in (night, evening)]
    assert counts[1] > 10 * counts[0]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    count=st.integers(1, 12),
    rtt=st.floats(0.0, 400.0),
    up=st.floats(0.05, 50.0),
    jitter=st.sampled_from([0.0, 2.0, 20.0]),
    loss=st.sampled_from([0.0, 0.0, 0.05]),
    think=st.floats(0.5, 60.0),
    seed=st.integers(0, 1 << 30),
)
def test_any_fleet_adds_up(
    tmp_path: Path,
    policy: str,
    count: int,
    rtt: float,
    up: float,
    jitter: float,
    loss: float,
    think: float,
    seed: int,
) -> None:
    edges = POLICIES[policy] | {
        "count": count,
        "rtt_ms": rtt,
        "up_mbit": up,
        "jitter_ms": jitter,
        "loss": loss,
    }
    done = run(tmp_path, edges, seed=seed, workload={"think_s": think}, duration_s=60.0)
    check(done)
