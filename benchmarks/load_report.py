"""The load test's figures: a row for each contender and number of edges, and what they say."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum

from rich.table import Table

from benchmarks.load_replay import LEAST_GAPS
from simulator.bench import markdown

COLLABORATIVE, CLOUD_ONLY, VLLM = "collaborative", "cloud-only", "vllm-cpu"
CONTENDERS = (COLLABORATIVE, CLOUD_ONLY, VLLM)


class Bound(Enum):
    """What a number of edges is of the one that would be found."""

    NONE = ""
    LEAST = "at least "  # all that were measured stay below the p99
    MOST = "fewer than "  # all are above it


class Figure(Enum):
    """What a p99 is of."""

    GAP = "from token to token"
    PACE = "per token of an answer"


@dataclass(frozen=True)
class Row:
    """One contender under the load of so many edges.  Times are in milliseconds; ``None`` is what
    a contender does not tell.

    Attributes:
        repeat: which measurement of this it is, from 0; of medians, how many they are of.
        decision_p50, decision_p99: from a question to its answer, at the edge.
        gap_p50, gap_p99: from a token to the next, at the edge.
        pace_p99: of each answer's mean of those, over the ``paced`` answers of which enough was
            seen.
        mean_per_token: the gaps' mean.
        cloud_seconds: processor seconds of the serving process per token that edges showed.
        client_share: processor seconds of all edges together, per second.
    """

    contender: str
    edges: int
    repeat: int
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
    pace_p99: float | None
    paced: int
    mean_per_token: float
    cloud_seconds: float
    client_share: float | None


@dataclass(frozen=True)
class Comparison:
    """``edges`` of the collaborative mode have the ``p99`` (ms) that so many of ``other`` have, or
    ``bound`` says how that is to be read; ``figure`` says of what."""

    figure: Figure
    other: str
    other_edges: int
    p99: float
    edges: float
    bound: Bound

    @property
    def ratio(self) -> float:
        """How many times as many."""
        return self.edges / self.other_edges


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row for all repeats of a measurement: counts are added, of all else the median."""
    of: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        of.setdefault((row.contender, row.edges), []).append(row)
    return [_median(repeats) for repeats in of.values()]


def _median(repeats: Sequence[Row]) -> Row:
    found: dict[str, object] = {"repeat": len(repeats)}
    for name in (field.name for field in fields(Row)):
        values = [getattr(row, name) for row in repeats]
        if name in _SAME:
            found[name] = values[0]
        elif name in _ADDED:
            found[name] = sum(values)
        elif name not in found:
            told = [value for value in values if value is not None]
            found[name] = statistics.median(told) if told else None
    return Row(**found)  # type: ignore[arg-type]  # each field has the type that it had


_SAME = ("contender", "edges", "seconds")
_ADDED = ("tokens", "answers", "diverged", "paced")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return statistics.fmean(values) if values else math.nan


def p99_of(row: Row, figure: Figure) -> float | None:
    """In milliseconds; ``None`` where all answers were too short to tell."""
    return row.gap_p99 if figure is Figure.GAP else row.pace_p99


def edges_at(rows: Sequence[Row], figure: Figure, p99: float) -> tuple[float, Bound] | None:
    """How many edges ``rows`` (of one contender) bear before the p99 of ``figure`` exceeds ``p99``,
    between two measurements by their logarithms; ``None`` where there are none."""
    told = [(row.edges, p99_of(row, figure)) for row in rows]
    measured = sorted((edges, value) for edges, value in told if value is not None)
    if not measured:
        return None
    if measured[0][1] > p99:
        return float(measured[0][0]), Bound.MOST
    for (fewer, below), (more, above) in itertools.pairwise(measured):
        if above > p99:
            share = math.log(p99 / below) / math.log(above / below)
            return fewer * (more / fewer) ** share, Bound.NONE
    return float(measured[-1][0]), Bound.LEAST


def compare(rows: Sequence[Row], figure: Figure, other: str) -> list[Comparison]:
    """The collaborative mode against ``other``, at each p99 that was measured of that."""
    ours = [row for row in rows if row.contender == COLLABORATIVE]
    found = []
    for row in sorted((r for r in rows if r.contender == other), key=lambda r: r.edges):
        p99 = p99_of(row, figure)
        if p99 is not None and (edges := edges_at(ours, figure, p99)) is not None:
            found.append(Comparison(figure, other, row.edges, p99, *edges))
    return found


_HEAD = (
    "contender", "edges", "tokens/s", "passes/s", "positions/pass",
    "decision p50, ms", "p99", "first token p50, ms", "token to token p50, ms", "p99", "mean",
    "per token p99, ms", "of answers", "cloud s/token", "answers", "diverged", "edges' cores",
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
        _shown(row.pace_p99, 1),
        str(row.paced),
        _shown(row.cloud_seconds, 4),
        str(row.answers),
        str(row.diverged),
        _shown(row.client_share, 2),
    ]


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(rows: Sequence[Row]) -> Table:
    """For the terminal, a row for the medians of each measurement's repeats."""
    shown = Table(box=None, pad_edge=False)
    for index, heading in enumerate(_HEAD):
        shown.add_column(heading, justify="right" if index else "left")
    for row in medians(rows):
        shown.add_row(*_cells(row))
    return shown


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures say of the collaborative mode, in words: of the medians, and in brackets
    from the least to the most of the repeats."""
    said, together = [], medians(rows)
    repeats = [[row for row in rows if row.repeat == each] for each in {r.repeat for r in rows}]
    for other in (CLOUD_ONLY, VLLM):
        for figure in Figure:
            each = [compare(repeat, figure, other) for repeat in repeats]
            for found in compare(together, figure, other):
                ratios = [
                    c for repeat in each for c in repeat if c.other_edges == found.other_edges
                ]
                said.append(
                    f"At a p99 of {found.p99:.0f} ms {figure.value} ({found.other_edges} edges "
                    f"of {other}): {found.bound.value}{found.edges:.1f} collaborative edges, "
                    f"{found.bound.value}{found.ratio:.2f} times{_range(ratios)}."
                )
        for ours, theirs in _pairs(together, other):
            mine, other_ones = ours.cloud_seconds * 1e3, theirs.cloud_seconds * 1e3
            said.append(
                f"With {ours.edges} edges a token costs the cloud {mine:.1f} ms of a core, in "
                f"{other} {other_ones:.1f} ms: {other_ones / max(mine, 1e-9):.2f} times."
            )
    return said


def _range(found: Sequence[Comparison]) -> str:
    """Of several repeats, from the least to the most; nothing of one."""
    if len(found) < 2:
        return ""
    least, *_, most = sorted(found, key=lambda each: each.ratio)
    ends = (f"{each.bound.value}{each.ratio:.2f}" for each in (least, most))
    return f" ({' to '.join(ends)})"


def _pairs(rows: Sequence[Row], other: str) -> list[tuple[Row, Row]]:
    ours = {row.edges: row for row in rows if row.contender == COLLABORATIVE}
    theirs = [row for row in rows if row.contender == other and row.edges in ours]
    return [(ours[row.edges], row) for row in theirs]


def markdown_report(
    command: str, rows: Sequence[Row], about: Sequence[str], absent: Sequence[str]
) -> str:
    """The whole report as Markdown, of the medians of all repeats."""
    parts = [
        "# The cloud under load",
        f"```sh\n{command}\n```",
        "Edges replay recorded answers, one after the other without a pause: the frames and the "
        "edge's own times are those of real generations, and the waits are the cloud's. *Token to "
        "token* is from a token of an answer to its next as a reader sees them (inter-token "
        "latency); *per token* the mean of those of an answer (time per output token), and its p99 "
        f"is over all answers of which {LEAST_GAPS} or more were counted, ended or not: the "
        "slowest of them where they are fewer than 100; *decision* from a question to its answer "
        "at the edge; *cloud s/token* the processor time of the serving process for each token "
        "that edges showed. *Diverged* answers met a decision other than the recorded one and "
        "were left.",
        "\n".join(f"- {line}" for line in about),
        markdown.table(_HEAD, map(_cells, medians(rows))),
        "\n".join(f"- {line}" for line in (*sentences(rows), *absent)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
