"""Choosing tokens: greedy, Gumbel-max, nucleus, and the same draw wherever it is made."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.errors import ConfigurationError
from shared.sampling import GREEDY, MAX_SEED, Sampling, choose_token, gumbel_noise, log_probability

EXPECTED_NOISE = [0.8257978224848115, -0.6876699383266498, 0.398236096777732]
LOGITS = np.array([0.0, 2.0, 1.0, -1.0, 1.5], np.float32)


def softmax(logits: np.ndarray[tuple[int], np.dtype[np.float32]]) -> list[float]:
    weights = np.exp(logits.astype(np.float64))
    return list(weights / weights.sum())


def test_greedy_takes_the_largest_and_tells_its_probability() -> None:
    choice = choose_token(LOGITS, GREEDY, 7)
    assert choice.token_id == 1
    assert choice.logprob == pytest.approx(math.log(softmax(LOGITS)[1]), abs=1e-6)


def test_the_log_probability_is_that_at_temperature_one() -> None:
    choice = choose_token(LOGITS, Sampling(5.0, seed=3), 7)
    assert choice.logprob == pytest.approx(math.log(softmax(LOGITS)[choice.token_id]), abs=1e-6)


def test_large_logits_do_not_overflow() -> None:
    assert log_probability(np.array([1e30, 0.0], np.float32), 0) == 0.0


def test_draws_follow_the_softmax() -> None:
    sampling = Sampling(0.8, seed=5)
    count = 20_000
    draws = [choose_token(LOGITS, sampling, position).token_id for position in range(count)]
    shares = np.bincount(draws, minlength=5) / count
    wanted = softmax((LOGITS / np.float32(0.8)).astype(np.float32))
    np.testing.assert_allclose(shares, wanted, atol=4 * math.sqrt(0.25 / count))


def test_the_nucleus_leaves_out_the_tail() -> None:
    sampling = Sampling(1.0, top_p=0.7, seed=1)
    draws = {choose_token(LOGITS, sampling, position).token_id for position in range(500)}
    assert draws == {1, 4}  # 0.47 and 0.28


def test_a_small_nucleus_is_greedy() -> None:
    sampling = Sampling(1.0, top_p=1e-9, seed=1)
    assert {choose_token(LOGITS, sampling, p).token_id for p in range(200)} == {1}


def test_noise_depends_on_seed_and_position_alone() -> None:
    first = gumbel_noise(9, 4, 100)
    np.testing.assert_array_equal(first, gumbel_noise(9, 4, 100))
    np.testing.assert_array_equal(first[:10], gumbel_noise(9, 4, 10))
    assert not np.array_equal(first, gumbel_noise(9, 5, 100))
    assert not np.array_equal(first, gumbel_noise(10, 4, 100))
    assert np.isfinite(gumbel_noise(MAX_SEED, 2**31, 1000)).all()


def test_noise_is_what_it_always_was() -> None:
    """A change here would make old edges and new clouds draw different tokens."""
    np.testing.assert_allclose(gumbel_noise(42, 3, 3), EXPECTED_NOISE, rtol=0, atol=1e-12)


def test_positions_of_a_session_do_not_share_noise() -> None:
    noise = np.stack([gumbel_noise(1, position, 64) for position in range(64)])
    assert len(np.unique(noise)) == noise.size


def test_a_part_of_the_vocabulary_draws_with_its_tokens_noise() -> None:
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    ids = np.array([1, 5, 8, 30, 49], np.int32)
    masked = np.full(50, -1e9, np.float32)
    masked[ids] = logits[ids]
    for position in range(100):
        sampling = Sampling(1.0, seed=2)
        whole = choose_token(masked, sampling, position)
        part = choose_token(logits[ids], sampling, position, vocabulary_ids=ids, vocabulary_size=50)
        assert part.token_id == whole.token_id


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 101.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Sampling(**fields)  # type: ignore[arg-type]
