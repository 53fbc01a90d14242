"""What lies between an edge and its replica: messages go in at a time, and are told of there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from simulator.fleet.ways import PacketWay, PlainWay

if TYPE_CHECKING:
    from simulator.fleet.cloud_side import CloudSide
    from simulator.fleet.group import Group
    from simulator.fleet.question import Question
    from simulator.fleet.simulated_edge import SimulatedEdge


class Lines(Protocol):
    """Both ways of one edge's link.  What comes back is told to the edge with the time when it is
    there, and perhaps before: the edge's time is its own."""

    plain: bool  # in closed form

    def open(self, edge: SimulatedEdge, session: CloudSide, at: float) -> None:
        """Ask for a session."""
        ...

    def send_question(
        self, edge: SimulatedEdge, session: CloudSide, question: Question, size: float
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

    def unsend(self, question: Question) -> None:
        """``question``, and what came after it, was not sent after all."""
        ...


class PlainLines:
    """A link in closed form: only what arrives at the cloud is an event."""

    __slots__ = ("_call_at", "_down", "_group", "_up")
    plain = True

    def __init__(self, group: Group, up: PlainWay, down: PlainWay) -> None:
        self._group, self._up, self._down = group, up, down
        self._call_at = group.env.call_at

    def open(self, edge: SimulatedEdge, session: CloudSide, at: float) -> None:
        """See :class:`Lines`."""
        group = self._group
        there = self._up.arrival(at + group.message, group.sizes.open)
        there += session.replica.turnaround
        back = self._down.arrival(there, group.sizes.opened) + group.message
        edge.session_opened(session, back, at)

    def send_question(
        self, edge: SimulatedEdge, session: CloudSide, question: Question, size: float
    ) -> None:
        """See :class:`Lines`.  Context goes up while its stretch is drafted."""
        up, group = self._up, self._group
        question.busy, question.last = up.busy, up.last
        begun, ended = question.start, question.at + group.message
        at = ended
        if question.guessed:
            ended -= group.reading
            if question.begin:  # a token's own hidden state comes first
                begun += group.first_context
        if begun < edge.opened:  # noqa: PLR1730  (max takes three times as long)
            begun = edge.opened
        last = size if question.begin == question.index else group.last_bytes
        question.arrival = arrival = up.stretch(begun, ended, at, size, last)
        # of what is on its way to one session only the first is an event
        inbox = session.inbox
        while inbox and inbox[-1].arrival > arrival:  # not sent after all, and overtaken
            inbox.pop()
        inbox.append(question)
        if len(inbox) == 1:
            self._call_at(arrival, session.arrive, question)

    def send_confirmation(
        self, edge: SimulatedEdge, session: CloudSide, position: int, at: float, size: float
    ) -> None:
        """See :class:`Lines`."""
        assert session is edge.session
        arrival = self._up.arrival(at + self._group.message, size)
        self._call_at(arrival, session.confirm, position)

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

    def unsend(self, question: Question) -> None:
        """See :class:`Lines`."""
        self._up.busy, self._up.last = question.busy, question.last


class PacketLines:
    """A link packet by packet: every message is events, both ways."""

    __slots__ = ("_call_at", "_down", "_group", "_up")
    plain = False

    def __init__(self, group: Group, up: PacketWay, down: PacketWay) -> None:
        self._group, self._up, self._down = group, up, down
        self._call_at = group.env.call_at

    def open(self, edge: SimulatedEdge, session: CloudSide, at: float) -> None:
        """See :class:`Lines`."""
        self._call_at(at + self._group.message, self._open, (edge, session, at))

    def _open(self, value: Any) -> None:
        self._up.send(self._group.sizes.open, self._opening, value)

    def _opening(self, now: float, value: Any) -> None:
        _, session, _ = value
        self._call_at(now + session.replica.turnaround, self._open_back, value)

    def _open_back(self, value: Any) -> None:
        self._down.send(self._group.sizes.opened, self._opened, value)

    def _opened(self, now: float, value: Any) -> None:
        edge, session, since = value
        edge.session_opened(session, now + self._group.message, since)

    def send_question(
        self, edge: SimulatedEdge, session: CloudSide, question: Question, size: float
    ) -> None:
        """See :class:`Lines`."""
        value = (edge, session, question, size)
        self._call_at(question.at + self._group.message, self._ask, value)

    def _ask(self, value: tuple[SimulatedEdge, CloudSide, Question, float]) -> None:
        edge, session, question, size = value
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
        self._call_at(at + self._group.message, self._confirm, value)

    def _confirm(self, value: tuple[SimulatedEdge, CloudSide, int, float]) -> None:
        edge, session, position, size = value
        if session is edge.session:
            self._up.send(size, self._confirmed, (session, position))

    def _confirmed(self, now: float, value: tuple[CloudSide, int]) -> None:
        session, position = value
        self._call_at(now, session.confirm, position)

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
        self._call_at(at, self._back, (tell, size, about, took))

    def _back(self, value: tuple[Any, int, tuple[Any, ...], float]) -> None:
        tell, size, about, took = value
        self._down.send(size, self._told, (tell, about, took))

    def _told(self, now: float, value: tuple[Any, tuple[Any, ...], float]) -> None:
        tell, about, took = value
        tell(*about, now + self._group.message, took)

    def unsend(self, question: Question) -> None:
        """Nothing to do: what is taken back before its time is never sent."""
