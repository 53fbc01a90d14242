"""A simulated edge in ``auto`` mode while the cloud is silent: patience, and going on alone."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from edge.steering import patience_seconds
from simulator.fleet.cloud_side import CloudSide, Doing

if TYPE_CHECKING:
    from simulator.fleet.simulated_edge import SimulatedEdge

_BURST = Doing.BURST


def wait(edge: SimulatedEdge, since: float) -> None:
    """Wait for the cloud from ``since`` on; patience has an end."""
    edge.waiting_since = since
    if not edge.watched:
        edge.watched = True
        edge.group.env.call_at(since + edge.group.least_patience, watch, edge)


def watch(edge: SimulatedEdge) -> None:
    """Look whether patience has run out."""
    edge.watched = False
    if edge.session is None or edge.alone:
        return
    assert edge.monitor is not None
    now = edge.group.env.now
    due = now + edge.group.least_patience
    if edge.waiting_since >= 0.0 and edge.session.doing is not _BURST:
        edge.time = max(edge.time, now)
        patience = patience_seconds(edge.monitor.conditions(), 0)
        due = edge.waiting_since + patience
        if due <= now:
            _go_alone(edge, now)
            return
    edge.watched = True
    edge.group.env.call_at(due, watch, edge)


def _go_alone(edge: SimulatedEdge, now: float) -> None:
    """What was drafted stands, and more follows; meanwhile a new connection is made."""
    assert edge.monitor is not None
    assert edge.session is not None
    edge.monitor.lost()
    old, group, track = edge.session, edge.group, edge.track
    old.close()
    for asked in edge.outstanding:
        edge.alone_tokens += 1
        edge.wrong += not asked.agreed
    edge.outstanding.clear()
    edge.said.clear()
    edge.tail = None
    edge.epoch = edge.line = edge.cut = 0
    resume = now if now > edge.frontier else edge.frontier
    if edge.position and edge.first_at < 0.0:
        edge.first_at = now
    if edge.streaming:  # the edge has taken in nothing of this yet
        seconds = (edge.position + track.prompt) * group.device.prefill_seconds
        edge.work += seconds
        resume += seconds
        edge.streaming = False
    edge.waiting_since = -1.0
    session = CloudSide(edge.replica, edge, whole=old.whole, end=old.end, steady=old.steady)
    session.computed = min(old.computed, track.prompt + edge.position)
    edge.session = session
    draft_alone(edge, session, resume)
    edge.bytes_up += group.sizes.open
    edge.bytes_down += group.sizes.opened
    edge.lines.open(edge, session, now + group.reconnect_seconds)


def draft_alone(edge: SimulatedEdge, session: CloudSide, resume: float) -> None:
    """Nobody is asked until the session is open, or to the end."""
    edge.alone, edge.frontier = True, resume
    done = edge.track.done
    end = resume + done[-1] - done[edge.position]
    edge.group.env.call_at(end, _end_of_text, (edge, session))


def _end_of_text(drafting: tuple[SimulatedEdge, CloudSide]) -> None:
    edge, session = drafting
    if session is edge.session and edge.alone:
        now = edge.group.env.now
        _stand(edge, edge.track.length)
        edge.finish(now)


def end_alone(edge: SimulatedEdge, at: float) -> None:
    """The cloud is back; the token under way is the last one drafted alone."""
    assert edge.monitor is not None
    done, begin = edge.track.done, edge.position
    since = at - edge.frontier + done[begin]
    stop = bisect_left(done, since, begin, edge.track.length) if since > done[begin] else begin
    edge.frontier = max(at, edge.frontier + done[stop] - done[begin])
    _stand(edge, stop)
    edge.alone = False
    edge.monitor.restored()


def _stand(edge: SimulatedEdge, stop: int) -> None:
    """Tokens up to ``stop`` are certain, whatever the exits made of them."""
    track, begin = edge.track, edge.position
    if begin == 0 and stop:
        edge.first_at = edge.frontier + track.done[1]
    edge.alone_tokens += sum(track.unsure[begin:stop])
    edge.wrong += (stop - begin) - sum(track.agreed[begin:stop])
    edge.work += track.done[stop] - track.done[begin]
    edge.position = stop
