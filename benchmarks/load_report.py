"""The load test's figures: a row for each contender and number of edges, and what they say."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from simulator.bench import markdown

COLLABORATIVE, CLOUD_ONLY, VLLM = "collaborative", "cloud-only", "vllm-cpu"
CONTENDERS = (COLLABORATIVE, CLOUD_ONLY, VLLM)


@dataclass(frozen=True)
class Row:
    """One contender under the load of so many edges.  Times are in milliseconds; ``None`` is what
    a contender does not tell.

    Attributes:
        decision_p50, decision_p99: from a question to its answer, at the edge.
        gap_p50, gap_p99: from a token to the next, at the edge.
        mean_per_token: the gaps' mean.
        cloud_seconds: processor seconds of the serving process per token that edges showed.
        client_share: processor seconds of all edges together, per second.
    """

    contender: str
    edges: int
    seconds: float
    tokens: int
    answers: int
    diverged: int
    tokens_per_second: float
    passes_per_second: float | None
    positions_per_pass: float | None
    decision_p50: float | None
    decision_p99: float | None
    first_p50: float | None
    gap_p50: float
    gap_p99: float
    mean_per_token: float
    cloud_seconds: float
    client_share: float | None


@dataclass(frozen=True)
class Comparison:
    """``edges`` of the collaborative mode have the ``p99`` (ms) that so many of ``other`` have;
    ``at_least`` where all that were measured stay below it."""

    other: str
    other_edges: int
    p99: float
    edges: float
    at_least: bool

    @property
    def ratio(self) -> float:
        """How many times as many."""
        return self.edges / self.other_edges


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return statistics.fmean(values) if values else math.nan


def edges_at(rows: Sequence[Row], p99: float) -> tuple[float, bool] | None:
    """How many edges ``rows`` (of one contender) bear before a gap's p99 exceeds ``p99``, between
    two measurements by their logarithms; ``True`` where the last one is still below.  ``None``
    where even the first is above."""
    rows = sorted(rows, key=lambda row: row.edges)
    if not rows or rows[0].gap_p99 > p99:
        return None
    for below, above in itertools.pairwise(rows):
        if above.gap_p99 > p99:
            share = math.log(p99 / below.gap_p99) / math.log(above.gap_p99 / below.gap_p99)
            return below.edges * (above.edges / below.edges) ** share, False
    return float(rows[-1].edges), True


def compare(rows: Sequence[Row], other: str) -> list[Comparison]:
    """The collaborative mode against ``other``, at each p99 that was measured of that."""
    ours = [row for row in rows if row.contender == COLLABORATIVE]
    found = []
    for row in sorted((r for r in rows if r.contender == other), key=lambda r: r.edges):
        edges = edges_at(ours, row.gap_p99)
        if edges is not None:
            found.append(Comparison(other, row.edges, row.gap_p99, *edges))
    return found


_HEAD = (
    "contender", "edges", "tokens/s", "passes/s", "positions/pass",
    "decision p50, ms", "p99", "first token p50, ms", "per token p50, ms", "p99", "mean",
    "cloud s/token", "answers", "diverged", "edges' cores",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    return [
        row.contender,
        str(row.edges),
        _shown(row.tokens_per_second, 1),
        _shown(row.passes_per_second, 1),
        _shown(row.positions_per_pass, 1),
        _shown(row.decision_p50, 1),
        _shown(row.decision_p99, 1),
        _shown(row.first_p50, 0),
        _shown(row.gap_p50, 1),
        _shown(row.gap_p99, 1),
        _shown(row.mean_per_token, 1),
        _shown(row.cloud_seconds, 4),
        str(row.answers),
        str(row.diverged),
        _shown(row.client_share, 2),
    ]


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(rows: Iterable[Row]) -> Table:
    """For the terminal."""
    shown = Table(box=None, pad_edge=False)
    for index, heading in enumerate(_HEAD):
        shown.add_column(heading, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures say of the collaborative mode, in words."""
    said = []
    for other in (CLOUD_ONLY, VLLM):
        for found in compare(rows, other):
            least = "at least " if found.at_least else ""
            said.append(
                f"At a p99 of {found.p99:.0f} ms per token ({found.other_edges} edges of {other}): "
                f"{least}{found.edges:.1f} collaborative edges, {least}{found.ratio:.2f} times."
            )
        for ours, theirs in _pairs(rows, other):
            mine, other_ones = ours.cloud_seconds * 1e3, theirs.cloud_seconds * 1e3
            said.append(
                f"With {ours.edges} edges a token costs the cloud {mine:.1f} ms of a core, in "
                f"{other} {other_ones:.1f} ms: {other_ones / max(mine, 1e-9):.2f} times."
            )
    return said


def _pairs(rows: Sequence[Row], other: str) -> list[tuple[Row, Row]]:
    ours = {row.edges: row for row in rows if row.contender == COLLABORATIVE}
    theirs = [row for row in rows if row.contender == other and row.edges in ours]
    return [(ours[row.edges], row) for row in theirs]


def markdown_report(
    command: str, rows: Sequence[Row], about: Sequence[str], absent: Sequence[str]
) -> str:
    """The whole report as Markdown."""
    parts = [
        "# The cloud under load",
        f"```sh\n{command}\n```",
        "Edges replay recorded answers, one after the other without a pause: the frames and the "
        "edge's own times are those of real generations, and the waits are the cloud's. *Per "
        "token* is from a token to the next of an answer as its reader sees it; *decision* from a "
        "question to its answer at the edge; *cloud s/token* the processor time of the serving "
        "process for each token that edges showed. *Diverged* answers met a decision other than "
        "the recorded one and were left.",
        "\n".join(f"- {line}" for line in about),
        markdown.table(_HEAD, map(_cells, rows)),
        "\n".join(f"- {line}" for line in (*sentences(rows), *absent)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
