"""What the benchmark of the shaped link says of its promises, from figures that are made up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import shaped_link
from benchmarks.shaped_link import Row, kernel_rows
from shared.errors import ConfigurationError

KEPT = (
    Row("round trip, ms", 20.0, 20.9, 0.9, "ms", bound=1.0),
    Row("rate up, Mbit/s", 10.0, 9.71, -2.9, "%", bound=3.0),
    Row("tbf, frames at 20", 19.0, 21.0, 10.0, "%"),
)
BROKEN = (
    Row("round trip, ms", 50.0, 51.2, 1.2, "ms", bound=1.0),
    Row("rate down, Mbit/s", 200.0, 193.0, -3.5, "%", bound=3.0),
)


def measured(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> None:
    def run(*_: float, **__: bool) -> list[Row]:
        return list(rows)

    monkeypatch.setattr(shaped_link, "run", run)
    monkeypatch.setenv("COLUMNS", "80")


def test_every_row_says_whether_its_promise_was_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, *KEPT, *BROKEN)
    assert shaped_link.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [("kept" in line, "BROKEN" in line) for line in lines[1:6]] == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
        (False, True),
    ]
    assert "±1 kept" in lines[1]
    assert "±3 kept" in lines[2]
    assert lines[6] == "promises kept: 2 of 4"


@pytest.mark.parametrize("broken", BROKEN)
def test_strict_fails_when_a_promise_was_not_kept(
    monkeypatch: pytest.MonkeyPatch, broken: Row, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, *KEPT)
    assert shaped_link.main(["--strict"]) == 0
    measured(monkeypatch, *KEPT, broken)
    capsys.readouterr()
    assert shaped_link.main(["--strict", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] is False
    assert [row["kept"] for row in found["rows"]] == [True, True, None, False]


def test_rates_are_promised_up_to_200_mbit() -> None:
    assert [shaped_link._rate_row("r", rate, rate).kept for rate in (200.0, 201.0)] == [True, None]
    assert shaped_link._rate_row("tbf", 2.0, 2.0, promised=False).kept is None


def test_a_kernel_that_does_not_shape_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def refuse(*_: Any) -> Iterator[str]:
        raise subprocess.CalledProcessError(2, ["tc", "add"], b"", b"Error: unknown qdisc.\nBye.\n")
        yield ""

    monkeypatch.setattr(shaped_link, "shaped_by_kernel", refuse)
    proxy: Any = None
    with pytest.raises(ConfigurationError, match="--kernel: tc add failed: Error: unknown qdisc"):
        list(kernel_rows(proxy, 1.0))

    def run(*_: float, **__: bool) -> list[Row]:
        return list(kernel_rows(proxy, 1.0))

    monkeypatch.setattr(shaped_link, "run", run)
    monkeypatch.setattr(shaped_link, "available", lambda: True)
    assert shaped_link.main(["--kernel"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
