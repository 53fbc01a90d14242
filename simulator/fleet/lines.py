"""What lies between an edge and its replica: messages go in at a time, and are told of there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from simpy.events import Event

from simulator.fleet.events import call_at
from simulator.fleet.ways import PacketWay, PlainWay

if TYPE_CHECKING:
    from simulator.fleet.asked import Asked
    from simulator.fleet.cloud_side import CloudSide, Question
    from simulator.fleet.group import Group
    from simulator.fleet.simulated_edge import SimulatedEdge


class Lines(Protocol):
    """Both ways of one edge's link.  What comes back is told to the edge with the time when it is
    there, and perhaps before: the edge's time is its own."""

    plain: bool  # in closed form

    def open(self, edge: SimulatedEdge, session: CloudSide, at: float) -> None:
        """Ask for a session."""
        ...

    def send_question(
        self, edge: SimulatedEdge, session: CloudSide, asked: Asked, size: float
    ) -> None:
        """A question behind its context, ``size`` bytes together."""
        ...

    def send_confirmation(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, size: float
    ) -> None:
        """Context alone."""
        ...

    def send_reply(
        self,
        edge: SimulatedEdge,
        session: CloudSide,
        position: int,
        agreed: bool,
        at: float,
        took: float,
    ) -> None:
        """The answer to a question, on its way back."""
        ...

    def send_burst(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, took: float
    ) -> None:
        """A token of a burst."""
        ...

    def send_ahead(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, took: float
    ) -> None:
        """A token that nobody asked for yet."""
        ...

    def unsend(self, asked: Asked) -> None:
        """``asked``, and what came after it, was not sent after all."""
        ...


class PlainLines:
    """A link in closed form: only what arrives at the cloud is an event."""

    __slots__ = ("_down", "_group", "_up")
    plain = True

    def __init__(self, group: Group, up: PlainWay, down: PlainWay) -> None:
        self._group, self._up, self._down = group, up, down

    def open(self, edge: SimulatedEdge, session: CloudSide, at: float) -> None:
        """See :class:`Lines`."""
        group = self._group
        there = self._up.arrival(at + group.message, group.sizes.open)
        there += session.replica.turnaround
        back = self._down.arrival(there, group.sizes.opened) + group.message
        edge.session_opened(session, back, at)

    def send_question(
        self, edge: SimulatedEdge, session: CloudSide, asked: Asked, size: float
    ) -> None:
        """See :class:`Lines`.  Context goes up while its stretch is drafted."""
        up, group = self._up, self._group
        asked.busy, asked.last = up.busy, up.last
        begun = asked.start
        if asked.begin and asked.question.guessed:  # a token's own hidden state comes first
            begun += group.first_context
        begun = begun if begun > edge.opened else edge.opened
        at = asked.at + group.message
        reading = group.reading if asked.question.guessed else 0.0
        last = size if asked.begin == asked.index else group.last_bytes
        arrival = up.stretch(begun, at - reading, at, size, last)
        call_at(group.env, arrival, session.heard, asked.question)

    def send_confirmation(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, size: float
    ) -> None:
        """See :class:`Lines`."""
        assert session is edge.session
        arrival = self._up.arrival(at + self._group.message, size)
        call_at(self._group.env, arrival, session.confirm, position)

    def send_reply(
        self,
        edge: SimulatedEdge,
        session: CloudSide,
        position: int,
        agreed: bool,
        at: float,
        took: float,
    ) -> None:
        """See :class:`Lines`."""
        group = self._group
        there = self._down.arrival(at, group.sizes.decision) + group.message
        edge.heard(session, position, agreed, there, took)

    def send_burst(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, took: float
    ) -> None:
        """See :class:`Lines`."""
        group = self._group
        there = self._down.arrival(at, group.sizes.decision) + group.message
        edge.burst_heard(session, position, there, took)

    def send_ahead(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, took: float
    ) -> None:
        """See :class:`Lines`."""
        group = self._group
        there = self._down.arrival(at, group.sizes.ahead) + group.message
        edge.heard_ahead(session, session.line, position, there, took)

    def unsend(self, asked: Asked) -> None:
        """See :class:`Lines`."""
        self._up.busy, self._up.last = asked.busy, asked.last


class PacketLines:
    """A link packet by packet: every message is events, both ways."""

    __slots__ = ("_down", "_group", "_up")
    plain = False

    def __init__(self, group: Group, up: PacketWay, down: PacketWay) -> None:
        self._group, self._up, self._down = group, up, down

    def open(self, edge: SimulatedEdge, session: CloudSide, at: float) -> None:
        """See :class:`Lines`."""
        call_at(self._group.env, at + self._group.message, self._open, (edge, session, at))

    def _open(self, event: Event) -> None:
        self._up.send(self._group.sizes.open, self._opening, event.value)

    def _opening(self, now: float, value: Any) -> None:
        _, session, _ = value
        call_at(self._group.env, now + session.replica.turnaround, self._open_back, value)

    def _open_back(self, event: Event) -> None:
        self._down.send(self._group.sizes.opened, self._opened, event.value)

    def _opened(self, now: float, value: Any) -> None:
        edge, session, since = value
        edge.session_opened(session, now + self._group.message, since)

    def send_question(
        self, edge: SimulatedEdge, session: CloudSide, asked: Asked, size: float
    ) -> None:
        """See :class:`Lines`."""
        value = (edge, session, asked.question, size)
        call_at(self._group.env, asked.at + self._group.message, self._ask, value)

    def _ask(self, event: Event) -> None:
        edge, session, question, size = event.value  # type: ignore[misc]
        if session is edge.session and question.epoch == edge.epoch:
            self._up.send(size, self._asked, (session, question))

    def _asked(self, _now: float, value: tuple[CloudSide, Question]) -> None:
        session, question = value
        session.hear(question)

    def send_confirmation(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, size: float
    ) -> None:
        """See :class:`Lines`."""
        value = (edge, session, position, size)
        call_at(self._group.env, at + self._group.message, self._confirm, value)

    def _confirm(self, event: Event) -> None:
        edge, session, position, size = event.value  # type: ignore[misc]
        if session is edge.session:
            self._up.send(size, self._confirmed, (session, position))

    def _confirmed(self, now: float, value: tuple[CloudSide, int]) -> None:
        session, position = value
        call_at(self._group.env, now, session.confirm, position)

    def send_reply(
        self,
        edge: SimulatedEdge,
        session: CloudSide,
        position: int,
        agreed: bool,
        at: float,
        took: float,
    ) -> None:
        """See :class:`Lines`."""
        size = self._group.sizes.decision
        self._send_back(edge.heard, at, size, (session, position, agreed), took)

    def send_burst(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, took: float
    ) -> None:
        """See :class:`Lines`."""
        size = self._group.sizes.decision
        self._send_back(edge.burst_heard, at, size, (session, position), took)

    def send_ahead(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, took: float
    ) -> None:
        """See :class:`Lines`."""
        size = self._group.sizes.ahead
        self._send_back(edge.heard_ahead, at, size, (session, session.line, position), took)

    def _send_back(
        self, tell: Any, at: float, size: int, about: tuple[Any, ...], took: float
    ) -> None:
        call_at(self._group.env, at, self._back, (tell, size, about, took))

    def _back(self, event: Event) -> None:
        tell, size, about, took = event.value  # type: ignore[misc]
        self._down.send(size, self._told, (tell, about, took))

    def _told(self, now: float, value: tuple[Any, tuple[Any, ...], float]) -> None:
        tell, about, took = value
        tell(*about, now + self._group.message, took)

    def unsend(self, asked: Asked) -> None:
        """Nothing to do: what is taken back before its time is never sent."""
