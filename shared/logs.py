"""What edge and cloud log: events with fields, as lines to read or as one JSON object a line.

An event is a constant text, and what differs from one to the next goes into fields, so lines can be
counted and searched.  Prompts, context, token ids and bearer tokens are never among them, unless
the user asked for prompts; a session is named by the start of its id, too little to take it over.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_ESCAPES = {code: repr(chr(code))[1:-1] for code in [*range(32), *range(127, 160), 0x2028, 0x2029]}
_PLAIN = re.compile(r"^[\w.:/@+-]+\Z", re.ASCII)


class Subject(Protocol):
    """What an event can be about, such as a session."""

    @property
    def log_fields(self) -> dict[str, object]:
        """What names it in a log."""


def about(subject: Subject | None = None, /, **fields: object) -> dict[str, Any]:
    """``extra`` of a logging call: what names the subject, then ``fields``."""
    named = {} if subject is None else subject.log_fields
    return {"fields": named | fields}


def configure_logging(level: str, form: LogFormat) -> None:
    """Log everything from ``level`` on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """``time level logger event key=value …``; values that could be misread are quoted, and control
    characters escaped, so that nothing that is logged forges a line or steers a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, without a traceback."""
        fields = (f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        return super().formatMessage(record).translate(_ESCAPES) + "".join(fields)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, on lines of its own."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(line.translate(_ESCAPES) for line in lines)


class JsonFormatter(logging.Formatter):
    """``time`` (ISO 8601, UTC), ``level``, ``logger``, ``event``, the fields, and ``exception``
    (a traceback) where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One object on one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.match(text) else json.dumps(text)
