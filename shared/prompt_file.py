"""JSONL files of prompts, as training, evaluation and benchmarks read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError


@dataclass(frozen=True)
class Exchange:
    """A prompt, and the answer where the file holds one."""

    prompt: str
    response: str | None = None


def read_exchanges(path: Path, limit: int | None = None) -> list[Exchange]:
    """Read lines with ``prompt`` (or ``turns``, of which the first is taken) and, if there is one,
    ``response``; stop after ``limit`` of them.

    Raises:
        ConfigurationError: an unreadable file, or a line that is none of that.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # U+2028 is text, not a line's end
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    exchanges: list[Exchange] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(exchanges) == limit:
            break
        if line.strip():
            exchanges.append(_exchange(line, f"{path}, line {number}"))
    if not exchanges:
        raise ConfigurationError(f"{path} holds no prompts")
    return exchanges


def _exchange(line: str, where: str) -> Exchange:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ConfigurationError(f"{where} is not a JSON object")
    turns = record.get("turns")
    prompt = record.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    response = record.get("response")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigurationError(f"{where} has no text under prompt or turns")
    if response is not None and not isinstance(response, str):
        raise ConfigurationError(f"{where}: response is not text")
    return Exchange(prompt, response)
