"""Where the user's lines come from: a person with line editing and history, or a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Protocol

from shared.errors import ConfigurationError

_HISTORY_LINES = 1000


class Lines(Protocol):
    """Gives one line at a time, ``None`` after the last; raises ``KeyboardInterrupt``."""

    def read(self) -> str | None:
        """The next line, without its end."""
        ...


class PipedLines:
    """Standard input, line by line."""

    def read(self) -> str | None:
        """The next line; raises :class:`ConfigurationError` where it is no text."""
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise ConfigurationError("standard input is not UTF-8 text") from None
        return checked(line.rstrip("\r\n")) if line else None


class TypedLines:
    """A prompt sign with readline behind it, where Python has it.

    Args:
        history: file to begin with and to keep what was typed in; ``None`` keeps it in memory.
    """

    def __init__(self, history: Path | None = None) -> None:
        self._readline = _readline()
        self._history = history
        if history is not None and self._readline is None:
            raise ConfigurationError("this Python has no readline, so there is no --history")
        if self._readline is not None:
            self._readline.set_history_length(_HISTORY_LINES)
            if history is not None:
                _load(self._readline, history)

    def read(self) -> str | None:
        """The next line that is typed."""
        try:
            return checked(input("> "))
        except EOFError:
            print()
            return None
        except UnicodeDecodeError:
            raise ConfigurationError("that was not UTF-8 text") from None

    def close(self) -> None:
        """Write the history, if it has a file; for its owner's eyes alone."""
        if self._history is None or self._readline is None:
            return
        try:
            os.close(os.open(self._history, os.O_WRONLY | os.O_CREAT, 0o600))
            self._readline.write_history_file(self._history)
        except OSError as error:
            raise ConfigurationError(f"{self._history} cannot be written: {error}") from None


def checked(line: str) -> str:
    """``line``, if it is text; raises :class:`ConfigurationError`."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # surrogates stand for bytes that are not UTF-8
        raise ConfigurationError("that line is not UTF-8 text") from None
    return line


def _readline() -> ModuleType | None:
    """``readline``; importing it gives ``input`` line editing.  Windows has none."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: PLC0415

        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one question
        return readline
    return None


def _load(readline: ModuleType, history: Path) -> None:
    try:
        readline.read_history_file(history)
    except FileNotFoundError:
        if not history.parent.is_dir():
            raise ConfigurationError(f"there is no folder {history.parent}") from None
    except OSError as error:
        raise ConfigurationError(f"{history} cannot be read: {error}") from None
