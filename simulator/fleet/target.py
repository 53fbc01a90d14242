"""A latency target, as people write it: ``p95 time per token <= 100 ms``."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigurationError
from simulator.fleet.group import Group

DEFAULT_TARGET = "p95 time per token <= 100 ms"
_FORM = re.compile(
    r"\s*(mean|p\d{1,2})\s+(time per token|first token|answer)\s*<=\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*"
)


@dataclass(frozen=True)
class Target:
    """``statistic`` is ``mean`` or a percentile, ``quantity`` what it is of."""

    statistic: str
    quantity: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.statistic} {self.quantity} <= {self.seconds * 1e3:g} ms"

    def measure(self, group: Group) -> float:
        """What the answers of ``group`` come to, seconds; infinite where there are none."""
        log = group.log
        values: npt.NDArray[np.float64] = np.array(
            log.first_seconds if self.quantity == "first token" else log.seconds, np.float64
        )
        if not len(values):
            return float("inf")
        if self.quantity == "time per token":
            values = values / np.array(log.tokens, np.float64)
        if self.statistic == "mean":
            return float(values.mean())
        return float(np.percentile(values, int(self.statistic[1:])))


def parse_target(text: str) -> Target:
    """Read a target.

    Raises:
        ConfigurationError: it is none; says how one looks.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"target {text!r}: write it like {DEFAULT_TARGET!r}, with mean or p1 to p99 of time "
            "per token, first token or answer, in ms or s"
        )
    statistic, quantity, number, unit = found.groups()
    seconds = float(number) / (1e3 if unit == "ms" else 1.0)
    if statistic in ("p0", "p00") or seconds <= 0.0:
        raise ConfigurationError(f"target {text!r} cannot be reached or missed")
    return Target(statistic, quantity, seconds)
