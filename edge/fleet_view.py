"""What edges say over MQTT as rows and a table.  Whatever a topic carries, the table holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from edge.mqtt_messages import MAX_PAYLOAD_BYTES, Status, Telemetry
from edge.mqtt_settings import EDGE_ID
from shared.clock import Clock, monotonic

MAX_EDGES = 500
_LONG_SILENCE_SECONDS = 60.0
_STATE_STYLES = {"online": "green", "draining": "yellow", "offline": "red", "unknown": "dim"}
_LINK_STYLES = {"up": "green", "lost": "red"}
_LEFT = ("edge", "state", "mode", "link")
_RIGHT = ("tokens/s", "device", "round trip", "sent", "received", "answers", "age")


def printable(text: str, most: int = 200) -> str:
    """``text`` cut to ``most`` characters, with a mark for each that a terminal would act on."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in text[:most])
    return shown + "…" if len(text) > most else shown


@dataclass
class EdgeRow:
    """One edge, as far as it is known; ``heard_at`` on the view's clock, ``None`` where all that
    came is what the broker had kept."""

    edge_id: str
    status: Status | None = None
    telemetry: Telemetry | None = None
    heard_at: float | None = None
    faulty: int = field(default=0)

    @property
    def state(self) -> str:
        """``online``, ``draining``, ``offline`` or ``unknown``."""
        if self.status is None:
            return "unknown"
        if self.status.state == "online" and self.status.draining:
            return "draining"
        return self.status.state

    def as_record(self, now: float) -> dict[str, Any]:
        """For scripts: what the edge said, and seconds since (``age_seconds``)."""
        return {
            "edge": self.edge_id,
            "state": self.state,
            "age_seconds": None if self.heard_at is None else round(now - self.heard_at, 1),
            "status": self.status and self.status.model_dump(mode="json"),
            "telemetry": self.telemetry and self.telemetry.model_dump(mode="json"),
            "faulty_messages": self.faulty,
        }


class FleetView:
    """Takes messages, gives rows.  Edges past ``most`` are counted, not kept."""

    def __init__(self, prefix: str, clock: Clock = monotonic, most: int = MAX_EDGES) -> None:
        self._prefix, self._clock, self._most = f"{prefix}/", clock, most
        self._rows: dict[str, EdgeRow] = {}
        self.left_out = 0  # messages of edges for which there was no room

    def feed(self, topic: str, payload: bytes, *, retained: bool = False) -> None:
        """Take one message; what is not an edge's status or telemetry is ignored."""
        edge_id, _, kind = topic.removeprefix(self._prefix).partition("/")
        if kind not in ("status", "telemetry") or not EDGE_ID.fullmatch(edge_id):
            return
        if kind == "status" and not payload:  # somebody took it out of the broker
            self._rows.pop(edge_id, None)
            return
        row = self._rows.get(edge_id)
        if row is None:
            if len(self._rows) >= self._most:
                self.left_out += 1
                return
            row = self._rows[edge_id] = EdgeRow(edge_id)
        try:
            if len(payload) > MAX_PAYLOAD_BYTES:
                payload = b""  # no message either
            if kind == "status":
                row.status = Status.model_validate_json(payload)
            else:
                row.telemetry = Telemetry.model_validate_json(payload)
        except ValueError:  # pydantic's is one
            row.faulty += 1
            return
        if not retained:
            row.heard_at = self._clock()

    @property
    def complete(self) -> bool:
        """Whether every edge that is online has said how it fares."""
        return all(
            row.telemetry is not None or row.state == "offline" for row in self._rows.values()
        )

    def rows(self) -> list[EdgeRow]:
        """All edges, by name."""
        return [self._rows[edge_id] for edge_id in sorted(self._rows)]

    def as_records(self) -> list[dict[str, Any]]:
        """:meth:`rows` for scripts."""
        now = self._clock()
        return [row.as_record(now) for row in self.rows()]

    def table(self, note: str = "") -> Table:
        """The rows as a table, with ``note`` below."""
        now = self._clock()
        if self.left_out:
            note = f"{note}  more than {self._most} edges: some are not shown".strip()
        elif not self._rows:
            note = note or "no edge has said anything yet"
        table = Table(
            box=box.SIMPLE_HEAD,
            caption=Text(printable(note)) if note else None,
            caption_justify="left",
        )
        for name in _LEFT:
            table.add_column(name, overflow="fold")
        for name in _RIGHT:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows():
            table.add_row(*_cells(row, now))
        return table


def _cells(row: EdgeRow, now: float) -> list[Text]:
    """One row's cells, as text and never as markup."""
    said = row.telemetry
    mode = row.status.mode.value if row.status else "–"
    link = said.link if said else "–"
    cells = [
        Text(row.edge_id, "bold"),
        Text(row.state, _STATE_STYLES[row.state]),
        Text(mode),
        Text(link, _LINK_STYLES.get(link, "")),
    ]
    if said is None:
        cells += [Text("–", "dim")] * 6
    else:
        rate, share, trip = said.tokens_per_second, said.device_share, said.rtt_seconds
        cells += [
            Text("–" if rate is None else f"{min(rate, 999_999.0):.1f}"),
            Text("–" if share is None else f"{share:.0%}"),
            Text("–" if trip is None else f"{min(trip, 9_999.0) * 1000:.0f} ms"),
            Text(amount(said.uploaded_bytes)),
            Text(amount(said.downloaded_bytes)),
            Text(str(said.answers) if said.answers < 10**9 else f"{said.answers:.1e}"),
        ]
    if row.heard_at is None:
        return [*cells, Text("–", "dim")]
    age = max(0.0, now - row.heard_at)
    silent = age > _LONG_SILENCE_SECONDS and row.state != "offline"
    return [*cells, Text(duration(age), "yellow" if silent else "")]


def amount(count: int) -> str:
    """Bytes in a unit that keeps them short: ``640 B``, ``1.5 kB``, ``2.0 GB``."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    unit = next(units)
    while value >= 999.5 and unit != "EB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """``5 s``, ``3 min``, ``2 h``, ``4 d``."""
    for least, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= least:
            return f"{seconds / least:.0f} {unit}"
    return f"{seconds:.0f} s"
