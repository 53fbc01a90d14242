"""The parts of a fleet, each by itself."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy.events import Event

from edge.controller import LEAST_GAIN_BETWEEN, Aim, Wishes, choose
from edge.cost_model import nearest_point
from edge.link_monitor import Conditions
from edge.steering import LEAST_PATIENCE_SECONDS, patience_seconds
from shared.errors import ConfigurationError
from shared.model_bundle import OperatingPoint
from simulator.fleet.cloud_side import CloudSide, Doing
from simulator.fleet.config import Workload
from simulator.fleet.events import Clock
from simulator.fleet.policies import Chooser
from simulator.fleet.question import Question
from simulator.fleet.replica import Replica
from simulator.fleet.simulation import _thinker as thinker
from simulator.fleet.target import DEFAULT_TARGET, parse_target
from simulator.fleet.tracks import Tracks, make_track
from simulator.fleet.ways import LinkMaker, PacketWay, PlainWay, is_plain
from simulator.fleet.wire import WireSizes
from simulator.link_model import Link
from simulator.link_presets import PRESETS, preset
from simulator.link_spec import DirectionSpec, LinkSpec
from tests.fleet_harness import CLOUD, DEVICE, invented_recording


def test_call_at_keeps_order_and_never_goes_back() -> None:
    env = Clock()
    seen: list[Any] = []
    for at in (3.0, 1.0, 2.0):
        env.call_at(at, lambda value: seen.append((env.now, value)), at)
    env.run()
    assert seen == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    env.call_at(0.5, lambda value: seen.append((env.now, value)), "late")
    env.run()
    assert seen[-1] == (3.0, "late")


def test_a_clock_stops_before_a_second_and_takes_simpys_own_events() -> None:
    clock = Clock()
    seen: list[Any] = []
    clock.timeout(1.0, "own").callbacks.append(lambda event: seen.append((clock.now, event.value)))
    for at in (1.0, 2.0):
        clock.call_at(at, seen.append, at)
    clock.run_until(2.0)
    assert seen == [(1.0, "own"), 1.0]
    assert clock.now == 2.0
    clock.run()
    assert seen[-1] == 2.0


def test_an_error_in_a_simpy_process_is_not_lost() -> None:
    clock = Clock()

    def process() -> Generator[Event, object, None]:
        yield clock.timeout(1.0)
        raise ValueError("broken")

    clock.process(process())
    with pytest.raises(ValueError, match="broken"):
        clock.run()


def test_a_question_that_a_correction_overtakes_is_never_heard() -> None:
    env, _, edge, session = cloud()
    late = Question(12, 0, True)
    late.arrival = 5.0
    session.inbox.append(late)
    env.call_at(5.0, session.arrive, late)
    session.hear(Question(11, 0, False))
    env.run()
    assert [told[1] for told in edge.told] == [11]
    assert not session.inbox


def test_what_comes_while_a_pass_runs_counts_the_same_taken_in_at_once() -> None:
    def told(*, together: bool) -> tuple[list[tuple[Any, ...]], int, float]:
        env, replica, edge, session = cloud()
        session.hear(Question(10, 0, True))  # its pass takes more than 30 ms
        coming = [Question(11 + n, 0, True, messages=2 + n) for n in range(3)]
        for n, question in enumerate(coming):
            question.arrival = 0.005 * (n + 1)
            if not together:
                env.call_at(question.arrival, session.hear, question)
        if together:
            session.inbox.extend(coming)
            env.call_at(coming[0].arrival, session.arrive, coming[0])
        env.run()
        return edge.told, replica.passes, replica.busy_seconds

    assert told(together=True) == told(together=False)
    assert [each[1] for each in told(together=True)[0]] == [10, 11, 12, 13]


# ---- links -------------------------------------------------------------------------------------


def packet_arrivals(spec: DirectionSpec, messages: list[tuple[float, int]]) -> list[float]:
    """When the link model itself has messages there that are sent at these times."""
    env = Clock()
    way = PacketWay(env, Link(LinkSpec(up=spec), seed=1).up)
    arrived: list[float] = []

    def send(size: int) -> None:
        way.send(size, lambda now, _: arrived.append(now), None)

    for at, size in messages:
        env.call_at(at, send, size)
    env.run(until=1000.0)
    return arrived


@given(
    messages=st.lists(
        st.tuples(st.floats(0.0, 5.0), st.integers(1, 20_000)), min_size=1, max_size=20
    ),
    rate=st.sampled_from([None, 0.5, 10.0]),
    delay=st.floats(0.0, 300.0),
)
def test_the_closed_form_is_the_link_models(
    messages: list[tuple[float, int]], rate: float | None, delay: float
) -> None:
    spec = DirectionSpec(delay_ms=delay, rate_mbit=rate, queue_bytes=1 << 24)
    messages = sorted(messages)
    way = PlainWay(spec, None, 0)
    expected = packet_arrivals(spec, messages)
    assert [way.arrival(at, size) for at, size in messages] == pytest.approx(expected, abs=1e-6)


def test_a_stretch_that_keeps_up_waits_for_its_last_piece_only() -> None:
    way = PlainWay(DirectionSpec(rate_mbit=8.0), None, 0)  # a byte a microsecond
    assert way.stretch(1.0, 2.0, 2.001, 10_000, 500) == pytest.approx(2.001)
    slow = PlainWay(DirectionSpec(rate_mbit=0.008), None, 0)  # a byte a millisecond
    assert slow.stretch(1.0, 2.0, 2.001, 10_000, 500) == pytest.approx(11.0)


def test_jitter_is_the_link_models_in_the_mean_and_keeps_order() -> None:
    spec = LinkSpec(up=DirectionSpec(jitter_ms=10.0), down=DirectionSpec(jitter_ms=10.0))
    up, down = LinkMaker(spec, np.random.default_rng(0)).make_plain()
    for way in (up, down):
        times = [way.arrival(0.5 * n, 10) - 0.5 * n for n in range(20_000)]
        assert np.mean(times) == pytest.approx(0.010, rel=0.1)
        assert np.std(times) == pytest.approx(0.010, rel=0.15)
        close = [way.arrival(20_000 + 0.001 * n, 10) for n in range(1000)]
        assert all(late >= early for early, late in pairwise(close))


def test_what_has_a_closed_form() -> None:
    plain = {name for name in PRESETS if is_plain(preset(name))}
    assert plain == set(PRESETS) - {"lossy-wifi", "train"}


# ---- the cloud ---------------------------------------------------------------------------------


class Listening:
    """An edge that notes what the cloud sends."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def reply(self, _s: CloudSide, position: int, agreed: bool, at: float, took: float) -> None:
        self.told.append(("reply", position, agreed, at, took))

    def burst_token(self, _s: CloudSide, position: int, at: float, _took: float) -> None:
        self.told.append(("burst", position, at))

    def burst_tokens(self, _s: CloudSide, count: int) -> None:
        self.told.append(("bursts", count))

    def said_ahead(self, _s: CloudSide, position: int, at: float, _took: float) -> None:
        self.told.append(("ahead", position, at))


def cloud(*, steady: bool = False) -> tuple[Clock, Replica, Listening, CloudSide]:
    env = Clock()
    replica, edge = Replica(env, CLOUD), Listening()
    return env, replica, edge, CloudSide(replica, edge, whole=True, end=100, steady=steady)


def test_questions_that_wait_together_are_one_pass() -> None:
    env, replica, edge, session = cloud()
    for position in (10, 12, 15):
        session.hear(Question(position, 0, True))
    env.run()
    assert [told[1] for told in edge.told] == [10, 12, 15]
    assert replica.passes == 2  # the first began at once
    assert replica.rows == 15
    assert session.computed == 15


def test_nothing_is_answered_behind_a_correction() -> None:
    env, _, edge, session = cloud()
    session.hear(Question(10, 0, True))
    session.hear(Question(11, 0, False))
    session.hear(Question(12, 0, True))
    env.run()
    session.hear(Question(13, 0, True))  # from before the correction
    env.run()
    assert [told[1:3] for told in edge.told] == [(10, True), (11, False)]
    session.hear(Question(12, 1, True))
    env.run()
    assert edge.told[-1][1:3] == (12, True)


@pytest.mark.parametrize("steady", [False, True])
def test_a_burst_goes_to_the_end(steady: bool) -> None:
    env, replica, edge, session = cloud(steady=steady)
    session.hear(Question(10, 0, False, burst=1000))
    env.run()
    last = edge.told[-1]
    assert last[:2] == ("burst", 99)
    assert replica.passes == 90
    assert replica.rows == 10 + 89
    tokens = sum(told[1] if told[0] == "bursts" else 1 for told in edge.told)
    assert tokens == 90
    if steady:
        assert len(edge.told) == 3
    # the time is the same, worked out pass by pass or as one run
    one = 0.02 + 0.001 + 0.0005 + 0.0002
    message = CLOUD.message_seconds  # a question and its context, then one a pass
    first = 2 * message + one + 9 * 0.001
    assert last[2] == pytest.approx(first + 89 * (one + message) + message + 0.001)
    assert replica.busy_seconds == pytest.approx(first + 89 * (one + message))


def test_messages_make_passes_longer_and_leave_one_by_one() -> None:
    env = Clock()
    profile = CLOUD.model_copy(update={"message_seconds": 0.002, "turnaround_seconds": 0.0})
    replica = Replica(env, profile)
    edges = [Listening() for _ in range(3)]
    sessions = [CloudSide(replica, edge, whole=True, end=100) for edge in edges]
    sessions[0].hear(Question(1, 0, True, messages=5))
    for session in sessions[1:]:  # while the first pass runs
        session.hear(Question(1, 0, True, messages=3))
    env.run()
    one = 0.02 + 0.001 + 0.0005 + 0.0002
    first = 2 * 0.002 + one + 6 * 0.002  # of the five, three were handled before
    # the first reply is sent while the second pass waits
    second = first + 0.002 + one + 0.001 + 0.0005 + 0.0002
    at = [edge.told[0][3] for edge in edges]
    assert at == pytest.approx([first + 0.002, second + 0.002, second + 0.004])
    assert replica.busy_seconds == pytest.approx(second)


def test_a_run_of_passes_takes_the_messages_of_others_in() -> None:
    def end(*, steady: bool) -> tuple[float, float]:
        env, replica, edge, session = cloud(steady=steady)
        session.hear(Question(10, 0, False, burst=1000))
        other = CloudSide(replica, Listening(), whole=True, end=100)
        env.call_at(0.5, lambda _value: other.hear(Question(5, 0, True, messages=7)))
        env.run()
        return edge.told[-1][2], replica.busy_seconds

    assert end(steady=True) == pytest.approx(end(steady=False))


def test_a_pass_over_free_rows_takes_as_long_as_over_one() -> None:
    whole = CLOUD.whole.model_copy(update={"knots": (1, 4, 104), "beyond_seconds": (0.0, 0.0, 0.1)})
    profile = CLOUD.model_copy(update={"whole": whole})

    def seconds(rows: int) -> float:
        env = Clock()
        replica = Replica(env, profile)
        CloudSide(replica, Listening(), whole=True, end=100).hear(Question(rows, 0, True))
        env.run()
        messages = 2 * profile.message_seconds
        assert replica.busy_seconds == pytest.approx(
            messages + profile.pass_seconds(whole=(rows, 1, 1, 0))
        )
        return replica.busy_seconds

    assert seconds(4) == pytest.approx(seconds(1))
    assert seconds(10) == pytest.approx(seconds(1) + 0.006)


def test_a_run_of_passes_ends_where_something_arrives() -> None:
    env, replica, edge, session = cloud(steady=True)
    session.hear(Question(10, 0, False, burst=1000))
    other = Listening()
    asking = CloudSide(replica, other, whole=True, end=100)
    env.call_at(0.5, lambda _value: asking.hear(Question(5, 0, True)))
    env.run()
    reply = other.told[0]
    assert reply[0] == "reply"
    assert reply[4] < 0.1, "it waited for the whole burst"
    tokens = sum(told[1] if told[0] == "bursts" else 1 for told in edge.told)
    assert tokens == 90


def test_looking_ahead_stops_where_the_edge_wishes() -> None:
    env, _, edge, session = cloud()
    session.hear(Question(10, 0, True, lookahead=4))
    env.run()
    assert [told[1] for told in edge.told] == [10, 11, 12, 13, 14]
    env.call_at(env.now + 1.0, session.confirm, 12)
    env.run()
    assert edge.told[-1][1] == 16
    assert session.doing is Doing.NOTHING


def test_what_was_said_ahead_is_answered_at_once() -> None:
    env, replica, edge, session = cloud()
    session.hear(Question(10, 0, True, lookahead=4))
    env.run()
    passes = replica.passes
    session.hear(Question(13, 0, True))
    assert edge.told[-1][:3] == ("reply", 13, True)
    assert replica.passes == passes


def test_another_text_takes_back_what_was_said_ahead() -> None:
    env, _, edge, session = cloud()
    session.hear(Question(10, 0, True, lookahead=4))
    env.run()
    session.hear(Question(13, 0, True, lookahead=0, line=1, cut=12))
    env.run()
    assert edge.told[-1][:3] == ("reply", 13, True)
    assert edge.told[-1][4] > 0.02, "a pass was due"


def test_tokens_get_half_of_the_rows_beside_a_prompt() -> None:
    env = Clock()
    profile = CLOUD.model_copy(update={"max_rows": 32})
    replica = Replica(env, profile)
    edges = [Listening() for _ in range(9)]
    sessions = [CloudSide(replica, edge, whole=True, end=10_000) for edge in edges]
    sessions[0].hear(Question(1, 0, True))  # so that the others wait together
    sessions[1].hear(Question(1000, 0, True))
    for session in sessions[2:]:
        session.hear(Question(2, 0, True))
    env.run()
    prompt = edges[1].told[0][3]
    tokens = [edge.told[0][3] for edge in edges[2:]]
    assert max(tokens) < 0.12 < prompt
    assert replica.rows == 1 + 1000 + 7 * 2


# ---- tracks, policies, targets -----------------------------------------------------------------


@given(threshold=st.floats(0.0, 1.0), seed=st.integers(0, 50))
def test_a_track_is_what_the_exit_policy_says(threshold: float, seed: int) -> None:
    answer = invented_recording(1, 30, seed=seed).answers[0]
    track = make_track(answer, threshold, DEVICE)
    unsure = (answer.confidences < threshold).all(axis=1)
    assert track.unsure == unsure.tolist()
    assert all(late > early for early, late in pairwise(track.done))
    asked = [index for index in range(track.length) if track.next_unsure[index] == index]
    assert asked == np.flatnonzero(unsure).tolist()
    assert track.next_unsure[-1] == track.length
    overruled = [i for i in range(track.length) if not (track.unsure[i] or track.agreed[i])]
    assert [i for i in range(track.length) if track.next_overruled[i] == i] == overruled
    assert track.accepted_right == track.length - len(overruled)


def test_a_device_for_other_exits_is_refused() -> None:
    one = DEVICE.model_copy(
        update={"segment_seconds": (1.0,), "exit_seconds": (1.0,), "pending_seconds": (1.0,)}
    )
    with pytest.raises(ConfigurationError, match="1 exits"):
        Tracks(invented_recording()).get(one, 0.8, 0)


@given(
    rtt=st.floats(0.001, 0.5),
    edge=st.floats(0.001, 0.1),
    cloud_pass=st.floats(0.001, 0.5),
    aim=st.sampled_from(list(Aim)),
)
def test_the_chooser_is_the_controller_but_for_rounding(
    rtt: float, edge: float, cloud_pass: float, aim: Aim
) -> None:
    model = invented_recording().model
    chooser = Chooser(model, Wishes(aim))
    measured = Conditions(rtt_seconds=rtt, edge_token_seconds=edge, cloud_pass_seconds=cloud_pass)
    plan = chooser.plan(measured, None, 64, 256)
    assert chooser.plan(measured, None, 64, 256) is plan
    assert chooser.asked == 1
    factors = (0.85, 1.0, 1.15)  # a step is a quarter
    near = {
        choose(
            Conditions(
                rtt_seconds=rtt * a, edge_token_seconds=edge * b, cloud_pass_seconds=cloud_pass * c
            ),
            model.operating_points,
            Wishes(aim),
            model.layers,
            model.cut,
            model.hidden_size,
            prompt_tokens=64,
            answer_tokens=256,
            least_gain=LEAST_GAIN_BETWEEN,
        ).plan.kind
        for a in factors
        for b in factors
        for c in factors
    }
    assert plan.kind in near


@given(
    thousandths=st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True),
    wanted=st.floats(0.0, 1.0),
)
def test_the_nearest_point_is_the_nearest(thousandths: list[int], wanted: float) -> None:
    points = [
        OperatingPoint(threshold=t / 1000, agreement=1.0, escalation_rate=0.5)
        for t in sorted(thousandths)
    ]
    assert nearest_point(points, wanted) == min(points, key=lambda p: abs(p.threshold - wanted))


def test_patience_grows_with_what_is_usual_and_on_its_way() -> None:
    assert patience_seconds(Conditions(), 0) == LEAST_PATIENCE_SECONDS
    slow = Conditions(rtt_seconds=1.0, cloud_pass_seconds=0.5)
    assert patience_seconds(slow, 0) == pytest.approx(9.0)
    assert patience_seconds(slow, 600_000) == pytest.approx(29.0)


def test_targets_are_read_as_written() -> None:
    assert str(parse_target(DEFAULT_TARGET)) == DEFAULT_TARGET
    assert parse_target("mean first token <= 1.5 s").seconds == 1.5
    for text in ("fast", "p95 time per token < 1 ms", "p100 answer <= 1 s", "p0 answer <= 1 s"):
        with pytest.raises(ConfigurationError, match="target"):
            parse_target(text)


def test_users_think_exponentially() -> None:
    from random import Random  # noqa: PLC0415

    think, chance = thinker(Workload(think_s=30.0)), Random(0)
    times = [think(0.0, chance) for _ in range(20_000)]
    assert np.mean(times) == pytest.approx(30.0, rel=0.05)
    assert np.std(times) == pytest.approx(30.0, rel=0.05)


def test_messages_have_the_sizes_of_real_ones(tmp_path: Path) -> None:
    sizes = WireSizes.of(invented_recording().model)
    assert 60 < sizes.open < 120  # a fingerprint and an id
    assert 20 < sizes.question < 40
    assert 20 < sizes.decision < 45
    assert sizes.ahead > sizes.decision
