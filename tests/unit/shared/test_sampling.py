"""Token choice: exact draws from the softmax that both sides repeat."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shared.errors import ConfigurationError
from shared.sampling import (
    GREEDY,
    MAX_SEED,
    FloatArray,
    Sampling,
    choose_token,
    gumbel_noise,
    log_probability,
    random_words,
)

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -3.0, 0.2], np.float32)
DRAWS = 20_000
KNOWN_NOISE = [-0.9699949832622374, -0.5616475447058087, -0.04560364465273632]


def noise_at(seed: int, position: int, count: int) -> npt.NDArray[np.float64]:
    return gumbel_noise(random_words(seed, position, count))


def softmax(logits: FloatArray, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return np.asarray(weights / weights.sum())


def draws(sampling: Sampling) -> Counter[int]:
    return Counter(choose_token(LOGITS, sampling, position).token_id for position in range(DRAWS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    counts = draws(Sampling(temperature, seed=1234))
    expected = softmax(LOGITS, temperature) * DRAWS
    observed = [counts[token] for token in range(len(LOGITS))]
    assert stats.chisquare(observed, expected).pvalue > 0.01


@pytest.mark.parametrize(("top_p", "kept"), [(0.1, [0]), (0.7, [0, 1, 5]), (1.0, list(range(8)))])
def test_top_p_keeps_the_smallest_nucleus_and_its_proportions(
    top_p: float, kept: list[int]
) -> None:
    counts = draws(Sampling(1.0, top_p, seed=7))
    assert sorted(counts) == kept
    if len(kept) > 1:
        inside = softmax(LOGITS)[kept]
        expected = inside / inside.sum() * DRAWS
        assert stats.chisquare([counts[token] for token in kept], expected).pvalue > 0.01


def test_ties_in_the_nucleus_are_kept_in_row_order() -> None:
    flat = np.zeros(4, np.float32)
    sampling = Sampling(1.0, 0.5, seed=1)
    seen = {choose_token(flat, sampling, position).token_id for position in range(300)}
    assert seen <= {0, 1, 2}
    assert 3 not in seen


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert choose_token(LOGITS, GREEDY, 5).token_id == 0
    assert choose_token(np.array([1, 3, 3], np.float32), GREEDY, 0).token_id == 1


def test_a_replay_draws_the_same() -> None:
    sampling = Sampling(1.0, 0.95, seed=99)
    once = [choose_token(LOGITS, sampling, position) for position in range(200)]
    again = [choose_token(LOGITS, sampling, position) for position in reversed(range(200))]
    assert once == again[::-1]


def test_seeds_and_positions_draw_apart() -> None:
    first = noise_at(1, 1, 1000)
    for seed, position in ((1, 2), (2, 1), (MAX_SEED, 1), (0, 1)):
        other = noise_at(seed, position, 1000)
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1
    # nor is one position's noise a shifted copy of its neighbour's
    assert not set(noise_at(1, 2, 1000)) & set(first)


def test_noise_is_standard_gumbel_and_stays_as_it_is() -> None:
    noise = noise_at(5, 6, 50_000)
    assert np.isfinite(noise).all()
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.01
    # an edge and a cloud of different releases must draw alike
    np.testing.assert_allclose(noise_at(1, 2, 3), KNOWN_NOISE, rtol=1e-12)


def test_a_longer_vocabulary_has_the_same_noise_in_front() -> None:
    assert (noise_at(3, 4, 100)[:10] == noise_at(3, 4, 10)).all()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.5, seed=3), Sampling(1.0, 0.9, seed=4)])
def test_a_partial_vocabulary_draws_as_the_full_one_without_the_rest(sampling: Sampling) -> None:
    ids = np.array([1, 2, 5, 7], np.int32)
    masked = np.full(8, -1e9, np.float32)
    masked[ids] = LOGITS[ids]
    for position in range(200):
        part = choose_token(LOGITS[ids], sampling, position, vocabulary_ids=ids, vocabulary_size=8)
        full = choose_token(masked, sampling, position)
        assert part.token_id == full.token_id
        assert part.logprob == pytest.approx(full.logprob, abs=1e-6)


def plainly(logits: FloatArray, sampling: Sampling, position: int) -> int:
    """What a draw is: noise for every row, and a sort of them all."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    if sampling.top_p < 1.0:
        weights = np.exp(scaled)
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order]) / weights.sum()
        dropped = order[int(np.searchsorted(cumulative, sampling.top_p)) + 1 :]
        scaled[dropped] = -np.inf
    return int(np.argmax(scaled + noise_at(sampling.seed, position, len(logits))))


@given(
    st.one_of(st.integers(1, 600), st.sampled_from([255, 256, 257, 4095, 4096, 4097, 6000])),
    st.sampled_from([0.0, 0.01, 1.0, 6.0]),
    st.sampled_from([1e-3, 0.3, 1.0, 5.0]),
    st.sampled_from([1.0, 0.999999, 0.95, 0.5, 1e-9]),
    st.booleans(),
    st.integers(0, MAX_SEED),
)
def test_looking_at_few_rows_draws_what_looking_at_all_does(
    rows: int, spread: float, temperature: float, top_p: float, tied: bool, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, rows).astype(np.float32)
    if tied:
        logits = np.round(logits)
        logits[1::3] = -np.inf
    sampling = Sampling(temperature, top_p, seed)
    for position in range(4):
        assert choose_token(logits, sampling, position).token_id == plainly(
            logits, sampling, position
        )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_draw_some_token(value: float, top_p: float) -> None:
    logits = np.full(600, value, np.float32)
    assert 0 <= choose_token(logits, Sampling(1.0, top_p, seed=1), 0).token_id < 600


def test_the_logprob_is_that_of_temperature_one() -> None:
    choice = choose_token(LOGITS, Sampling(0.3, 0.5, seed=8), 3)
    wanted = math.log(softmax(LOGITS)[choice.token_id])
    assert choice.logprob == pytest.approx(wanted, abs=1e-6)
    assert log_probability(np.array([1000.0, 0.0], np.float32), 0) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": 101.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(fields: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Sampling(**fields)  # type: ignore[arg-type]


def test_the_smallest_temperature_is_greedy_and_finite() -> None:
    logits = np.array([3.0, 9.0, 9.5, -2.0], np.float32)
    for temperature in (1e-300, 5e-324):
        with np.errstate(all="ignore"):
            assert choose_token(logits, Sampling(temperature, 1.0, 7), 3).token_id == 2
