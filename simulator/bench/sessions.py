"""Which runs of the command a report's measurements are from: on what, and by which code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.errors import ConfigurationError
from simulator.bench.environment import Environment
from simulator.bench.journal import Journal, Key
from simulator.bench.plan import Plan

_UNKNOWN = "a version that was not written down"


@dataclass(frozen=True)
class Session:
    """A run that measured something.

    ``environment`` is ``None`` where none was written down; ``measurements`` counts those asked
    about.
    """

    environment: Environment | None
    measurements: int

    @property
    def code(self) -> str:
        """The version of the code."""
        return _UNKNOWN if self.environment is None else self.environment.code

    def as_record(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        environment = None if self.environment is None else self.environment.as_record()
        return {"environment": environment, "measurements": self.measurements}


def sessions_of(plan: Plan, journal: Journal) -> tuple[Session, ...]:
    """The runs that the plan's measurements are from, in their order; unknown ones first."""
    return _sessions(journal, [task.key for task in plan.tasks() if task.key in journal])


def check_version(journal: Journal, environment: Environment) -> None:
    """Refuse to measure beside what another version of the code measured.

    Raises:
        ConfigurationError: the journal holds such measurements.
    """
    other = {s.code for s in _sessions(journal, list(journal)) if s.code != environment.code}
    if other:
        raise ConfigurationError(
            f"the measurements so far were made by {', '.join(sorted(other))}, this is "
            f"{environment.code}: name another --out, or add to them all the same with "
            "--mix-versions"
        )


def _sessions(journal: Journal, keys: list[Key]) -> tuple[Session, ...]:
    counts: dict[int | None, int] = {}
    for key in keys:
        number = journal.session_of(key)
        counts[number] = counts.get(number, 0) + 1
    known = [(number, record) for number, record in enumerate(journal.sessions) if number in counts]
    unknown = [Session(None, counts[None])] if None in counts else []
    return (
        *unknown,
        *(Session(Environment.from_record(record), counts[number]) for number, record in known),
    )
