"""Finished measurements, one JSON line each, so that a run that was stopped goes on.

``settings.json`` beside it says what decided them; a run with other settings is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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

    Raises:
        ConfigurationError: the folder holds measurements made with other settings, or something
            that is no journal.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path = folder / MEASUREMENTS_NAME
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder, dict(settings))
        self._records: dict[Key, Record] = {}
        self._read()

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

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __getitem__(self, key: Key) -> Record:
        return self._records[key]

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: Key) -> Record | None:
        """What was measured, if it was."""
        return self._records.get(key)

    def add(self, key: Key, record: Record) -> None:
        """Append a measurement; it is on the disk when this returns."""
        assert key not in self._records
        self._file.write(json.dumps({"key": list(key), **record}, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._records[key] = record

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
                record = json.loads(line)
                key = tuple(str(part) for part in record.pop("key"))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ConfigurationError(
                    f"{self._path}, line {number} is no measurement: name another --out"
                ) from None
            self._records[key] = record
        if len(whole) < len(raw):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS_NAME
    if not path.exists():
        if (folder / MEASUREMENTS_NAME).exists():
            raise ConfigurationError(f"{folder} has measurements but no {SETTINGS_NAME}")
        part = path.with_suffix(".part")
        part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from None
    names = sorted(n for n in old.keys() | settings.keys() if old.get(n) != settings.get(n))
    if names:
        changed = ", ".join(f"{n} was {old.get(n)!r}, is {settings.get(n)!r}" for n in names)
        raise ConfigurationError(
            f"{folder} holds measurements with other settings ({changed}): go on with the same "
            "settings, or name another --out"
        )
