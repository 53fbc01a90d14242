"""``auto`` mode of a simulated edge: measure, and choose anew, as :mod:`edge.steering` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.link_monitor import MIN_UPLOAD_BYTES

if TYPE_CHECKING:
    from edge.plan import Plan
    from simulator.fleet.question import Question
    from simulator.fleet.simulated_edge import SimulatedEdge
    from simulator.fleet.tracks import Track


def steer(edge: SimulatedEdge, now: float) -> Plan:
    """Ask the controller again."""
    group = edge.group
    assert edge.monitor is not None
    assert group.chooser is not None
    assert edge.plan is not None
    edge.time = edge.chosen_at = now
    left = max(1, group.max_tokens - edge.position)
    plan = group.chooser.plan(edge.monitor.conditions(), edge.plan, 0, left, within=edge.plan.codec)
    if plan.threshold != edge.plan.threshold:
        edge.track = group.track(plan.threshold, edge.answer)
    edge.plan = plan
    return plan


def drafted(
    edge: SimulatedEdge, track: Track, begin: int, stop: int, at: float, each: float
) -> None:
    """Tell the monitor of tokens that took ``each`` (0: not known)."""
    monitor = edge.monitor
    assert monitor is not None
    edge.time = at
    if each:
        monitor.edge_token(each)
    monitor.judged_all(track.unsure[begin:stop])


def observe(edge: SimulatedEdge, asked: Question, at: float, waited: float, took: float) -> None:
    """Tell the monitor of an answer that is there at ``at``."""
    monitor, group = edge.monitor, edge.group
    assert monitor is not None
    edge.time = at
    size, since = asked.size, asked.start
    if not asked.begin:  # the prompt went before it
        size, since = size + edge.prompt_bytes, edge.prompt_at or since
    if size >= MIN_UPLOAD_BYTES:
        rtt = monitor.rtt_seconds or 0.0
        monitor.upload(round(size), at - took - since - rtt)
    if not edge.first_answer:
        assert edge.session is not None
        monitor.round_trip(waited - took)
        share = 1.0 if edge.session.whole else group.recording.model.deep_share
        monitor.cloud_pass(took, share)
