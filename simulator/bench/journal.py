"""Finished measurements, one JSON line each, so that a run that was stopped goes on.

A run of the command that measures something writes a line ``{"session": …}`` before its first
measurement: the environment of those that follow.  ``settings.json`` beside the file says what
decided them; other settings are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.errors import ConfigurationError

SETTINGS_NAME = "settings.json"
MEASUREMENTS_NAME = "measurements.jsonl"

Key = tuple[str, ...]
Record = dict[str, Any]


class Journal:
    """The measurements in a folder, for the length of a ``with`` block.

    Args:
        settings: what measurements in one folder must share.
        session: the environment of this run; written down once something is measured in it.

    Raises:
        ConfigurationError: the folder holds measurements made with other settings, or something
            that is no journal.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], session: Mapping[str, Any]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._path = folder, folder / MEASUREMENTS_NAME
        self._settings, self._session = dict(settings), dict(session)
        self._records: dict[Key, Record] = {}
        self._sessions: list[Record] = []
        # measurements before the first line of a session are of one that nobody wrote down
        self._session_of: dict[Key, int | None] = {}
        self._mine: int | None = None
        self._read()
        _check_settings(folder, self._settings, bool(self._records))

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def __getitem__(self, key: Key) -> Record:
        return self._records[key]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._records)

    @property
    def sessions(self) -> tuple[Record, ...]:
        """Environments of the runs that measured something, in their order."""
        return tuple(self._sessions)

    def session_of(self, key: Key) -> int | None:
        """Index in :attr:`sessions` of the run that measured ``key``, where it is known."""
        return self._session_of[key]

    def add(self, key: Key, record: Record) -> None:
        """Append a measurement; it is on the disk when this returns."""
        assert key not in self._records
        if self._mine is None:
            _write_settings(self._folder, self._settings)
            self._write({"session": self._session})
            self._sessions.append(self._session)
            self._mine = len(self._sessions) - 1
        self._write({"key": list(key), **record})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._records[key] = record
        self._session_of[key] = self._mine

    def _write(self, line: Record) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _read(self) -> None:
        """Load what is there; a last line that was cut short by a power cut is cut off."""
        if not self._path.exists():
            return
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode("utf-8", "replace").split("\n"), start=1):
            if not line:
                continue
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ConfigurationError(
                    f"{self._path}, line {number} is no measurement: name another --out"
                ) from None
        if len(whole) < len(raw):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))

    def _take(self, line: Record) -> None:
        if line.keys() == {"session"}:
            self._sessions.append(dict(line["session"]))
            return
        key = tuple(str(part) for part in line.pop("key"))
        self._records[key] = line
        self._session_of[key] = len(self._sessions) - 1 if self._sessions else None


def _check_settings(folder: Path, settings: dict[str, Any], measured: bool) -> None:
    """Refuse other settings; where nothing is measured yet, they may change."""
    path = folder / SETTINGS_NAME
    if not path.exists():
        if measured:
            raise ConfigurationError(f"{folder} has measurements but no {SETTINGS_NAME}")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from None
    if not isinstance(old, dict) or (not measured and old.keys() != settings.keys()):
        # not to be overwritten: it may be somebody else's
        raise ConfigurationError(f"{path} does not hold a benchmark's settings: name another --out")
    names = sorted(n for n in old.keys() | settings.keys() if old.get(n) != settings.get(n))
    if measured and names:
        changed = ", ".join(f"{n} was {old.get(n)!r}, is {settings.get(n)!r}" for n in names)
        raise ConfigurationError(
            f"{folder} holds measurements with other settings ({changed}): go on with the same "
            "settings, or name another --out"
        )


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    part = (folder / SETTINGS_NAME).with_suffix(".part")
    part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / SETTINGS_NAME)
