"""Any link, any traffic: in order, all of it, never early, never faster than the link."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.link_flow import Delivery
from simulator.link_spec import BurstLoss, DirectionSpec, Outage
from simulator.packet_trace import Trace
from tests.link_harness import Offer, Taken, carry, direction

SLACK = 1e-9  # seconds: sums of floats

traces = st.lists(st.integers(0, 40), min_size=1, max_size=12).map(
    lambda gaps: Trace(
        name="drawn",
        opportunities_ms=tuple(1 + sum(gaps[: index + 1]) for index in range(len(gaps))),
    )
)
outages = st.builds(
    Outage,
    start_s=st.floats(0, 1),
    duration_s=st.floats(0.01, 0.5),
    every_s=st.none() | st.floats(0.6, 3),
)
bursts = st.builds(
    BurstLoss,
    good_ms=st.floats(10, 500),
    bad_ms=st.floats(1, 100),
    bad_loss=st.floats(0.1, 1),
)


@st.composite
def specs(draw: st.DrawFn, *, clean: bool = False) -> DirectionSpec:
    """A direction; ``clean`` has no jitter and no loss, and a queue that is never full."""
    mtu = draw(st.integers(64, 1_600))
    limit = draw(st.sampled_from(["none", "rate", "trace"]))
    fields: dict[str, object] = {}
    if not clean:
        fields = {
            "jitter_ms": draw(st.sampled_from([0.0, 3.0, 40.0])),
            "jitter_memory_ms": draw(st.sampled_from([1.0, 200.0])),
            "loss": draw(st.sampled_from([0.0, 0.05, 0.4])),
            "burst_loss": draw(st.none() | bursts),
            "queue_bytes": draw(st.integers(mtu, 20 * mtu)),
            "window_bytes": draw(st.integers(mtu, 40 * mtu)),
        }
    return DirectionSpec.model_validate(
        fields
        | {
            "delay_ms": draw(st.floats(0, 80)),
            "rate_mbit": draw(st.floats(0.2, 50)) if limit == "rate" else None,
            "trace": draw(traces) if limit == "trace" else None,
            "outages": draw(st.lists(outages, max_size=2)),
            "mtu_bytes": mtu,
            "header_bytes": draw(st.integers(0, 40)),
        }
    )


offers = st.lists(
    st.builds(Offer, st.floats(0, 2), st.sampled_from("abc"), st.integers(1, 12_000)),
    min_size=1,
    max_size=12,
)


def ends(steps: Sequence[Taken | Delivery]) -> dict[Hashable, list[tuple[int, float]]]:
    """Per flow: (bytes up to and including this step, when)."""
    found: dict[Hashable, list[tuple[int, float]]] = defaultdict(list)
    for step in steps:
        before = found[step.flow][-1][0] if found[step.flow] else 0
        found[step.flow].append((before + step.size, step.at))
    return found


@settings(derandomize=True)
@given(specs(), offers, st.integers(0, 2**32))
def test_bytes_come_in_order_and_none_is_lost(
    spec: DirectionSpec, sent: list[Offer], seed: int
) -> None:
    way = direction(spec, back_ms=10, seed=seed)
    taken, found = carry(way, sent)
    wanted: dict[Hashable, int] = defaultdict(int)
    for offer in sent:
        wanted[offer.flow] += offer.size
    assert {flow: steps[-1][0] for flow, steps in ends(taken).items()} == wanted
    assert {flow: steps[-1][0] for flow, steps in ends(found).items()} == wanted
    for steps in ends(found).values():
        moments = [at for _, at in steps]
        assert moments == sorted(moments)
    assert way.counts.delivered_bytes == way.counts.sent_bytes == sum(wanted.values())
    assert way.counts.retransmitted == way.counts.lost + way.counts.dropped


@settings(derandomize=True)
@given(specs(), offers, st.integers(0, 2**32))
def test_no_byte_is_early(spec: DirectionSpec, sent: list[Offer], seed: int) -> None:
    taken, found = carry(direction(spec, back_ms=10, seed=seed), sent)
    entries = ends(taken)
    for flow, steps in ends(found).items():
        before = 0
        for upto, at in steps:
            entered = next(t for end, t in entries[flow] if end > before)
            wire = upto - before + spec.header_bytes
            serialised = wire * 8e-6 / spec.rate_mbit if spec.rate_mbit else 0.0
            assert at >= entered + spec.delay_ms / 1e3 + serialised - SLACK
            before = upto


@settings(derandomize=True)
@given(specs(), offers, st.integers(0, 2**32))
def test_the_rate_is_never_exceeded_in_sum(
    spec: DirectionSpec, sent: list[Offer], seed: int
) -> None:
    _, found = carry(direction(spec, back_ms=10, seed=seed), sent)
    begin = min(offer.at for offer in sent)
    total = 0
    for _, size, at in sorted(found, key=lambda delivery: delivery.at):
        total += size + spec.header_bytes
        elapsed = at - begin - spec.delay_ms / 1e3
        assert total <= carried_at_most(spec, begin, elapsed) + 1e-3


@settings(derandomize=True)
@given(specs(clean=True), offers)
def test_the_rate_is_never_exceeded_over_any_interval(
    spec: DirectionSpec, sent: list[Offer]
) -> None:
    _, found = carry(direction(spec), sent)
    for first in range(0, len(found), max(1, len(found) // 8)):
        total = 0
        for _, size, at in found[first:]:
            total += size + spec.header_bytes
            begin = found[first].at - spec.delay_ms / 1e3
            # the first packet's own bytes were on their way before
            assert (
                total <= carried_at_most(spec, begin, at - found[first].at) + spec.mtu_bytes + 1e-3
            )


@settings(derandomize=True)
@given(specs(), offers, st.lists(st.floats(0, 5), max_size=20), st.integers(0, 2**32))
def test_looking_more_often_changes_nothing(
    spec: DirectionSpec, sent: list[Offer], looks: list[float], seed: int
) -> None:
    calm = carry(direction(spec, back_ms=10, seed=seed), sent)[1]
    nervous = carry(direction(spec, back_ms=10, seed=seed), sent, looks)[1]
    assert sorted(calm, key=lambda d: (d.at, str(d.flow))) == sorted(
        nervous, key=lambda d: (d.at, str(d.flow))
    )


@settings(derandomize=True)
@given(
    st.lists(specs(), min_size=1, max_size=4),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=3),
    st.lists(st.tuples(st.floats(0.001, 0.5), st.none() | st.floats(0.01, 2)), max_size=8),
    st.integers(0, 2**32),
)
def test_changes_and_interruptions_lose_nothing(
    drawn: list[DirectionSpec],
    sizes: list[int],
    steps: list[tuple[float, float | None]],
    seed: int,
) -> None:
    way = direction(drawn[0], back_ms=10, seed=seed)
    now = 0.0
    taken = [way.send(flow, size, now) for flow, size in enumerate(sizes)]
    found: list[Delivery] = []
    for number, (wait, outage) in enumerate(steps):
        now += wait
        found += way.collect(now)
        if outage is None:
            way.change(drawn[number % len(drawn)], now, back_ms=number)
        else:
            way.interrupt(now, outage)
    found += carry(way, [], now=now)[1]
    arrived = {flow: steps[-1][0] for flow, steps in ends(found).items()}
    assert arrived == {flow: size for flow, size in enumerate(taken) if size}


@settings(derandomize=True)
@given(
    specs(clean=True).filter(lambda spec: spec.trace is None),
    st.lists(st.integers(1, 12_000), min_size=1, max_size=3),
    st.lists(st.tuples(st.floats(0.0001, 0.2), st.none() | st.floats(0.01, 2)), max_size=8),
)
def test_changing_to_the_same_changes_nothing(
    spec: DirectionSpec, sizes: list[int], steps: list[tuple[float, float | None]]
) -> None:
    spec = spec.model_copy(update={"outages": ()})  # these would begin anew
    steady, changed = direction(spec), direction(spec)
    for way, changes in ((steady, False), (changed, True)):
        now = 0.0
        for flow, size in enumerate(sizes):
            way.send(flow, size, now)
        for wait, outage in steps:
            now += wait
            if outage is not None:
                way.interrupt(now, outage)
            elif changes:
                way.change(spec, now)
    wanted, found = (carry(way, [], now=now)[1] for way in (steady, changed))
    assert [(d.flow, d.size) for d in found] == [(d.flow, d.size) for d in wanted]
    assert all(abs(a.at - b.at) < 1e-6 for a, b in zip(found, wanted, strict=True))


def carried_at_most(spec: DirectionSpec, begin: float, seconds: float) -> float:
    """Bytes that the link can carry in ``seconds`` from ``begin``."""
    if spec.rate_mbit is not None:
        return spec.rate_mbit * 1e6 / 8 * seconds
    if spec.trace is None:
        return float("inf")
    period = spec.trace.opportunities_ms[-1]
    opportunities = 0
    for number in range(int((begin + seconds) * 1e3 / period) + 2):
        for time in spec.trace.opportunities_ms:
            at = (number * period + time) / 1e3
            opportunities += begin - SLACK <= at <= begin + seconds + SLACK
    return opportunities * 1_500.0
