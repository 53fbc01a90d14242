"""The link model against closed forms: transfer time, queueing, loss, back-off, outages, traces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from shared.errors import LinkError
from simulator.link_model import Link, LinkDirection
from simulator.link_noise import Jitter, Loss
from simulator.link_presets import PRESETS, preset
from simulator.link_spec import (
    BurstLoss,
    DirectionSpec,
    LinkSpec,
    Outage,
    change_link,
    parse_link,
)
from simulator.packet_trace import Trace
from tests.link_harness import Offer, Scripted, carry, direction

MTU = 1_500
TICK = 1.5e-3  # a full packet at 8 Mbit/s, seconds
EIGHT = DirectionSpec(rate_mbit=8, delay_ms=20)


def script(way: LinkDirection, monkeypatch: pytest.MonkeyPatch, *losses: bool) -> None:
    monkeypatch.setattr(way, "_loss", Scripted(*losses))


def times(way: LinkDirection, *offers: Offer, now: float = 0.0) -> list[float]:
    return [delivery.at for delivery in carry(way, offers, now=now)[1]]


def test_transfer_time_is_serialisation_and_propagation() -> None:
    arrived = times(direction(EIGHT), Offer(1.0, "a", 10 * MTU))
    assert arrived == pytest.approx([1.0 + TICK * n + 0.020 for n in range(1, 11)])


def test_a_short_packet_takes_its_share_of_time() -> None:
    assert times(direction(EIGHT), Offer(0, "a", 100)) == pytest.approx([100 * 1e-6 + 0.020])


def test_headers_take_time_and_carry_nothing() -> None:
    spec = DirectionSpec(rate_mbit=8, mtu_bytes=1_500, header_bytes=500)
    way = direction(spec)
    assert times(way, Offer(0, "a", 2_000)) == pytest.approx([TICK, 2 * TICK])


def test_without_a_limit_only_the_delay_counts() -> None:
    arrived = times(direction(DirectionSpec(delay_ms=7)), Offer(0, "a", 100_000))
    assert arrived == pytest.approx([0.007] * 67)


def test_queueing_delay_is_the_backlog_over_the_rate() -> None:
    way = direction(EIGHT)
    _, found = carry(way, [Offer(0, "bulk", 40 * MTU), Offer(0.010, "late", 100)])
    late = next(delivery.at for delivery in found if delivery.flow == "late")
    assert late == pytest.approx(40 * TICK + 100e-6 + 0.020)


def test_a_link_without_a_limit_drops_nothing() -> None:
    way = direction(DirectionSpec(queue_bytes=MTU))
    assert times(way, Offer(0, "a", 1_000_000))[-1] == 0
    assert way.counts.dropped == 0


def test_flows_share_one_link() -> None:
    way = direction(EIGHT)
    _, found = carry(way, [Offer(0, "a", 20 * MTU), Offer(0, "b", 20 * MTU)])
    assert found[-1].at == pytest.approx(40 * TICK + 0.020)


def test_a_last_packet_waits_for_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True)
    # lost as it leaves the link; the timer's floor is 200 ms; then it takes its time again
    assert times(way, Offer(0, "a", MTU)) == pytest.approx([TICK + 0.200 + TICK + 0.020])
    assert (way.counts.lost, way.counts.retransmitted, way.counts.stalls) == (1, 1, 1)
    assert way.counts.stall_seconds == pytest.approx(0.200 + TICK)


def test_the_timer_knows_a_long_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(DirectionSpec(rate_mbit=8, delay_ms=300), back_ms=300)
    script(way, monkeypatch, True)
    assert times(way, Offer(0, "a", MTU)) == pytest.approx([TICK + 0.600 + TICK + 0.300])


def test_the_timer_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(DirectionSpec(), back_ms=0)
    script(way, monkeypatch, *[True] * 4)
    assert times(way, Offer(0, "a", MTU)) == pytest.approx([0.2 + 0.4 + 0.8 + 1.6])


def test_the_timer_stops_doubling_at_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(DirectionSpec(), back_ms=0)
    script(way, monkeypatch, *[True] * 11)
    # 0.2, 0.4, ... 102.4 s is ten doublings; the eleventh would be 204.8
    assert times(way, Offer(0, "a", MTU)) == pytest.approx([0.2 * (2**10 - 1) + 120.0])


def test_later_data_bring_a_lost_packet_back_in_a_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True)
    # the second packet arrives at 2 ticks + 20 ms; the sender hears of it 30 ms later
    filled = 2 * TICK + 0.020 + 0.030 + TICK + 0.020
    assert times(way, Offer(0, "a", 3 * MTU)) == pytest.approx([filled] * 3)


def test_data_sent_while_the_timer_runs_bring_it_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True)
    filled = 0.100 + TICK + 0.020 + 0.030 + TICK + 0.020
    found = times(way, Offer(0, "a", MTU), Offer(0.100, "a", MTU))
    assert found == pytest.approx([filled] * 2)


def test_a_fast_retransmission_that_is_lost_waits_for_the_plain_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True, False, True)
    # noticed by the second packet, sent again, and lost again: no timer has expired so far
    lost_again = 2 * TICK + 0.020 + 0.030 + TICK
    filled = lost_again + 0.200 + TICK + 0.020
    assert times(way, Offer(0, "a", 2 * MTU)) == pytest.approx([filled] * 2)


def test_only_timers_that_expired_make_the_next_one_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True, False, True, True, True)
    lost_again = 2 * TICK + 0.020 + 0.030 + TICK
    filled = lost_again + (0.200 + TICK) + (0.400 + TICK) + 0.800 + TICK + 0.020
    assert times(way, Offer(0, "a", 2 * MTU)) == pytest.approx([filled] * 2)


def test_later_data_bring_a_lost_retransmission_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True, False, True)
    # sent again at 53 ms and lost again; what is sent at 100 ms shows it, long before the timer
    filled = 0.100 + TICK + 0.020 + 0.030 + TICK + 0.020
    found = times(way, Offer(0, "a", 2 * MTU), Offer(0.100, "a", MTU))
    assert found == pytest.approx([filled] * 3)


def test_data_that_left_before_a_retransmission_say_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = direction(EIGHT, back_ms=1)
    script(way, monkeypatch, True, *[False] * 29, True)
    # 30 packets: the second shows the loss at 24 ms, behind 14 others in the queue; those that left
    # before the retransmission arrive after it was lost, and show nothing
    lost_again = 31 * TICK
    filled = lost_again + 0.200 + TICK + 0.020
    assert times(way, Offer(0, "a", 30 * MTU)) == pytest.approx([filled] * 30)


def test_a_gap_holds_up_its_own_flow_only(monkeypatch: pytest.MonkeyPatch) -> None:
    way = direction(EIGHT, back_ms=30)
    script(way, monkeypatch, True)
    _, found = carry(way, [Offer(0, "a", MTU), Offer(0, "b", MTU)])
    assert [d.flow for d in found] == ["b", "a"]
    assert [d.at for d in found] == pytest.approx([2 * TICK + 0.020, TICK + 0.200 + TICK + 0.020])


def test_what_finds_the_queue_full_is_dropped_and_comes_again() -> None:
    spec = DirectionSpec(rate_mbit=8, delay_ms=20, queue_bytes=10 * MTU)
    way = direction(spec, back_ms=20)
    assert way.send("a", 50 * MTU, 0.0) == 11 * MTU, "the queue, and the one that is dropped"
    assert way.counts.dropped == 1
    assert way.send("a", MTU, 0.0) == 0, "the window has shrunk: no more than there is room for"
    assert way.send("a", 5 * MTU, TICK) == MTU
    assert way.counts.dropped == 1


def test_a_bulk_flow_fills_the_link_in_spite_of_drops() -> None:
    spec = DirectionSpec(rate_mbit=8, delay_ms=20, queue_bytes=10 * MTU)
    way = direction(spec, back_ms=20)
    _, found = carry(way, [Offer(0, "a", 4_000 * MTU)])
    goodput = 4_000 * MTU * 8e-6 / (found[-1].at - 0.020)
    assert goodput == pytest.approx(8, rel=0.01)
    assert 1 <= way.counts.dropped <= 6, "once every K = 2.1 s or so"


def test_a_connection_has_no_more_under_way_than_its_window() -> None:
    spec = DirectionSpec(delay_ms=100, window_bytes=10 * MTU)
    way = direction(spec)
    assert way.send("a", 50 * MTU, 0.0) == 10 * MTU
    assert way.under_way("a") == 10 * MTU
    way.collect(0.1)
    assert way.send("a", 50 * MTU, 0.1) == 10 * MTU


def test_an_outage_makes_bytes_wait_and_then_go() -> None:
    spec = DirectionSpec(rate_mbit=8, outages=(Outage(start_s=1, duration_s=2),))
    arrived = times(direction(spec), Offer(0.999, "a", 2 * MTU), Offer(2, "a", 100))
    # the first was two thirds out when the link stopped
    assert arrived == pytest.approx([3.0005, 3.002, 3.0021])


def test_outages_come_again() -> None:
    outages = (Outage(start_s=1, duration_s=0.5, every_s=2),)
    way = direction(DirectionSpec(outages=outages), start=0.0)
    found = times(way, *(Offer(at, "a", 1) for at in (0.9, 1.0, 1.6, 3.2, 4.9, 101.25)))
    assert found == pytest.approx([0.9, 1.5, 1.6, 3.5, 4.9, 101.5])


def test_an_interruption_stops_what_has_not_left() -> None:
    way = direction(EIGHT)
    way.send("a", 3 * MTU, 0.0)
    way.interrupt(2 * TICK, 10.0)
    found = carry(way, [], now=2 * TICK)[1]
    assert [d.at for d in found] == pytest.approx(
        [TICK + 0.020, 2 * TICK + 0.020, 2 * TICK + 10.0 + TICK + 0.020]
    )


def test_a_change_counts_for_what_is_still_in_the_queue() -> None:
    way = direction(EIGHT)
    way.send("a", 3 * MTU, 0.0)
    way.change(DirectionSpec(rate_mbit=0.8, delay_ms=5), TICK)
    # the second leaves ten times as slowly, and may not overtake the first on a shorter way
    second = max(TICK + 0.020, 11 * TICK + 0.005)
    assert [d.at for d in carry(way, [], now=TICK)[1]] == pytest.approx(
        [TICK + 0.020, second, 21 * TICK + 0.005]
    )


@pytest.mark.parametrize("limit", ["rate", "trace"])
def test_changes_do_not_begin_the_packet_at_the_head_anew(limit: str) -> None:
    carrier: dict[str, object] = {"rate_mbit": 0.1}
    if limit == "trace":  # a packet of two opportunities, which come every 60 ms from each change
        carrier = {"trace": Trace(name="t", opportunities_ms=(60,)), "mtu_bytes": 3_000}
    spec = DirectionSpec.model_validate(carrier)
    way = direction(spec)
    size = spec.mtu_bytes
    assert way.send("a", 3 * size, 0.0) == 3 * size
    found = []
    for tenth in range(1, 8):
        found += way.collect(tenth / 10)
        way.change(spec, tenth / 10)
    found += carry(way, [], now=0.7)[1]
    if limit == "rate":  # 120 ms each, however often it changes
        assert [d.at for d in found] == pytest.approx([0.120, 0.240, 0.360])
    else:  # at 60 ms, 160 ms, 260 ms, ...
        assert [d.at for d in found] == pytest.approx([0.160, 0.360, 0.560])


def test_the_share_that_has_left_counts_at_the_new_rate() -> None:
    way = direction(DirectionSpec(rate_mbit=0.1))
    way.send("a", MTU, 0.0)
    way.change(DirectionSpec(rate_mbit=0.2), 0.080)  # two thirds have left
    assert way.next_time() == pytest.approx(0.100)
    way.change(DirectionSpec(trace=Trace(name="t", opportunities_ms=(7, 9))), 0.090)
    assert [d.at for d in carry(way, [], now=0.090)[1]] == pytest.approx([0.097])


def test_nothing_leaves_during_outages_that_are_over_when_the_link_changes() -> None:
    way = direction(DirectionSpec(rate_mbit=0.1))
    way.send("a", MTU, 0.0)
    way.interrupt(0.010, 0.050)
    way.interrupt(0.070, 0.100)
    way.change(DirectionSpec(rate_mbit=0.1), 0.180)
    # 10 ms, 10 ms and 10 ms of the 120 have passed
    assert [d.at for d in carry(way, [], now=0.180)[1]] == pytest.approx([0.270])


def test_a_change_does_not_end_an_interruption() -> None:
    way = direction(EIGHT)
    way.interrupt(1.0, 10.0)
    way.send("a", MTU, 2.0)
    way.change(DirectionSpec(rate_mbit=0.8), 3.0)
    way.change(DirectionSpec(delay_ms=5), 4.0)
    assert [d.at for d in carry(way, [], now=4.0)[1]] == pytest.approx([11.005])
    way.change(EIGHT, 20.0)
    assert times(way, Offer(20.0, "a", MTU), now=20.0) == pytest.approx([20.0 + TICK + 0.020])


def test_a_change_begins_traces_and_outages_and_ends_the_old_ones() -> None:
    trace = Trace(name="t", opportunities_ms=(70, 100))
    spec = DirectionSpec(trace=trace, outages=(Outage(start_s=0.060, duration_s=0.020),))
    way = direction(spec)
    way.send("a", MTU, 0.0)
    way.change(spec, 0.065)
    assert way.next_time() == pytest.approx(0.165), "the opportunity at 135 ms is in the outage"
    way.change(DirectionSpec(), 0.130)
    assert way.next_time() == 0.130


def test_a_trace_gives_fifteen_hundred_bytes_an_opportunity() -> None:
    trace = Trace(name="t", opportunities_ms=(2, 2, 5, 10))
    found = times(direction(DirectionSpec(trace=trace)), Offer(0, "a", 6 * MTU))
    assert found == pytest.approx([0.002, 0.002, 0.005, 0.010, 0.012, 0.012])


def test_an_opportunity_is_shared_by_the_byte_and_lost_unused() -> None:
    trace = Trace(name="t", opportunities_ms=(1, 2, 3, 4, 10))
    way = direction(DirectionSpec(trace=trace))
    offers = [Offer(0.0015, "a", 1_000), Offer(0.0016, "b", 400), Offer(0.0017, "c", 200)]
    assert times(way, *offers) == pytest.approx([0.002, 0.002, 0.003])
    late = carry(way, [Offer(0.0035, "d", 10)], now=0.003)[1]
    assert late[0].at == pytest.approx(0.004), "what was left at 3 ms is gone"


def test_a_trace_goes_on_for_ever_at_its_average_rate() -> None:
    trace = Trace(name="t", opportunities_ms=tuple(range(1, 101)))  # 12 Mbit/s
    way = direction(DirectionSpec(trace=trace))
    found = times(way, Offer(1_000.0005, "a", 500 * MTU))
    assert found[-1] == pytest.approx(1_000.5, abs=1e-6)
    assert trace.mean_mbit == pytest.approx(12)


def test_an_outage_swallows_opportunities() -> None:
    trace = Trace(name="t", opportunities_ms=(1, 2, 3))
    spec = DirectionSpec(trace=trace, outages=(Outage(start_s=0.0015, duration_s=0.010),))
    assert times(direction(spec), Offer(0, "a", 2 * MTU)) == pytest.approx([0.001, 0.012])


def test_jitter_has_the_mean_the_spread_and_the_memory_it_was_given() -> None:
    spec = DirectionSpec(jitter_ms=10, jitter_memory_ms=100)
    jitter = Jitter(spec, np.random.default_rng(1))
    extra = np.array([jitter.at(n * 0.01) for n in range(100_000)])
    assert extra.min() >= 0
    assert extra.mean() == pytest.approx(0.010, rel=0.05)
    assert extra.std() == pytest.approx(0.010, rel=0.08)
    near = np.corrcoef(extra[:-1], extra[1:])[0, 1]
    far = np.corrcoef(extra[:-100], extra[100:])[0, 1]
    assert near > 0.85, "10 ms apart"
    assert abs(far) < 0.05, "a second apart"


def test_losses_are_as_frequent_as_told() -> None:
    noise = np.random.default_rng(2)
    loss = Loss(DirectionSpec(loss=0.02), 0.0, noise, noise)
    assert np.mean([loss.strikes(n * 1e-3) for n in range(50_000)]) == pytest.approx(0.02, rel=0.1)


def test_bursts_last_and_recur_as_told() -> None:
    spec = DirectionSpec(burst_loss=BurstLoss(good_ms=900, bad_ms=100, bad_loss=1))
    first, second = np.random.default_rng(3).spawn(2)
    loss = Loss(spec, 0.0, first, second)
    struck = np.array([loss.strikes(n * 1e-3) for n in range(1_000_000)])
    assert struck.mean() == pytest.approx(0.1, rel=0.15)
    bursts = np.count_nonzero(np.diff(struck.astype(int)) == 1)
    assert struck.sum() / bursts == pytest.approx(100, rel=0.15), "milliseconds"


def test_the_channel_is_bad_when_it_is_bad_whoever_looks() -> None:
    spec = DirectionSpec(burst_loss=BurstLoss(good_ms=50, bad_ms=50, bad_loss=1))
    often = Loss(spec, 0.0, *np.random.default_rng(4).spawn(2))
    seldom = Loss(spec, 0.0, *np.random.default_rng(4).spawn(2))
    struck = [often.strikes(n * 1e-3) for n in range(1_000)]
    assert [seldom.strikes(n * 1e-1) for n in range(10)] == struck[::100]


def test_a_seed_repeats_everything_and_another_does_not() -> None:
    offers = [Offer(n * 0.01, n % 3, 5_000) for n in range(300)]

    def run(seed: int) -> list[float]:
        link = Link(preset("lossy-wifi"), seed=seed)
        return [d.at for d in carry(link.up, offers)[1]]

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_change_with_a_seed_begins_all_chance_anew() -> None:
    spec = preset("lossy-wifi")
    offers = [Offer(n * 0.01, n % 3, 5_000) for n in range(300)]

    def run(link: Link, seed: int | None, start: float) -> tuple[list[float], list[float]]:
        link.change(spec, start, seed=seed)
        shifted = [Offer(start + at, flow, size) for at, flow, size in offers]
        up, down = (
            [d.at - start for d in carry(way, shifted, now=start)[1]]
            for way in (link.up, link.down)
        )
        assert up != down
        return up, down

    link = Link(spec, seed=1)
    first = run(link, 9, 0.0)
    other = run(link, 10, 1_000.0)
    unseeded = run(link, None, 2_000.0)
    again = run(link, 9, 3_000.0)
    for now, then in zip(again, first, strict=True):
        assert now == pytest.approx(then, abs=1e-6)
    assert first not in (other, unseeded)
    assert run(Link(spec, seed=1), 9, 0.0) == run(Link(spec, seed=2), 9, 0.0) == first


def test_the_two_ways_of_a_link_have_chance_of_their_own() -> None:
    link = Link(LinkSpec(up=DirectionSpec(jitter_ms=5), down=DirectionSpec(jitter_ms=5)), seed=1)
    offers = [Offer(n * 0.1, "a", 10) for n in range(5)]
    assert carry(link.up, offers)[1] != carry(link.down, offers)[1]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_carries_a_megabyte_and_says_where_it_is_from(name: str) -> None:
    spec = preset(name)
    assert spec == preset(name)
    assert PRESETS[name].source
    for way in (Link(spec, seed=1).up, Link(spec, seed=1).down):
        taken, found = carry(way, [Offer(0, "a", 1_000_000)])
        assert sum(t.size for t in taken) == sum(d.size for d in found) == 1_000_000


def test_an_unknown_preset_is_refused_with_the_list() -> None:
    with pytest.raises(LinkError, match=r"'6g'.*loopback.*train"):
        preset("6g")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"up": {"rate": 3}}, "link.up.rate"),
        ({"sideways": {}}, "link.sideways"),
        ({"down": {"rate_mbit": 0}}, "link.down.rate_mbit"),
        ({"down": {"rate_mbit": math.nan}}, "link.down.rate_mbit"),
        ({"up": {"delay_ms": -1}}, "link.up.delay_ms"),
        ({"up": {"delay_ms": math.inf}}, "link.up.delay_ms"),
        ({"up": {"loss": 1}}, "link.up.loss"),
        ({"up": {"queue_bytes": 1_000}}, "hold no packet of 1500"),
        ({"up": {"window_bytes": 1_000}}, "hold no packet of 1500"),
        ({"up": {"header_bytes": 1_500}}, "no payload"),
        ({"up": {"rate_mbit": 1, "trace": {"name": "t", "opportunities_ms": [1]}}}, "exclude"),
        ({"up": {"trace": {"name": "t", "opportunities_ms": []}}}, "link.up.trace"),
        ({"up": {"outages": [{"start_s": 0, "duration_s": 2, "every_s": 2}]}}, "again before"),
        ({"up": {"burst_loss": {"good_ms": 0, "bad_ms": 1}}}, "burst_loss.good_ms"),
    ],
)
def test_an_impossible_link_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LinkError, match=message):
        parse_link(fields)


def test_a_link_survives_json_and_changes_by_field() -> None:
    spec = preset("lossy-wifi")
    assert parse_link(spec.model_dump(mode="json")) == spec
    changed = change_link(spec, up={"rate_mbit": 1.0})
    assert changed.up.rate_mbit == 1.0
    assert changed.down == spec.down
    with pytest.raises(ValidationError):
        setattr(spec.up, "loss", 0.5)  # noqa: B010  frozen


@pytest.mark.parametrize("way", ["trace", "rate"])
def test_outages_that_leave_no_room_hold_bytes_long_but_not_for_ever(way: str) -> None:
    never = (
        Outage(start_s=0, duration_s=0.4, every_s=0.6),
        Outage(start_s=0.3, duration_s=0.4, every_s=0.6),
    )
    carrier = (
        {"trace": Trace(name="slow", opportunities_ms=(600,))}
        if way == "trace"
        else {"rate_mbit": 1.0}
    )
    spec = DirectionSpec(outages=never, **carrier)
    link = LinkDirection(spec, np.random.default_rng(0))
    assert link.send("flow", 1_000, 0.0) == 1_000
    assert 3_600 < link.next_time() < 20_000
