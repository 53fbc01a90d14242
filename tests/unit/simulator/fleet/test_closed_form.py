"""One edge, one cloud, no chance: what is simulated is what the arithmetic says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.context_source import ContextCodec
from edge.plan import Plan
from shared.model_bundle import OperatingPoint
from simulator.fleet.recordings import RecordedAnswer, Recording
from simulator.fleet.simulation import FleetRun, run_fleet
from simulator.fleet.summary import summarise
from tests.cost_harness import OnePlanModel
from tests.fleet_harness import CLOUD, DEVICE, invented_recording, make_config

PROMPT = 20
# beside a pass: context and question in, the decision out
AROUND = CLOUD.turnaround_seconds + 3 * CLOUD.message_seconds


def recording(sure: list[bool], agrees: list[bool]) -> Recording:
    """One answer: each position sure at the first exit, or at none."""
    confidences = np.array([[0.9, 0.95] if s else [0.1, 0.2] for s in sure], np.float32)
    both = np.array([[a, a] for a in agrees])
    return Recording(invented_recording().model, (RecordedAnswer(PROMPT, confidences, both),))


def run(tmp_path: Path, made: Recording, **edges: Any) -> FleetRun:
    group = {"link": "loopback"} | edges
    config = make_config(tmp_path, [group], duration_s=3000.0, workload={"think_s": 5.0})
    return run_fleet(config, recording=made)


def only(values: Any) -> float:
    """The value that all answers share, to the nanosecond."""
    assert len(values) > 10
    assert max(values) - min(values) < 1e-9
    return float(values[0])


def draft_seconds(sure: list[bool]) -> list[float]:
    """The edge's own time for each token, as DeviceProfile describes it."""
    seconds, seen = [], 0
    for index, is_sure in enumerate(sure):
        positions = PROMPT + index
        each = DEVICE.step_seconds + DEVICE.exit_seconds[0]
        each += DEVICE.segment_seconds[0] if index else (PROMPT - 1) * DEVICE.pending_seconds[0]
        if not is_sure:
            each += DEVICE.segment_seconds[1] + DEVICE.exit_seconds[1]
            each += (positions - seen - 1) * DEVICE.pending_seconds[1]
            seen = positions
        seconds.append(each)
    return seconds


def pass_seconds(rows: int, decisions: int = 1, *, deep: bool = True) -> float:
    """A pass of one session, from hidden states or token ids."""
    model = CLOUD.deep if deep else CLOUD.whole
    return (
        0.001 * (rows + 20) * (0.5 if deep else 1.0)
        + model.session_seconds
        + model.decision_seconds * decisions
    )


SURE = [True, True, False, True, False, False, True, True, True, False, True]
RIGHT = [True, True, True, True, False, True, True, False, True, False, True]


def test_standalone_is_the_sum_of_its_tokens(tmp_path: Path) -> None:
    log = run(tmp_path, recording(SURE, RIGHT), policy="standalone").groups[0].log
    prompt = PROMPT * DEVICE.prefill_seconds
    assert only(log.seconds) == pytest.approx(prompt + sum(draft_seconds(SURE)))
    assert only(log.first_seconds) == pytest.approx(prompt + draft_seconds(SURE)[0])
    assert only(log.wrong) == RIGHT.count(False)
    assert only(log.questions) == 0


def test_blocking_waits_at_each_question(tmp_path: Path) -> None:
    log = run(tmp_path, recording(SURE, RIGHT), policy="blocking").groups[0].log
    asked = [index for index, sure in enumerate(SURE) if not sure]
    # the prompt is run while the tokens before the first question are drafted
    assert sum(draft_seconds(SURE)[: asked[0] + 1]) > pass_seconds(PROMPT, 0) + AROUND
    positions = [PROMPT, *(PROMPT + index for index in asked)]
    rows = [b - a for a, b in pairwise(positions)]
    waits = sum(pass_seconds(count) + AROUND for count in rows)
    own = PROMPT * DEVICE.prefill_seconds + sum(draft_seconds(SURE))
    assert only(log.seconds) == pytest.approx(own + waits)
    assert only(log.questions) == len(asked)
    assert only(log.corrections) == sum(not RIGHT[index] for index in asked)
    accepted_wrong = sum(s and not r for s, r in zip(SURE, RIGHT, strict=True))
    assert only(log.wrong) == accepted_wrong
    assert only(log.work_seconds) == pytest.approx(own)


def test_blocking_over_a_link_adds_a_round_trip_a_question(tmp_path: Path) -> None:
    made = recording(SURE, RIGHT)
    near = run(tmp_path, made, policy="blocking").groups[0].log
    far = run(tmp_path, made, policy="blocking", rtt_ms=10.0).groups[0].log
    added = only(far.seconds) - only(near.seconds)
    # opening the session goes beside taking in the prompt, and is over before
    assert added == pytest.approx(0.010 * SURE.count(False))


def test_plain_serving_is_a_round_trip_a_prompt_and_a_pass_a_token(tmp_path: Path) -> None:
    log = run(tmp_path, recording(SURE, RIGHT), policy="cloud-only", rtt_ms=40.0).groups[0].log
    opening = 0.040 + CLOUD.turnaround_seconds
    # the prompt begins to run before the question is read, which is a pass of its own
    asked = CLOUD.whole.session_seconds + CLOUD.whole.decision_seconds
    first = opening + 0.040 + pass_seconds(PROMPT, 0, deep=False) + asked + AROUND
    assert only(log.first_seconds) == pytest.approx(first)
    each = pass_seconds(1, deep=False) + CLOUD.message_seconds
    assert only(log.seconds) == pytest.approx(first + (len(SURE) - 1) * each)
    assert only(log.wrong) == 0


def test_verified_looks_ahead_unless_it_is_told_not_to(tmp_path: Path) -> None:
    made = recording([True] * 40, [True] * 40)
    far = {"policy": "verified", "rtt_ms": 200.0, "window": 2}
    left_to_the_edge = run(tmp_path, made, **far).groups[0].log
    never = run(tmp_path, made, lookahead=0, **far).groups[0].log
    assert only(left_to_the_edge.seconds) < only(never.seconds) / 2
    assert only(left_to_the_edge.bytes_down) > only(never.bytes_down)


def test_optimistic_hides_answers_that_agree(tmp_path: Path) -> None:
    right = [True] * len(SURE)
    log = run(tmp_path, recording(SURE, right), policy="optimistic", window=16).groups[0].log
    own = PROMPT * DEVICE.prefill_seconds + sum(draft_seconds(SURE))
    assert only(log.seconds) >= own
    blocking = run(tmp_path, recording(SURE, right), policy="blocking").groups[0].log
    assert only(log.seconds) < only(blocking.seconds)
    assert only(log.discarded) == 0
    assert only(log.work_seconds) == pytest.approx(own)


@pytest.mark.parametrize(
    ("prompt", "pieces"), [(15, (15,)), (16, (16, 0)), (64, (64, 0)), (100, (64, 36))]
)
def test_a_prompt_is_run_in_pieces_as_the_cloud_runs_it(
    tmp_path: Path, prompt: int, pieces: tuple[int, ...]
) -> None:
    """The same pieces as in tests/integration/test_fleet_against_cloud.py."""
    both = np.ones((4, 2), np.bool_)
    made = Recording(
        invented_recording().model, (RecordedAnswer(prompt, np.ones((4, 2), np.float32), both),)
    )
    found = run(tmp_path, made, policy="cloud-only")
    answers = len(found.groups[0].log.seconds)
    (replica,) = found.replicas
    assert replica.passes == (len(pieces) + 3) * answers
    assert replica.rows == (prompt + 3) * answers


@pytest.mark.parametrize("rtt_ms", [20.0, 80.0])
def test_blocking_is_what_the_cost_model_predicts(tmp_path: Path, rtt_ms: float) -> None:
    length, every = 120, 4
    sure = [index % every != every - 1 for index in range(length)]
    right = [index % 8 != 3 for index in range(length)]
    made = recording(sure, right)
    log = run(tmp_path, made, policy="blocking", rtt_ms=rtt_ms).groups[0].log
    own = sum(draft_seconds(sure)[1:]) / (length - 1)
    question = pass_seconds(every) + AROUND
    share = made.model.deep_share
    point = OperatingPoint(threshold=0.8, agreement=1.0, escalation_rate=1 / every)
    model = OnePlanModel(
        rtt=rtt_ms / 1e3,
        edge=own,
        cloud_pass=question / share,
        cloud_token=question,
        bytes_per_second=1e9,
        guess_agreement=0.5,
        unsure=1.0,
        reference=point,
        points=[point],
        hidden_layer_share=share,
        hidden_size=made.model.hidden_size,
        prompt_tokens=PROMPT,
        answer_tokens=length,
        edge_prefill=DEVICE.prefill_seconds,
    )
    predicted = model.seconds(Plan(0.8, 0, codec=ContextCodec.FP16))
    assert only(log.seconds) / length == pytest.approx(predicted, rel=0.05)


def test_drafts_in_vain_are_those_that_were_begun(tmp_path: Path) -> None:
    """What was worked out ahead, and never came to be, is neither work nor discarded."""
    sure = [True, True, False] + [True] * 30
    confidences = np.array([[0.9, 0.95] if s else [0.1, 0.79] for s in sure], np.float32)
    agrees = np.array([[index != 2] * 2 for index in range(len(sure))])
    made = Recording(invented_recording().model, (RecordedAnswer(PROMPT, confidences, agrees),))
    own = PROMPT * DEVICE.prefill_seconds + sum(draft_seconds(sure))
    each = DEVICE.step_seconds + DEVICE.segment_seconds[0] + DEVICE.exit_seconds[0]
    waits = {}
    for rtt in (0.0, 20.0, 60.0):
        group = run(tmp_path, made, policy="optimistic", window=20, rtt_ms=rtt).groups[0]
        log = group.log
        assert only(log.corrections) == 1
        discarded = waits[rtt] = only(log.discarded)
        assert only(log.work_seconds) == pytest.approx(own + discarded * each)
    assert 1 <= waits[0.0] < waits[20.0] < waits[60.0] < 30


@pytest.mark.parametrize("policy", ["cloud-only", "blocking"])
def test_a_warm_up_changes_no_rate(tmp_path: Path, policy: str) -> None:
    """Tokens, use, cost and energy are all of the time behind it."""
    group = {"link": "loopback", "policy": policy, "count": 3, "rtt_ms": 600.0}
    found = []
    for warmup in (0.0, 2000.0):
        config = make_config(
            tmp_path, [group], duration_s=4000.0, warmup_s=warmup, workload={"think_s": 5.0}
        )
        found.append(summarise(run_fleet(config, recording=recording(SURE, RIGHT))))
    whole, behind = found
    assert behind["counted_seconds"] == 2000.0
    assert behind["tokens"] == pytest.approx(whole["tokens"] / 2, rel=0.1)
    assert behind["tokens_per_second"] == pytest.approx(whole["tokens_per_second"], rel=0.1)
    for part, name in (
        ("cost", "dollars_per_million_tokens"),
        ("energy", "joules_per_token"),
    ):
        assert behind[part][name] == pytest.approx(whole[part][name], rel=0.1)
    cloud = behind["cloud"]
    assert cloud["utilisation"]["mean"] == pytest.approx(
        whole["cloud"]["utilisation"]["mean"], rel=0.1
    )
    assert cloud["passes"] == pytest.approx(whole["cloud"]["passes"] / 2, rel=0.1)
    assert behind["cost"]["dollars"] == pytest.approx(
        CLOUD.price_per_hour * 2000.0 / 3600.0, rel=1e-4
    )
    power = CLOUD.power
    use = cloud["utilisation"]["mean"]
    assert behind["energy"]["cloud_joules"] == pytest.approx(
        2000.0 * (power.idle_watts + use * (power.active_watts - power.idle_watts)), rel=1e-4
    )
