from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.exit_policy import ExitPolicy, calibrated, maximum_probability, threshold_for
from shared.errors import ConfigurationError
from shared.model_bundle import Calibration, ExitInfo, OperatingPoint
from shared.sampling import GREEDY, Sampling, choose_token

INFO = ExitInfo(
    name="exit1",
    layer=2,
    blocks=1,
    vocabulary_size=4,
    calibration=Calibration(raw=(0.2, 0.6, 0.9), confidence=(0.1, 0.5, 0.95)),
)


def test_confidence_is_the_calibrated_maximum_probability() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.2, 0.1], np.float32))
    assert maximum_probability(logits) == pytest.approx(0.6, abs=1e-6)
    judgement = ExitPolicy(0.5).judge(INFO, logits, None, 4, GREEDY, 7)
    assert judgement.confidence == pytest.approx(0.5, abs=1e-5)
    assert judgement.choice.token_id == 1


@pytest.mark.parametrize(("threshold", "accepted"), [(0.0, True), (0.49, True), (0.51, False)])
def test_accepts_from_the_threshold_on(threshold: float, accepted: bool) -> None:
    logits = np.log(np.array([0.1, 0.6, 0.2, 0.1], np.float32))
    assert ExitPolicy(threshold).judge(INFO, logits, None, 4, GREEDY, 7).accepted is accepted


def test_rows_of_a_partial_head_are_mapped_to_token_ids() -> None:
    logits = np.array([0.0, 3.0, 1.0], np.float32)
    ids = np.array([5, 17, 40], np.int32)
    assert ExitPolicy(0.5).judge(INFO, logits, ids, 64, GREEDY, 1).choice.token_id == 17


def test_sampling_draws_what_the_full_model_would_draw_from_the_same_logits() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal(64).astype(np.float32)
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=11)
    for position in range(20):
        judged = ExitPolicy(0.5).judge(INFO, logits, None, 64, sampling, position)
        assert judged.choice == choose_token(logits, sampling, position)


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        ExitPolicy(threshold)


def points(*pairs: tuple[float, float]) -> list[OperatingPoint]:
    return [
        OperatingPoint(threshold=threshold, agreement=agreement, escalation_rate=threshold)
        for threshold, agreement in pairs
    ]


def test_a_target_agreement_takes_the_lowest_threshold_from_which_on_it_holds() -> None:
    table = points((0.5, 0.90), (0.6, 0.96), (0.7, 0.94), (0.8, 0.97), (0.9, 0.99))
    assert threshold_for(table, 0.95) == 0.8  # 0.6 reached it too, but 0.7 did not hold it
    assert threshold_for(table, 0.0) == 0.5
    assert threshold_for(table, 0.99) == 0.9


@pytest.mark.parametrize(
    ("table", "target", "message"),
    [
        (points((0.5, 0.9)), 0.95, "best is 0.9"),
        ([], 0.5, "no table"),
        (points((0.5, 0.9)), 1.5, "not within"),
        (points((0.5, 0.9)), float("nan"), "not within"),
    ],
)
def test_a_target_that_cannot_be_kept_is_refused(
    table: list[OperatingPoint], target: float, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        threshold_for(table, target)


@given(st.floats(0, 1), st.floats(0, 1))
def test_calibration_never_reverses_an_order(left: float, right: float) -> None:
    low, high = sorted((left, right))
    assert calibrated(INFO.calibration, low) <= calibrated(INFO.calibration, high)
