"""Configuration files: a table in TOML or JSON, and the first thing that is wrong with it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import ConfigurationError


def read_table(path: Path) -> dict[str, Any]:
    """The table in ``path``, by its ending; raise :class:`ConfigurationError`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{path} cannot be read: {reason}") from None
    try:
        match path.suffix:
            case ".toml":
                table: Any = tomllib.loads(text)
            case ".json":
                table = json.loads(text)
            case _:
                raise ConfigurationError(f"{path}: its name must end in .toml or .json")
    except ValueError as error:  # both parsers' errors are of this kind
        raise ConfigurationError(f"{path} cannot be parsed: {error}") from None
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path} holds no table of keys and values")
    return table


def first_problem(error: ValidationError) -> tuple[str, str]:
    """``(key, what is wrong)``; the value is left out, it might be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return key, "there is no such key"
    return key, first["msg"].removeprefix("Value error, ")
