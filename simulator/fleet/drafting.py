"""How a simulated edge drafts: a stretch of tokens at a step, and a question at its end."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from edge.steering import CHOOSE_SECONDS
from simulator.fleet import alone, steered
from simulator.fleet.question import Question
from simulator.fleet.tracks import Track

if TYPE_CHECKING:
    from edge.drafting import DraftWorth
    from edge.plan import Plan
    from simulator.fleet.cloud_side import CloudSide
    from simulator.fleet.simulated_edge import SimulatedEdge

_CHUNK_ROWS = 16  # token ids of so many positions travel without a question


# Most of a run's time is spent here, at two questions a token where every token is verified: so it
# is one function, and reads what does not change but once.
def draft(edge: SimulatedEdge, resume: float) -> None:  # noqa: PLR0912, PLR0915
    """Draft from the frontier, at ``resume`` at the earliest, until there is something to wait
    for."""
    track, plan, session, worth = edge.track, edge.plan, edge.session, edge.worth
    assert plan is not None
    assert session is not None
    assert worth is not None
    frontier = edge.frontier
    if frontier < resume:  # noqa: PLR1730  (max takes three times as long)
        frontier = resume
    is_steered = edge.monitor is not None
    outstanding, length = edge.outstanding, track.length
    chance = 1.0  # that all guesses in flight are right
    in_flight = 0
    for earlier in outstanding:
        chance *= earlier.confidence
        in_flight += 1
    if in_flight and not _pays(edge, worth, in_flight > plan.window, chance):
        edge.frontier = frontier
        if is_steered:
            alone.wait(edge, frontier)
        return
    sizes, send = edge.group.sizes, edge.lines.send_question
    message_size, question_size = sizes.context_message, sizes.question
    context_size, most_burst, step_took = edge.context_size, plan.burst, worth.drafted
    whole, prompt, opened, said = session.whole, track.prompt, edge.opened, edge.said
    done, next_unsure, verified, window = track.done, track.next_unsure, plan.verified, plan.window
    ahead = _lookahead(edge, plan, session)
    position, work = edge.position, edge.work
    while position < length:
        if in_flight:
            if in_flight > window:
                break
            least = edge.worth_least
            if least < 0.0:
                edge.worth_least = least = worth.least_chance
            if chance < least:
                break
        if is_steered and frontier >= edge.chosen_at + CHOOSE_SECONDS:
            edge.frontier, edge.position, edge.work = frontier, position, work
            plan = steered.steer(edge, frontier)
            track = edge.track
            if plan.plain:
                edge.let_the_cloud_speak(frontier)
                return
            done, next_unsure = track.done, track.next_unsure
            verified, window, most_burst = plan.verified, plan.window, plan.burst
            ahead = _lookahead(edge, plan, session)
        begin = position
        index = begin if verified else next_unsure[begin]
        position = index + 1 if index < length else length
        start = frontier
        frontier = start + done[position] - done[begin]
        work += frontier - start
        if index != begin:
            _accept(edge, track, begin, index, start)
        if window or is_steered:
            first, each = begin if begin else 1, 0.0  # the first takes the prompt along
            if position > first:
                each = (done[position] - done[first]) / (position - first)
                step_took(each)
            if is_steered:
                steered.drafted(edge, track, begin, position, frontier, each)
        if index >= length:
            edge.tail = (start, begin)
            break
        if said and not needs_to_ask(edge, index, frontier):
            continue
        text_position, rest = prompt + index, length - index - 1
        lookahead = worth.lookahead(every_token=False) if ahead is None else ahead
        new = text_position - edge.sent
        contexts = 1 if new and whole else new
        size = new * context_size + contexts * message_size
        edge.sent = text_position
        confidence = track.confidence[index]
        question = Question(
            text_position,
            edge.epoch,
            track.agreed[index],
            True,
            most_burst if most_burst < rest else rest,
            lookahead if lookahead < rest else rest,
            edge.line,
            edge.cut,
            contexts + 1,
            index,
            begin,
            start,
            frontier,
            frontier if frontier > opened else opened,
            confidence,
            size,
            edge.wrong,
        )
        edge.questions += 1
        size += question_size
        edge.bytes_up += size
        send(edge, session, question, size)
        outstanding.append(question)
        in_flight += 1
        chance *= confidence
    edge.frontier, edge.position, edge.work = frontier, position, work
    if not in_flight:
        if position >= length:
            edge.finish(frontier)
    elif is_steered:
        alone.wait(edge, frontier)


def _pays(edge: SimulatedEdge, worth: DraftWorth, full: bool, chance: float) -> bool:
    """Whether to draft on at all."""
    if full or edge.position >= edge.track.length:
        return False
    if edge.worth_least < 0.0:
        edge.worth_least = worth.least_chance
    return chance >= edge.worth_least


def _lookahead(edge: SimulatedEdge, plan: Plan, session: CloudSide) -> int | None:
    """How far the cloud looks ahead under ``plan``; ``None`` where each question has to see."""
    if not (session.whole and plan.may_look_ahead):
        return 0
    if plan.lookahead is not None or not plan.verified:
        return plan.lookahead
    assert edge.worth is not None
    return edge.worth.lookahead(every_token=True)


def _accept(edge: SimulatedEdge, track: Track, begin: int, asked: int, start: float) -> None:
    """Tokens from ``begin`` up to ``asked`` were accepted."""
    overruled = track.next_overruled[begin]
    if overruled < asked:
        while overruled < asked:
            edge.wrong += 1
            edge.cut = track.prompt + overruled + 1
            overruled = track.next_overruled[overruled + 1]
        edge.line += 1
        edge.said.clear()
    if begin == 0:
        edge.first_at = start + track.done[1]


def needs_to_ask(edge: SimulatedEdge, index: int, frontier: float) -> bool:
    """Unless the cloud has said the token at ``index`` already, and it is certain at once."""
    said = edge.said.pop(index, None)
    if said is None or said > frontier:
        return True
    track, group = edge.track, edge.group
    if edge.monitor is not None:
        edge.monitor.question(track.unsure[index], track.agreed[index])
    if index == 0:
        edge.first_at = frontier
    position = track.prompt + index
    size = (position - edge.sent) * group.token_size
    size += group.sizes.context_message
    edge.sent = position
    edge.bytes_up += size
    assert edge.session is not None
    if position - edge.confirmed >= _CHUNK_ROWS // 4:
        edge.confirmed = position
        edge.lines.send_confirmation(edge, edge.session, position, frontier, size)
    return False


def take_back(edge: SimulatedEdge, at: float) -> tuple[float, int]:
    """Undo what was worked out beyond ``at``; when the edge begins anew, at the end of the
    token under way, and how many of the answer's tokens there were by then."""
    if at >= edge.frontier:
        return at, edge.position
    stretches = [(a.start, a.begin, a.index + 1, a.frontier) for a in edge.outstanding]
    if edge.tail is not None:
        stretches.append((*edge.tail, edge.track.length, edge.frontier))
    restart, done, begun = at, edge.track.done, edge.position
    for start, begin, stop, frontier in reversed(stretches):
        if start >= at:
            edge.work -= frontier - start
            begun = begin
        elif frontier > at:
            begun = bisect_left(done, at - start + done[begin], begin, stop)
            restart = max(at, start + done[begun] - done[begin])
            edge.work -= frontier - restart
            break
    unsent = [a for a in edge.outstanding if a.at > at]
    if unsent:
        edge.lines.unsend(unsent[0])
        for question in unsent:
            edge.questions -= 1
            edge.bytes_up -= question.size + edge.group.sizes.question
    return restart, begun
