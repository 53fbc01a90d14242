"""Messages over MQTT, and the schema that is made from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edge.controls import Controls
from edge.generation import Mode
from edge.mqtt_messages import (
    MAX_ERROR_LENGTH,
    MAX_PAYLOAD_BYTES,
    Acknowledgement,
    BadCommandError,
    ControlChanges,
    ErrorCode,
    Reload,
    SetControls,
    Status,
    read_command,
)
from edge.mqtt_schema import schema_text

ROOT = Path(__file__).parents[3]
STATUS: dict[str, Any] = {
    "state": "online", "version": "1", "model": "m", "mode": "auto", "draining": False,
    "started": "2026-01-01T00:00:00Z",
}  # fmt: skip


def test_the_schema_in_docs_is_current() -> None:
    written = (ROOT / "docs/mqtt-schema.json").read_text(encoding="utf-8")
    assert written == schema_text() + "\n", "python -m edge.mqtt_schema > docs/mqtt-schema.json"


def test_the_command_that_makes_the_schema_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge.mqtt_schema"],
        capture_output=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.decode() == schema_text() + "\n"


def test_every_topic_has_a_schema_and_commands_take_nothing_unknown() -> None:
    schema = json.loads(schema_text())
    assert set(schema["properties"]) == {"status", "telemetry", "command", "acknowledgement"}
    definitions = schema["$defs"]
    for reference in schema["properties"]["command"]["oneOf"]:
        assert definitions[reference["$ref"].rpartition("/")[2]]["additionalProperties"] is False
    assert definitions["ControlChanges"]["additionalProperties"] is False
    assert set(definitions["ControlChanges"]["properties"]) == set(
        Controls(Mode.STANDALONE).as_record()
    )
    # readers ignore what a newer edge adds
    assert "additionalProperties" not in definitions["Status"]


def test_a_command_is_read_as_what_it_is() -> None:
    assert read_command(b'{"id": "1", "name": "reload"}') == Reload(id="1", name="reload")
    command = read_command(
        b'{"id": "1", "name": "set_controls", "arguments": {"mode": "auto", "threshold": null}}'
    )
    assert isinstance(command, SetControls)
    assert command.arguments.as_changes() == {"mode": "auto", "threshold": None}
    assert ControlChanges().as_changes() == {}


def test_a_complaint_is_one_printable_line_without_what_was_given() -> None:
    for payload in (
        {"id": "x", "name": "ping", "\x1b[31m\n": 1},
        {"id": "x", "name": "\x1b[31m"},
        {"id": "x", "name": "set_controls", "arguments": {"mode": "\x1b[31mtop secret"}},
        {"id": "x", "name": "set_controls", "arguments": {f"k{i}": 1 for i in range(200)}},
        {"id": "x", "name": "set_controls", "arguments": {"k" * 9000: 1}},
    ):
        with pytest.raises(BadCommandError) as caught:
            read_command(json.dumps(payload).encode())
        message = str(caught.value)
        assert caught.value.command_id == "x"
        assert message.isprintable()
        assert "top secret" not in message
        assert len(message) <= MAX_ERROR_LENGTH


def test_a_refusal_fits_a_message_however_long_its_reason() -> None:
    answer = Acknowledgement.refusal("x", ErrorCode.REFUSED, "no " * 10_000)
    assert len(answer.payload()) < MAX_PAYLOAD_BYTES
    assert Acknowledgement.model_validate_json(answer.payload()) == answer


def test_a_status_of_a_newer_edge_is_read_and_a_wrong_one_is_not() -> None:
    status = Status.model_validate_json(json.dumps(STATUS | {"colour": "blue"}))
    assert status.started == datetime(2026, 1, 1, tzinfo=UTC)
    assert Status.model_validate_json(status.payload()) == status
    for wrong in (
        {"state": "on"}, {"mode": "fast"}, {"draining": "no"}, {"model": "m" * 201},
        {"started": "2026-01-01T00:00:00"}, {"started": 1},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            Status.model_validate_json(json.dumps(STATUS | wrong))
