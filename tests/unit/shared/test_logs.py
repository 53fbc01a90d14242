"""Log lines in both formats."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from cloud.held_session import SessionKey
from shared.logs import JsonFormatter, TextFormatter, about

KEY = SessionKey("alice", bytes(range(16)))


def record(event: str, extra: dict[str, object], *, fails: bool = False) -> logging.LogRecord:
    failure = None
    if fails:
        try:
            int("broken\nline")
        except ValueError:
            failure = sys.exc_info()
    made = logging.LogRecord("tandem.cloud", logging.INFO, __file__, 1, event, (), failure)
    made.created = 0.0625
    made.__dict__.update(extra)
    return made


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record("session opened", about(KEY, held=6), fails=True))
    assert "\n" not in line
    fields = json.loads(line)
    assert "ValueError: invalid literal" in fields.pop("exception")
    assert fields == {
        "time": "1970-01-01T00:00:00.062+00:00",
        "level": "info",
        "logger": "tandem.cloud",
        "event": "session opened",
        "session": "00010203",
        "tenant": "alice",
        "held": 6,
    }


def test_a_session_is_named_too_briefly_to_be_taken_over() -> None:
    line = JsonFormatter().format(record("x", about(KEY)))
    assert KEY.session_id.hex()[:10] not in line


def test_text_shows_the_fields_behind_the_event() -> None:
    line = TextFormatter().format(record("session opened", about(KEY, held=6)))
    assert line.endswith("INFO tandem.cloud session opened session=00010203 tenant=alice held=6")


def test_a_name_cannot_forge_a_line() -> None:
    key = SessionKey("eve\n2026-01-01 INFO tandem.cloud held=9", bytes(16))
    line = TextFormatter().format(record("session opened", about(key)))
    assert "\n" not in line
    assert r'tenant="eve\n2026' in line


def test_lines_of_others_have_no_fields() -> None:
    plain = record("a task failed", {})
    assert TextFormatter().format(plain).endswith("a task failed")
    assert json.loads(JsonFormatter().format(plain))["event"] == "a task failed"


def test_an_event_cannot_forge_a_line_or_steer_a_terminal() -> None:
    said = "refused: x\n2026-01-01 INFO tandem.cloud all is well\x1b[2J\x9b\u2028"
    line = TextFormatter().format(record(said, {}))
    assert line.endswith(r"x\n2026-01-01 INFO tandem.cloud all is well\x1b[2J\x9b\u2028")
    assert line.isprintable()


def test_a_traceback_keeps_its_lines_and_steers_nothing() -> None:
    def work() -> None:
        raise ValueError("broken\x1b[2J")

    with pytest.raises(ValueError, match="broken") as caught:
        work()
    failed = record("a task failed", {})
    failed.exc_info = caught.type, caught.value, caught.tb
    event, *trace = TextFormatter().format(failed).split("\n")
    assert event.endswith("a task failed")
    assert trace[-1] == r"ValueError: broken\x1b[2J"
    assert len(trace) > 2
