"""Whatever bytes come as a command, it is one or it is refused; nothing else happens."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge.fleet_view import FleetView
from edge.mqtt_messages import (
    MAX_ERROR_LENGTH,
    Acknowledgement,
    BadCommandError,
    ErrorCode,
    read_command,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
NAMES = st.sampled_from(["set_controls", "reload", "drain", "ping"]) | st.text(max_size=12)
CONTROLS = st.sampled_from(["mode", "threshold", "max_tokens", "aim", "private", "x"])
COMMANDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text("abz09._:-", max_size=70) | JSON,
        "name": NAMES | JSON,
        "arguments": st.dictionaries(CONTROLS, JSON, max_size=4) | JSON,
        "more": JSON,
    },
)
PAYLOADS = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | COMMANDS.map(lambda value: json.dumps(value).encode())
)


@given(PAYLOADS)
def test_a_payload_is_a_command_or_refused(payload: bytes) -> None:
    refusal: BadCommandError | None = None
    try:
        command = read_command(payload)
    except BadCommandError as error:
        refusal = error
    if refusal is None:
        given_back: Any = json.loads(payload)
        assert set(given_back) <= {"id", "name", "arguments"}
        assert read_command(command.model_dump_json(exclude_unset=True).encode()) == command
        return
    message = str(refusal)
    assert message.isprintable()
    assert len(message) <= MAX_ERROR_LENGTH
    if refusal.command_id is not None:  # it can be answered
        Acknowledgement.refusal(refusal.command_id, ErrorCode.INVALID, message).payload()


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from(["status", "telemetry"]), PAYLOADS)))
def test_no_message_breaks_the_fleets_view(messages: list[tuple[str, str, bytes]]) -> None:
    view = FleetView("tandem", most=2)
    for edge_id, kind, payload in messages:
        view.feed(f"tandem/{edge_id}/{kind}", payload)
    assert len(view.rows()) <= 2
    view.table()
    json.dumps(view.as_records())
