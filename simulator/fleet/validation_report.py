"""What the validation found: paces, their errors, and the table of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from simulator.bench import markdown
from simulator.fleet.profiles import CloudProfile, DeviceProfile

GOAL = 0.10


@dataclass(frozen=True)
class Pace:
    """Seconds per token: over all tokens, and the 95th percentile of answers; and from a question
    to its answer's ``first`` token, the mean."""

    mean: float
    p95: float
    first: float


@dataclass(frozen=True)
class Round:
    """A fleet as it was once, and as it is simulated.

    A pass took ``slowdown`` times as long around it as when the profile was measured; no real edge
    began more than ``late`` seconds behind its turn.
    """

    real: Pace
    simulated: Pace
    slowdown: float = 1.0
    late: float = 0.0

    @property
    def errors(self) -> tuple[float, float]:
        """Of the simulated mean and p95, relative to the real ones."""
        return (
            self.simulated.mean / self.real.mean - 1.0,
            self.simulated.p95 / self.real.p95 - 1.0,
        )


@dataclass(frozen=True)
class Row:
    """One comparison, in rounds of so many ``answers`` each; its figures are medians over them."""

    policy: str
    edges: int
    answers: int
    rounds: tuple[Round, ...]

    def median(self, figure: Callable[[Round], float]) -> float:
        """Of one figure of each round."""
        return statistics.median(map(figure, self.rounds))

    @property
    def errors(self) -> tuple[float, float]:
        """Medians of the rounds' errors, of the mean and of p95."""
        return self.median(lambda one: one.errors[0]), self.median(lambda one: one.errors[1])

    @property
    def within(self) -> bool:
        """Whether both are within the goal."""
        return max(map(abs, self.errors)) <= GOAL


@dataclass(frozen=True)
class Validation:
    """All comparisons, and the profiles that the simulator was fed with."""

    rows: tuple[Row, ...]
    device: DeviceProfile
    cloud: CloudProfile

    @property
    def within(self) -> bool:
        """Whether every one is within the goal."""
        return all(row.within for row in self.rows)

    def as_record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rows": [asdict(row) | {"errors": row.errors} for row in self.rows],
            "device": self.device.model_dump(mode="json"),
            "cloud": self.cloud.model_dump(mode="json"),
        }


def pace_of(answers: Sequence[tuple[float, float, int]]) -> Pace:
    """The pace of answers: for each the seconds to its first token and to its last, and how many it
    had.

    The percentile is the smallest value that 95% of the answers are not above.
    """
    each = sorted(seconds / tokens for _, seconds, tokens in answers)
    return Pace(
        sum(seconds for _, seconds, _ in answers) / sum(tokens for _, _, tokens in answers),
        each[math.ceil(0.95 * len(each)) - 1],
        sum(first for first, _, _ in answers) / len(answers),
    )


_HEAD = (
    "policy", "edges", "answers", "mean real, ms/token", "simulated", "error",
    "p95 real, ms/token", "simulated", "error", "first token real, ms", "simulated", "passes",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    return [
        row.policy,
        str(row.edges),
        str(row.answers),
        f"{1e3 * row.median(lambda one: one.real.mean):.1f}",
        f"{1e3 * row.median(lambda one: one.simulated.mean):.1f}",
        _error_cell(row, 0),
        f"{1e3 * row.median(lambda one: one.real.p95):.1f}",
        f"{1e3 * row.median(lambda one: one.simulated.p95):.1f}",
        _error_cell(row, 1),
        f"{1e3 * row.median(lambda one: one.real.first):.0f}",
        f"{1e3 * row.median(lambda one: one.simulated.first):.0f}",
        f"× {row.median(lambda one: one.slowdown):.2f}",
    ]


def _error_cell(row: Row, which: int) -> str:
    """The median, and the least and the greatest where there are several rounds."""
    each = [one.errors[which] for one in row.rounds]
    span = f" ({min(each):+.1%} to {max(each):+.1%})" if len(each) > 1 else ""
    return f"{row.errors[which]:+.1%}{span}"


def table(rows: Sequence[Row]) -> Table:
    """For the terminal; what misses the goal stands out."""
    shown = Table(box=None, pad_edge=False)
    for index, heading in enumerate(_HEAD):
        shown.add_column(heading, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*_cells(row), style=None if row.within else "bold red")
    return shown


def markdown_table(rows: Sequence[Row]) -> str:
    """For the documentation."""
    return markdown.table(_HEAD, map(_cells, rows))
