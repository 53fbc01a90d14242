"""Traces: read, refused line by line, invented from a seed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from shared.errors import LinkError
from simulator.link_spec import DirectionSpec
from simulator.packet_trace import invent_trace, load_trace, save_trace
from tests.link_harness import Offer, carry, direction

TRACES = Path(os.environ.get("TANDEM_TRACES", "traces"))


def test_a_trace_file_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "t.up").write_text("0\n0\n\n3\r\n7\n")
    trace = load_trace(tmp_path / "t.up")
    assert (trace.name, trace.opportunities_ms) == ("t.up", (0, 0, 3, 7))
    save_trace(trace, tmp_path / "again")
    assert load_trace(tmp_path / "again").opportunities_ms == trace.opportunities_ms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "delivers nothing"),
        (b"\n\n", "delivers nothing"),
        (b"0\n0\n", "later than 0 ms"),
        (b"1\n-2\n", "line 2: '-2'"),
        (b"1\n2.5\n", "line 2: '2.5'"),
        (b"1\n5\n4\n", "line 3: 4 is earlier"),
        (b"1\n" + b"9" * 40 + b"\n", "line 2"),
        (b"\xff\xfe", "not text"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "bad").write_bytes(text)
    with pytest.raises(LinkError, match=message):
        load_trace(tmp_path / "bad")


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="cannot be read"):
        load_trace(tmp_path / "none")


def test_an_invented_trace_has_its_average_and_repeats_with_its_seed() -> None:
    def make(seed: int, spread: float = 0.8) -> tuple[int, ...]:
        trace = invent_trace(mean_mbit=6, spread=spread, memory_s=3, seconds=60, seed=seed)
        assert trace.mean_mbit == pytest.approx(6, rel=1e-3)
        assert trace.seconds == 60
        return trace.opportunities_ms

    assert make(1) == make(1) != make(2)
    steady = np.histogram(make(1, spread=0.0), bins=60)[0]
    moving = np.histogram(make(1), bins=60)[0]
    assert steady.std() < 2
    assert moving.max() > 3 * max(1, moving.min())


@pytest.mark.parametrize("wrong", [{"mean_mbit": 0}, {"spread": -1}, {"seconds": 0}])
def test_an_impossible_trace_is_not_invented(wrong: dict[str, int]) -> None:
    fields = {"mean_mbit": 1, "spread": 1, "memory_s": 1, "seconds": 10, "seed": 0} | wrong
    with pytest.raises(LinkError, match="above 0"):
        invent_trace(**fields)


@pytest.mark.skipif(not TRACES.is_dir(), reason="no recorded traces in TANDEM_TRACES")
def test_recorded_traces_carry_what_they_say() -> None:
    files = sorted(path for path in TRACES.iterdir() if path.suffix in {".up", ".down"})
    assert files
    for path in files:
        trace = load_trace(path)
        spec = DirectionSpec(trace=trace, queue_bytes=1 << 30, window_bytes=1 << 30)
        packets = len(trace.opportunities_ms)
        _, found = carry(direction(spec), [Offer(0, "a", packets * 1_500)])
        assert found[-1].at == pytest.approx(trace.seconds), path.name
