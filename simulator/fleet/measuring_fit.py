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

_FREE_ROWS = (0, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class PassSample:
    """A pass as it was measured: ``sessions`` of ``rows`` rows each behind ``past`` positions, of
    which ``decisions`` of each session were decided; median ``seconds`` of its rounds."""

    sessions: int
    rows: int
    past: int
    decisions: int
    seconds: float

    def terms(self, free_rows: int) -> tuple[float, ...]:
        """What :class:`PassModel` multiplies its coefficients with, the base first."""
        rows = max(0, self.sessions * self.rows - free_rows)
        each = (1, self.decisions, self.past)
        return (1.0, float(rows), *(float(self.sessions * term) for term in each))


@dataclass(frozen=True)
class Fit:
    """Coefficients, the share of the measured variance that they explain, and the root mean square
    of the relative errors that they leave."""

    coefficients: tuple[float, ...]
    r_squared: float
    error: float


def fit(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> Fit:
    """Coefficients of ``terms`` (``[samples, terms]``) that come closest to ``seconds``.

    Raises:
        ConfigurationError: fewer samples than terms, or a time that is not above 0.
    """
    rows, times = np.array(terms, np.float64), np.array(seconds, np.float64)
    if len(rows) < rows.shape[-1] or not (times > 0).all():
        raise ConfigurationError(f"{len(times)} measured times do not make a fit")
    found, rest = nnls(rows / times[:, None], np.ones(len(times)))
    error = float(rest) / len(times) ** 0.5
    return Fit(tuple(found.tolist()), r_squared(rows @ found, times), error)


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
    """The pass model of measured passes, with as many free rows as fit best; raises as :func:`fit`
    does."""
    seconds = [sample.seconds for sample in samples]
    fits = {free: fit([sample.terms(free) for sample in samples], seconds) for free in _FREE_ROWS}
    free = min(fits, key=lambda count: fits[count].error)
    base, row, session, decision, past = fits[free].coefficients
    return PassModel(
        base_seconds=base,
        row_seconds=row,
        session_seconds=session,
        decision_seconds=decision,
        past_seconds=past,
        free_rows=free,
        r_squared=fits[free].r_squared,
        samples=len(samples),
    )


def worst_error(model: PassModel, samples: Sequence[PassSample]) -> float:
    """The largest relative error of the fit among the measured passes."""
    coefficients = np.array([
        model.base_seconds, model.row_seconds, model.session_seconds,
        model.decision_seconds, model.past_seconds,
    ])  # fmt: skip
    errors = (
        float(coefficients @ np.array(s.terms(model.free_rows))) / s.seconds - 1.0 for s in samples
    )
    return max(abs(error) for error in errors)


def slope(seconds_by_count: Mapping[int, Sequence[float]]) -> float:
    """Seconds that each further position adds, from the times of some counts of positions.

    Raises:
        ConfigurationError: fewer than two counts.
    """
    counts = sorted(seconds_by_count)
    medians = [statistics.median(seconds_by_count[count]) for count in counts]
    return fit([(1.0, float(count)) for count in counts], medians).coefficients[1]
