from __future__ import annotations

import pytest

from edge.link_monitor import (
    GUESS_MEMORY,
    LINK_MEMORY_SECONDS,
    MIN_PREFILL_TOKENS,
    MIN_UPLOAD_BYTES,
    SAMPLES,
    Conditions,
    LinkMonitor,
)
from shared.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def monitor(clock: ManualClock) -> LinkMonitor:
    return LinkMonitor(clock)


def test_nothing_is_known_before_anything_was_seen(monitor: LinkMonitor) -> None:
    assert monitor.conditions() == Conditions()
    assert monitor.alive


def test_estimates_are_medians_that_ride_out_what_went_astray(monitor: LinkMonitor) -> None:
    for seconds in (0.25, 0.26, 2.0, 0.251, 0.002):
        monitor.round_trip(seconds)
        monitor.edge_token(seconds)
        monitor.cloud_pass(seconds)
        monitor.cloud_token(seconds)
        monitor.upload(10_000, seconds)
    assert monitor.conditions() == Conditions(
        rtt_seconds=0.251,
        edge_token_seconds=0.251,
        cloud_pass_seconds=0.251,
        cloud_token_seconds=0.251,
        up_bytes_per_second=10_000 / 0.251,
    )


def test_a_prompt_tells_what_one_of_its_tokens_takes(monitor: LinkMonitor) -> None:
    for tokens, seconds in ((100, 0.2), (200, 0.6), (50, 0.2), (MIN_PREFILL_TOKENS - 1, 9.0)):
        monitor.edge_prefill(tokens, seconds)
    assert monitor.conditions() == Conditions(edge_prefill_seconds=0.003)


def test_only_the_last_samples_count(monitor: LinkMonitor) -> None:
    for _ in range(100):
        monitor.round_trip(0.2)
    for _ in range(SAMPLES):
        monitor.round_trip(0.02)
    assert monitor.conditions().rtt_seconds == 0.02


def test_the_link_is_forgotten_after_a_minute_but_not_edge_and_cloud(
    monitor: LinkMonitor, clock: ManualClock
) -> None:
    monitor.round_trip(0.1)
    monitor.upload(50_000, 0.1)
    monitor.edge_token(0.006)
    monitor.cloud_pass(0.03)
    monitor.cloud_token(0.02)
    clock.advance(LINK_MEMORY_SECONDS)
    assert monitor.conditions().rtt_seconds == 0.1
    clock.advance(1.0)
    monitor.upload(50_000, 0.5)
    assert monitor.conditions() == Conditions(
        up_bytes_per_second=100_000.0,
        edge_token_seconds=0.006,
        cloud_pass_seconds=0.03,
        cloud_token_seconds=0.02,
    )


def test_a_lost_link_is_forgotten_and_comes_back_unknown(monitor: LinkMonitor) -> None:
    monitor.round_trip(0.1)
    monitor.upload(50_000, 0.1)
    monitor.cloud_pass(0.03)
    monitor.lost()
    assert not monitor.alive
    monitor.restored()
    assert monitor.alive
    assert monitor.conditions() == Conditions(cloud_pass_seconds=0.03, cloud_token_seconds=0.03)


def test_a_pass_through_some_of_the_layers_counts_as_one_through_all(monitor: LinkMonitor) -> None:
    monitor.cloud_pass(0.014, 14 / 30)
    assert monitor.conditions().cloud_pass_seconds == pytest.approx(0.03)


def test_small_uploads_say_nothing_of_the_rate(monitor: LinkMonitor) -> None:
    monitor.upload(MIN_UPLOAD_BYTES - 1, 1.0)
    assert monitor.conditions().up_bytes_per_second is None


@pytest.mark.parametrize("seconds", [0.0, -0.01])
def test_times_that_cannot_be_are_taken_as_the_least_that_can(
    monitor: LinkMonitor, seconds: float
) -> None:
    monitor.round_trip(seconds)
    monitor.upload(8_000, seconds)
    assert monitor.conditions() == Conditions(rtt_seconds=0.0, up_bytes_per_second=8_000_000.0)


def test_guesses_are_a_share_at_first_and_follow_what_changes(monitor: LinkMonitor) -> None:
    for agreed in (True, False, False, True):
        monitor.question(unsure=True, agreed=agreed)
    assert monitor.conditions().guess_agreement == pytest.approx(0.5)
    assert monitor.conditions().guess_count == 4
    for _ in range(4 * GUESS_MEMORY):
        monitor.question(unsure=True, agreed=True)
    assert monitor.conditions().guess_agreement == pytest.approx(1.0, abs=0.02)


def test_tokens_that_an_exit_was_sure_of_do_not_flatter_the_guesses(monitor: LinkMonitor) -> None:
    monitor.question(unsure=True, agreed=False)
    monitor.question(unsure=False, agreed=True)
    assert monitor.conditions().guess_agreement == 0.0
    assert monitor.conditions().guess_count == 1


def test_a_token_alone_counts_as_the_fastest_question_until_one_was_seen() -> None:
    monitor = LinkMonitor(ManualClock())
    for seconds in (0.05, 0.03, 0.04):
        monitor.cloud_pass(seconds)
    assert monitor.conditions().cloud_token_seconds == 0.03
    monitor.cloud_token(0.07)
    assert monitor.conditions().cloud_token_seconds == 0.07


def test_the_share_of_unsure_tokens() -> None:
    monitor = LinkMonitor(ManualClock())
    assert monitor.conditions().unsure_share is None
    for unsure in (True, False, False, True):
        monitor.judged(unsure)
    assert monitor.conditions().unsure_share == 0.5
    assert monitor.conditions().unsure_count == 4
