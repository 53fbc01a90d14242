"""From an exit's raw maximum probability to the probability that the full model agrees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from prepare.exit_training.edge_reading import ExitReading
from shared.model_bundle import Calibration, OperatingPoint

FloatArray = npt.NDArray[np.float64]

# dense where agreements of interest lie
_THRESHOLDS = tuple(
    round(float(x), 3) for x in [*np.arange(0.3, 0.8, 0.05), *np.arange(0.8, 1.0, 0.01), 0.995]
)


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


@dataclass(frozen=True)
class Calibrated:
    """Calibrations of all exits, and what they are worth on answers they were not fitted to.

    Attributes:
        confidence: per exit, ``[positions]`` cross-fitted: each half of the answers is judged by
            the calibration of the other.
    """

    calibrations: tuple[Calibration, ...]
    confidence: tuple[FloatArray, ...]
    errors: tuple[float, ...]
    operating_points: tuple[OperatingPoint, ...]


def calibrate(readings: Sequence[ExitReading]) -> Calibrated:
    """Fit every exit on all answers, and judge each half of them by a fit on the other half."""
    shown = []
    for reading in readings:
        confidence = np.zeros(len(reading.raw))
        for half in (0, 1):
            judged = reading.answer % 2 == half
            fitted = fit_calibration(reading.raw[~judged], reading.right[~judged])
            confidence[judged] = apply_calibration(fitted, reading.raw[judged])
        shown.append(confidence)
    return Calibrated(
        tuple(fit_calibration(reading.raw, reading.right) for reading in readings),
        tuple(shown),
        tuple(calibration_error(c, r.right) for c, r in zip(shown, readings, strict=True)),
        operating_points(shown, [reading.right for reading in readings]),
    )


def apply_calibration(calibration: Calibration, raw: npt.NDArray[np.float32]) -> FloatArray:
    """Confidence of each of ``raw`` (``[n]``)."""
    shown: FloatArray = np.interp(raw, calibration.raw, calibration.confidence)
    return shown


def operating_points(
    confidence: Sequence[FloatArray],
    right: Sequence[npt.NDArray[np.bool_]],
    thresholds: Sequence[float] = _THRESHOLDS,
) -> tuple[OperatingPoint, ...]:
    """Agreement and escalation rate at each threshold: the first exit that is sure enough decides,
    and where none is, the cloud, which is right."""
    points = []
    for threshold in thresholds:
        undecided = np.ones(len(right[0]), np.bool_)
        wrong = 0
        for sure, ok in zip(confidence, right, strict=True):
            taken = undecided & (sure >= threshold)
            wrong += int((taken & ~ok).sum())
            undecided &= ~taken
        points.append(
            OperatingPoint(
                threshold=threshold,
                agreement=round(1.0 - wrong / len(undecided), 4),
                escalation_rate=round(float(undecided.mean()), 4),
            )
        )
    return tuple(points)
