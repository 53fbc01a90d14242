"""Fits of measured times: what was put in comes out, and nothing negative ever."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shared.errors import ConfigurationError
from simulator.fleet.measuring_fit import (
    PassSample,
    fit,
    fit_passes,
    r_squared,
    slope,
    worst_error,
)

SHAPES = [
    (s, r, p, d)
    for s, r, p in itertools.product((1, 4, 16), (1, 2, 8), (64, 256))
    for d in {1, r}
]  # fmt: skip
TRUE = (0.030, 0.0013, 0.0009, 0.0011, 5e-6)


def seconds_of(shape: tuple[int, int, int, int], free: int) -> float:
    sessions, rows, past, decisions = shape
    base, row, session, decision, behind = TRUE
    each = session + decisions * decision + past * behind
    return base + max(0, sessions * rows - free) * row + sessions * each


def samples(factor: float = 1.0, free: int = 1) -> list[PassSample]:
    """Passes that took what :data:`TRUE` says, the larger ones ``factor`` times as long."""
    return [
        PassSample(*shape, seconds_of(shape, free) * (factor if shape[0] == 16 else 1.0))
        for shape in SHAPES
    ]


@pytest.mark.parametrize("free", [1, 4, 8])
def test_exact_times_give_their_coefficients_back(free: int) -> None:
    """So many rows that take no longer than one are found, where a knot lies at their end."""
    model = fit_passes(samples(free=free))
    base, row, *rest = TRUE
    found = (model.session_seconds, model.decision_seconds, model.past_seconds)
    assert found == pytest.approx(rest, rel=1e-6)
    assert model.base_seconds == pytest.approx(base, rel=1e-6)
    assert model.knots[-1] == 128
    table = model.rows_seconds(256)
    for rows in (1, 2, 4, 8, 16, 100, 128, 256):
        assert table[rows] == pytest.approx(base + max(0, rows - free) * row, rel=1e-6)
    assert model.r_squared == pytest.approx(1.0)
    assert model.samples == len(SHAPES)
    assert worst_error(model, samples(free=free)) < 1e-6


def test_knots_lie_where_passes_were_measured() -> None:
    few = [sample for sample in samples() if sample.sessions != 16]
    assert fit_passes(few).knots == (1, 2, 4, 8, 32)


def test_what_the_line_misses_lowers_r_squared_and_shows_as_an_error() -> None:
    crooked = samples(factor=1.5)
    model = fit_passes(crooked)
    assert 0.5 < model.r_squared < 0.9999
    assert 0.02 < worst_error(model, crooked) < 0.6


def test_no_coefficient_is_negative() -> None:
    found = fit([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], [0.3, 0.2, 0.1])
    assert found.coefficients[1] == 0.0
    assert found.coefficients[0] > 0.0
    assert 0.0 <= found.r_squared <= 1.0


def test_small_times_count_as_much_as_large_ones() -> None:
    """Twice as wrong a large time does not draw the fit away from the small ones."""
    rows = [(1.0, float(n)) for n in (1, 2, 3, 4, 1000)]
    times = [0.001 * n for n in (1, 2, 3, 4)] + [2.0]
    found = fit(rows, times)
    errors = [
        abs(np.dot(found.coefficients, row) / time - 1)
        for row, time in zip(rows[:4], times[:4], strict=True)
    ]
    assert max(errors) < 0.5


def test_the_slope_is_what_a_further_position_adds() -> None:
    medians = {1: [0.9, 0.01, 0.012], 4: [0.018, 0.018], 16: [0.042], 64: [0.138]}
    assert slope(medians) == pytest.approx(0.002, rel=0.05)


def test_r_squared_of_a_constant_is_one() -> None:
    assert r_squared([1.0, 1.0], [1.0, 1.0]) == 1.0


@pytest.mark.parametrize(("rows", "times"), [([(1.0, 1.0)], [0.1]), ([(1.0,), (1.0,)], [0.1, 0.0])])
def test_too_little_to_fit_is_refused(rows: list[tuple[float, ...]], times: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="do not make a fit"):
        fit(rows, times)
