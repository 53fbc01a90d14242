"""Lines through measured times: what is pure in measuring a machine.

Times of a few microseconds and of seconds matter alike, so a fit minimises relative errors; no
coefficient is negative, since nothing takes less time for more work (non-negative least squares,
Lawson and Hanson 1974).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from shared.errors import ConfigurationError
from simulator.fleet.profiles import PassModel


@dataclass(frozen=True)
class PassSample:
    """A pass as it was measured: ``sessions`` of ``rows`` rows each behind ``past`` positions, of
    which ``decisions`` of each session were decided; median ``seconds`` of its rounds."""

    sessions: int
    rows: int
    past: int
    decisions: int
    seconds: float

    @property
    def terms(self) -> tuple[float, ...]:
        """What :class:`PassModel` multiplies its coefficients with, the base first."""
        each = (self.rows, 1, self.decisions, self.past)
        return (1.0, *(float(self.sessions * term) for term in each))


@dataclass(frozen=True)
class Fit:
    """Coefficients, and the share of the measured variance that they explain."""

    coefficients: tuple[float, ...]
    r_squared: float


def fit(
    terms: Sequence[Sequence[float]],
    seconds: Sequence[float],
    weights: Sequence[float] | None = None,
) -> Fit:
    """Coefficients of ``terms`` (``[samples, terms]``) that come closest to ``seconds``.

    ``weights`` are of the relative errors, 1 each unless told.

    Raises:
        ConfigurationError: fewer samples than terms, or a time that is not above 0.
    """
    rows, times = np.array(terms, np.float64), np.array(seconds, np.float64)
    if len(rows) < rows.shape[-1] or not (times > 0).all():
        raise ConfigurationError(f"{len(times)} measured times do not make a fit")
    each = np.ones(len(times)) if weights is None else np.array(weights, np.float64)
    found, _ = nnls(rows * (each / times)[:, None], each)
    return Fit(tuple(found.tolist()), r_squared(rows @ found, times))


def r_squared(
    fitted: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
    measured: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
) -> float:
    """Share of the variance of ``measured`` that ``fitted`` explains, 0 at the least; 1 where there
    is none to explain."""
    fitted, measured = np.asarray(fitted), np.asarray(measured)
    rest = float(((measured - fitted) ** 2).sum())
    whole = float(((measured - measured.mean()) ** 2).sum())
    return max(0.0, 1.0 - rest / whole) if whole else 1.0


def fit_passes(samples: Sequence[PassSample]) -> PassModel:
    """The pass model of measured passes; raises as :func:`fit` does.

    No line goes through all of them: up to some eight rows a pass takes hardly longer than over
    one.  Passes over few rows are most of what a fleet asks for, so they weigh most.
    """
    found = fit(
        [sample.terms for sample in samples],
        [sample.seconds for sample in samples],
        [(sample.sessions * sample.rows) ** -0.5 for sample in samples],
    )
    base, row, session, decision, past = found.coefficients
    return PassModel(
        base_seconds=base,
        row_seconds=row,
        session_seconds=session,
        decision_seconds=decision,
        past_seconds=past,
        r_squared=found.r_squared,
        samples=len(samples),
    )


def worst_error(model: PassModel, samples: Sequence[PassSample]) -> float:
    """The largest relative error of the fit among the measured passes."""
    coefficients = np.array([
        model.base_seconds, model.row_seconds, model.session_seconds,
        model.decision_seconds, model.past_seconds,
    ])  # fmt: skip
    errors = (float(coefficients @ np.array(s.terms)) / s.seconds - 1.0 for s in samples)
    return max(abs(error) for error in errors)


def slope(seconds_by_count: Mapping[int, Sequence[float]]) -> float:
    """Seconds that each further position adds, from the times of some counts of positions.

    Raises:
        ConfigurationError: fewer than two counts.
    """
    counts = sorted(seconds_by_count)
    medians = [statistics.median(seconds_by_count[count]) for count in counts]
    return fit([(1.0, float(count)) for count in counts], medians).coefficients[1]
