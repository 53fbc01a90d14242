"""JSON as events carry it."""

from __future__ import annotations

import json

from edge.http_stream import to_json


def test_nothing_that_some_take_for_the_end_of_a_line_is_sent() -> None:
    value = {"text": "a\u2028b\u2029c\r\nd\\u2028 ü"}
    sent = to_json(value)
    assert len(sent.splitlines()) == 1
    assert json.loads(sent) == value
    assert "ü" in sent
