"""From an exit's raw maximum probability to the probability that the full model agrees."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from shared.model_bundle import Calibration


def fit_calibration(
    raw: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], *, knots: int = 24
) -> Calibration:
    """Isotonic regression (Zadrozny and Elkan 2002), thinned to at most ``knots`` points.

    Args:
        raw: ``[n]`` maximum probabilities.
        right: ``[n]`` whether the exit's token was the full model's.
    """
    order = np.argsort(raw, kind="stable")
    sorted_raw = raw[order].astype(np.float64)
    fitted = isotonic_regression(right[order].astype(np.float64)).x
    edges = np.linspace(0, len(raw), knots + 1).astype(int)
    points: list[tuple[float, float]] = []
    for start, stop in itertools.pairwise(edges):
        if stop <= start:
            continue
        x = float(sorted_raw[start:stop].mean())
        if points and x <= points[-1][0] + 1e-6:
            continue
        points.append((x, float(fitted[start:stop].mean())))
    if len(points) < 2:
        points = [(0.0, points[0][1]), (1.0, points[0][1])] if points else [(0, 0), (1, 1)]
    rising = np.maximum.accumulate([y for _, y in points])
    return Calibration(
        raw=tuple(round(x, 6) for x, _ in points),
        confidence=tuple(round(float(min(1.0, y)), 6) for y in rising),
    )


def calibration_error(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| over equal-width
    bins, weighted by their size."""
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)
