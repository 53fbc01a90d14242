"""``python -m edge.mqtt_schema > docs/mqtt-schema.json``: the messages as JSON Schema."""

from __future__ import annotations

import json

from pydantic.json_schema import models_json_schema

from edge.mqtt_messages import (
    Acknowledgement,
    Drain,
    Ping,
    Reload,
    SetControls,
    Status,
    Telemetry,
)

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_COMMANDS = (SetControls, Reload, Drain, Ping)


def schema_text() -> str:
    """The file's content: each message under ``$defs``, by topic under ``properties``."""
    _, schema = models_json_schema(
        [(model, "validation") for model in (Status, Telemetry, *_COMMANDS, Acknowledgement)],
        title="Tandem over MQTT",
        description="Each property is the last level of a topic; its value is a message's payload. "
        "Made by `python -m edge.mqtt_schema`.",
    )
    commands = [{"$ref": f"#/$defs/{model.__name__}"} for model in _COMMANDS]
    schema["type"] = "object"
    schema["properties"] = {
        "status": {"$ref": "#/$defs/Status"},
        "telemetry": {"$ref": "#/$defs/Telemetry"},
        "command": {"oneOf": commands},
        "acknowledgement": {"$ref": "#/$defs/Acknowledgement"},
    }
    return json.dumps({"$schema": _DIALECT} | schema, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    print(schema_text())
