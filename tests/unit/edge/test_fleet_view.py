"""The fleet's table from messages, whatever they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from edge.fleet_view import FleetView, amount, duration, printable
from shared.clock import ManualClock
from tests.unit.edge.test_mqtt_messages import STATUS

TELEMETRY: dict[str, Any] = {
    "at": "2026-01-01T00:00:00Z", "link": "up", "active": 0, "waiting": 0,
    "tokens_per_second": 12.34, "device_share": 0.5, "rtt_seconds": 0.042, "answers": 3,
    "failures": 0, "cancellations": 0, "tokens": 60, "uploaded_bytes": 1_500_000,
    "downloaded_bytes": 640, "memory_bytes": None, "uptime_seconds": 5.0,
}  # fmt: skip


def said(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def text_of(view: FleetView) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(view.table())
    return capture.get()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def view(clock: ManualClock) -> FleetView:
    return FleetView("tandem", clock, most=3)


def test_a_row_shows_what_the_edge_said(view: FleetView, clock: ManualClock) -> None:
    view.feed("tandem/kitchen/status", said(STATUS), retained=True)
    assert not view.complete
    view.feed("tandem/kitchen/telemetry", said(TELEMETRY))
    assert view.complete
    clock.advance(7.0)
    (row,) = [line for line in text_of(view).splitlines() if "kitchen" in line]
    assert row.split() == [
        "kitchen", "online", "auto", "up", "12.3", "50%", "42", "ms", "1.5", "MB", "640", "B", "3",
        "7", "s",
    ]  # fmt: skip
    (record,) = view.as_records()
    assert (record["age_seconds"], record["telemetry"]["answers"]) == (7.0, 3)


def test_states(view: FleetView) -> None:
    view.feed("tandem/a/status", said(STATUS | {"state": "offline"}))
    view.feed("tandem/b/status", said(STATUS | {"draining": True}))
    view.feed("tandem/c/telemetry", said(TELEMETRY))
    assert [(row.edge_id, row.state) for row in view.rows()] == [
        ("a", "offline"), ("b", "draining"), ("c", "unknown"),
    ]  # fmt: skip


def test_what_the_broker_kept_has_no_age(view: FleetView) -> None:
    view.feed("tandem/a/status", said(STATUS), retained=True)
    assert view.as_records()[0]["age_seconds"] is None


def test_a_status_that_is_taken_out_takes_the_edge_out(view: FleetView) -> None:
    view.feed("tandem/a/status", said(STATUS))
    view.feed("tandem/a/status", b"")
    assert view.rows() == []


def test_edges_past_the_limit_are_counted_and_those_there_go_on(view: FleetView) -> None:
    for number in range(10):
        view.feed(f"tandem/edge-{number}/status", said(STATUS))
    view.feed("tandem/edge-1/telemetry", said(TELEMETRY))
    assert [row.edge_id for row in view.rows()] == ["edge-0", "edge-1", "edge-2"]
    assert view.rows()[1].telemetry is not None
    assert view.left_out == 7
    assert "more than 3 edges" in text_of(view)


@pytest.mark.parametrize(
    "topic",
    ["tandem/a", "tandem//status", "tandem/a/status/x", "other/a/status", "tandem/A/status",
     "tandem/a\x1b/status", "tandem/a/command", "", "$SYS/broker"],
)  # fmt: skip
def test_other_topics_are_nobodys(view: FleetView, topic: str) -> None:
    view.feed(topic, said(STATUS))
    assert view.rows() == []


@pytest.mark.parametrize(
    "payload",
    [b"x", b"\xff", b"[]", b"{}", b"[" * 10_000, said(STATUS) + b" " * 20_000,
     said(TELEMETRY | {"tokens_per_second": 1e400}), said(TELEMETRY | {"answers": -1}),
     said(TELEMETRY | {"answers": 10**400})],
)  # fmt: skip
def test_bad_payloads_are_counted_and_change_nothing(view: FleetView, payload: bytes) -> None:
    view.feed("tandem/a/status", said(STATUS))
    view.feed("tandem/a/telemetry", said(TELEMETRY))
    before = text_of(view)
    view.feed("tandem/a/status", payload)
    view.feed("tandem/a/telemetry", payload)
    assert text_of(view) == before
    assert view.rows()[0].faulty == 2


def test_the_largest_figures_fit(view: FleetView) -> None:
    huge = {"tokens_per_second": 1e300, "rtt_seconds": 1e300, "uptime_seconds": 1e300}
    counts = dict.fromkeys(("answers", "uploaded_bytes", "downloaded_bytes"), 2**63 - 1)
    view.feed("tandem/a/telemetry", said(TELEMETRY | huge | counts))
    (row,) = [line for line in text_of(view).splitlines() if "9.2" in line]
    assert len(row) < 140


def test_units() -> None:
    assert [amount(n) for n in (0, 999, 1000, 1_500, 999_960, 2 * 10**9, 2**63)] == [
        "0 B", "999 B", "1.0 kB", "1.5 kB", "1.0 MB", "2.0 GB", "9.2 EB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.2, 59, 60, 7200, 200_000)] == [
        "0 s", "59 s", "1 min", "2 h", "2 d",
    ]  # fmt: skip


def test_what_a_terminal_would_act_on_is_marked() -> None:
    assert printable("a\x1b[31mb\u202ec\u200bd\ne") == "a\ufffd[31mb\ufffdc\ufffdd\ufffde"
    assert printable("x" * 300) == "x" * 200 + "…"
    assert printable("Küche 日本") == "Küche 日本"
