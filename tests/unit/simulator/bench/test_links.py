"""The networks of a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import LinkError
from simulator.bench.links import cell, choose_links, named, recorded, started_later
from simulator.link_spec import DirectionSpec, LinkSpec, Outage
from simulator.packet_trace import Trace


def test_a_cell_halves_the_round_trip_and_holds_a_bandwidth_delay_product() -> None:
    link = cell(100, 100)
    assert link.name == "100ms-100mbit"
    assert link.spec.up == link.spec.down
    assert (link.spec.up.delay_ms, link.spec.up.rate_mbit) == (50, 100)
    assert link.spec.up.queue_bytes == 1_250_000
    assert cell(0, 1).spec.up.queue_bytes == 256_000
    assert link.summary == "100 ms round trip, 100 Mbit/s up and down"


@pytest.mark.parametrize(("rtt", "rate"), [(-1, 10), (10, 0), (10, -5), (float("nan"), 10)])
def test_an_impossible_cell_is_refused(rtt: float, rate: float) -> None:
    with pytest.raises(LinkError, match=r"link\.up"):
        cell(rtt, rate)


def test_the_grid_comes_by_round_trip_then_presets_then_traces(tmp_path: Path) -> None:
    for name in ("phone.up", "phone.down"):
        (tmp_path / name).write_text("0\n5\n10\n")
    pair = (tmp_path / "phone.up", tmp_path / "phone.down")
    links = choose_links((0, 50), (1, 10), ("4g",), (pair,), 30)
    names = ["0ms-1mbit", "0ms-10mbit", "50ms-1mbit", "50ms-10mbit", "4g", "trace-phone"]
    assert [link.name for link in links] == names
    assert links[-1].spec.rtt_ms == 30
    with pytest.raises(LinkError, match="twice"):
        choose_links((50, 50), (1,), (), (), 0)
    with pytest.raises(LinkError, match="no preset"):
        choose_links((), (), ("5 tin cans",), (), 0)


def test_links_of_one_name_are_told_apart_by_their_fields(tmp_path: Path) -> None:
    up, down = tmp_path / "a.up", tmp_path / "a.down"
    up.write_text("1\n2\n")
    down.write_text("1\n2\n")
    one, again = recorded(up, down, 10), recorded(up, down, 10)
    assert one.identity == again.identity
    down.write_text("1\n3\n")
    assert recorded(up, down, 10).identity != one.identity


def test_a_trace_that_begins_later_is_the_same_trace() -> None:
    trace = Trace(name="t", opportunities_ms=(100, 200, 900, 1000))
    spec = LinkSpec(up=DirectionSpec(trace=trace))
    later = started_later(spec, 0.25).up.trace
    assert later is not None
    assert later.opportunities_ms == (650, 750, 850, 950, 1000)  # its length is its last time
    assert started_later(spec, 1.0).up.trace == trace  # a whole round
    exact = started_later(spec, 0.2).up.trace
    assert exact is not None
    assert exact.opportunities_ms == (700, 800, 900, 1000)


def test_outages_come_sooner_when_the_link_begins_later() -> None:
    outages = (Outage(start_s=20, duration_s=4, every_s=45), Outage(start_s=5, duration_s=1))
    spec = LinkSpec(up=DirectionSpec(outages=outages))
    assert [o.start_s for o in started_later(spec, 3).up.outages] == [17, 2]
    assert [o.start_s for o in started_later(spec, 30).up.outages] == [35]
    assert started_later(spec, 30).down == spec.down


def test_presets_describe_themselves() -> None:
    assert named("loopback").summary == "no delay, no limit"
    assert "with jitter and loss" in named("lossy-wifi").summary
