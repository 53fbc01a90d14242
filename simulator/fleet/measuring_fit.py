"""Lines through measured times: what is pure in measuring a machine.

Times of a few microseconds and of seconds matter alike, so a fit minimises relative errors; no
coefficient is negative, since nothing takes less time for more work (non-negative least squares,
Lawson and Hanson 1974).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from scipy.optimize import nnls

from shared.errors import ConfigurationError
from simulator.fleet.profiles import PassModel

_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128)


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
    def all_rows(self) -> int:
        """Of the pass."""
        return self.sessions * self.rows

    def terms(self, knots: Sequence[int]) -> tuple[float, ...]:
        """What the coefficients are multiplied with: the base, how far the rows go along each
        stretch between two knots (0 to 1, beyond 1 on the last), then sessions, decisions, past."""
        return (1.0, *_along(self.all_rows, knots), *(
            float(self.sessions * term) for term in (1, self.decisions, self.past)
        ))  # fmt: skip


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
    """The pass model of measured passes, with a knot at each power of two that was measured;
    raises as :func:`fit` does."""
    measured = {sample.all_rows for sample in samples}
    knots = (1, *(knot for knot in _KNOTS[1:] if knot in measured))
    seconds = [sample.seconds for sample in samples]
    found = fit([sample.terms(knots) for sample in samples], seconds)
    base, *stretches = found.coefficients[:-3]
    session, decision, past = found.coefficients[-3:]
    return PassModel(
        base_seconds=base,
        knots=knots,
        beyond_seconds=tuple(accumulate(stretches, initial=0.0)),
        session_seconds=session,
        decision_seconds=decision,
        past_seconds=past,
        r_squared=found.r_squared,
        samples=len(samples),
    )


def worst_error(model: PassModel, samples: Sequence[PassSample]) -> float:
    """The largest relative error of the fit among the measured passes."""
    coefficients = (
        model.base_seconds,
        *(after - before for before, after in pairwise(model.beyond_seconds)),
        model.session_seconds,
        model.decision_seconds,
        model.past_seconds,
    )
    return max(
        abs(float(np.dot(coefficients, sample.terms(model.knots))) / sample.seconds - 1.0)
        for sample in samples
    )


def _along(rows: int, knots: Sequence[int]) -> list[float]:
    """How far ``rows`` are along each stretch between two knots."""
    shares = [max(0.0, (rows - a) / (b - a)) for a, b in pairwise(knots)]
    return [*(min(1.0, share) for share in shares[:-1]), *shares[-1:]]


def slope(seconds_by_count: Mapping[int, Sequence[float]]) -> float:
    """Seconds that each further position adds, from the times of some counts of positions.

    Raises:
        ConfigurationError: fewer than two counts.
    """
    counts = sorted(seconds_by_count)
    medians = [statistics.median(seconds_by_count[count]) for count in counts]
    return fit([(1.0, float(count)) for count in counts], medians).coefficients[1]
