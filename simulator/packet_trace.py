"""Packet-delivery traces in Mahimahi's format: read, validated, or invented from a seed.

A trace is a text file with one number a line, not falling: the millisecond at which the link can
carry 1,500 bytes.  Accounting is by the byte, so one opportunity may carry several small packets,
and what nobody uses is lost.  After its last number the trace begins again, shifted by that number
(manual page of ``mm-link``; Netravali et al., "Mahimahi", USENIX ATC 2015).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from shared.errors import LinkError

OPPORTUNITY_BYTES = 1_500
MAX_OPPORTUNITIES = 5_000_000
MAX_DIGITS = 15  # of a time in milliseconds
_STEP_MS = 100  # how often an invented trace changes its rate


class Trace(BaseModel):
    """Delivery opportunities, in milliseconds from the start of each round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    opportunities_ms: tuple[int, ...]

    @model_validator(mode="after")
    def _valid(self) -> Self:
        times = self.opportunities_ms
        if not times:
            raise ValueError("a trace without a delivery opportunity delivers nothing")
        if len(times) > MAX_OPPORTUNITIES:
            raise ValueError(f"a trace has at most {MAX_OPPORTUNITIES:,} opportunities")
        if times[0] < 0:
            raise ValueError("a trace begins at 0 ms or later")
        if any(late < early for early, late in pairwise(times)):
            raise ValueError("the times of a trace must not fall")
        if times[-1] == 0:
            raise ValueError("a trace must end later than 0 ms: its last time is its length")
        if times[-1] >= 10**MAX_DIGITS:
            raise ValueError(f"a trace ends before 10^{MAX_DIGITS} ms")
        return self

    @property
    def seconds(self) -> float:
        """Length of one round."""
        return self.opportunities_ms[-1] / 1e3

    @property
    def mean_mbit(self) -> float:
        """Average rate over a round, Mbit/s."""
        return len(self.opportunities_ms) * OPPORTUNITY_BYTES * 8 / 1e6 / self.seconds


def load_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        LinkError: it cannot be read, or is no trace; says the line.
    """
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except OSError as error:
        raise LinkError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LinkError(f"{path} is no packet trace: it is not text") from None
    times: list[int] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line:
            continue
        if not line.isdecimal() or len(line) > MAX_DIGITS:
            raise LinkError(f"{path}, line {number}: {line[:20]!r} is not a whole millisecond")
        if times and int(line) < times[-1]:
            raise LinkError(f"{path}, line {number}: {line} is earlier than the line before")
        times.append(int(line))
    try:
        return Trace(name=path.name, opportunities_ms=tuple(times))
    except ValueError as error:
        message = str(error).split("Value error, ", 1)[-1].split(" [type=", 1)[0]
        raise LinkError(f"{path}: {message}") from None


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace file that :func:`load_trace` and ``mm-link`` read."""
    path.write_text("".join(f"{time}\n" for time in trace.opportunities_ms), encoding="ascii")


def invent_trace(
    *, mean_mbit: float, spread: float, memory_s: float, seconds: int, seed: int
) -> Trace:
    """A trace like those of a moving phone: a log-normal rate that wanders.

    The logarithm of the rate is a stationary first-order autoregression (step 100 ms); the rate
    is scaled so that the trace's average is ``mean_mbit`` to within one packet.

    Args:
        spread: standard deviation of the rate's natural logarithm (0 is a constant rate).
        memory_s: correlation time of the rate.
        seconds: length; the last opportunity falls on it.
        seed: the same seed gives the same trace.

    Raises:
        LinkError: a value out of range.
    """
    packets = round(mean_mbit * 1e6 * seconds / 8 / OPPORTUNITY_BYTES) if seconds > 0 else 0
    if not 1 <= packets <= MAX_OPPORTUNITIES or not 0 <= spread <= 3 or memory_s <= 0:
        raise LinkError(
            "a trace needs seconds, mean_mbit and memory_s above 0, a spread within 0 to 3, and "
            f"1 to {MAX_OPPORTUNITIES:,} packets"
        )
    noise = np.random.default_rng(seed)
    steps = seconds * 1000 // _STEP_MS
    keep = float(np.exp(-_STEP_MS / 1e3 / memory_s))
    shocks = noise.standard_normal(steps)
    shocks[1:] *= np.sqrt(1 - keep**2)
    levels = np.empty(steps)
    level = 0.0
    for index, shock in enumerate(shocks):
        level = keep * level + float(shock)
        levels[index] = level
    carried = np.cumsum(np.exp(spread * levels))
    carried *= packets / carried[-1]
    # packet k leaves when the link has carried k + 1 packets: linear between two steps
    grid = np.arange(steps + 1) * _STEP_MS
    times = np.interp(np.arange(1, packets + 1), np.concatenate([[0.0], carried]), grid)
    return Trace(
        name=f"invented-{mean_mbit:g}mbit-{seed}",
        opportunities_ms=tuple(int(time) for time in np.ceil(times - 1e-9)),
    )
