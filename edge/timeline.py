"""What happened when in one answer, for whoever wants to draw it.

A generation is told nothing of it unless a :class:`Timeline` is handed in; without one it costs a
comparison.  All times are seconds of the generation's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.messages import Decision


@dataclass(frozen=True)
class EdgeWork:
    """The edge's model ran from ``start`` to ``stop``, with ``positions`` tokens in its context."""

    start: float
    stop: float
    positions: int


@dataclass(frozen=True)
class Upload:
    """At ``time`` context of ``count`` positions from ``position`` on, ``size`` bytes, was given
    to the transport; when it arrives the edge does not know."""

    time: float
    position: int
    count: int
    size: int


@dataclass(frozen=True)
class Wait:
    """The token at ``position`` was waited for; the cloud says it took ``cloud_seconds`` of it."""

    start: float
    stop: float
    position: int
    cloud_seconds: float


@dataclass
class Timeline:
    """The events of one answer, each list in the order of their ends."""

    work: list[EdgeWork] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)

    def edge_work(self, start: float, stop: float, positions: int) -> None:
        """Note a piece of the edge's own work."""
        self.work.append(EdgeWork(start, stop, positions))

    def upload(self, time: float, position: int, count: int, size: int) -> None:
        """Note a message of context on its way."""
        self.uploads.append(Upload(time, position, count, size))

    def wait(self, start: float, stop: float, decision: Decision) -> None:
        """Note a wait for ``decision``."""
        seconds = min(stop - start, decision.cloud_microseconds / 1e6)
        self.waits.append(Wait(start, stop, decision.position, seconds))
