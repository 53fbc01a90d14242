"""Where Tandem loses: every compared measure on which a contender of ours is worse than what it
competes with, found in the figures and not by hand.

Compared are time per token, time to the first token and bytes per token each way, link by link,
and the three measures of quality.  Bytes are not compared with a rival that sends none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.bench.registry import Kind
from simulator.bench.results import Quality, Results, Row

RIVALS = ("cloud-only", "llama.cpp", "vllm-cpu")
# two runs of the same thing differ by so much in time
TOLERANCE = 0.02
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Loss:
    """``contender`` is worse than ``rival`` in ``measure`` on ``links`` (of ``out_of``); times
    and bytes as ratios to the rival's, quality as differences in points."""

    contender: str
    rival: str
    measure: str
    links: tuple[str, ...]
    out_of: int
    least: str
    most: str


_COSTS: tuple[tuple[str, Callable[[Row], float]], ...] = (
    ("time per token", lambda row: row.seconds_per_token),
    ("time to the first token", lambda row: row.first_token),
    ("bytes up per token", lambda row: row.per_token(row.uploaded)),
    ("bytes down per token", lambda row: row.per_token(row.downloaded)),
)
_QUALITIES: tuple[tuple[str, Callable[[Quality], float]], ...] = (
    ("agreement with the full model", lambda quality: quality.agreement),
    ("answers equal to the full model's", lambda quality: quality.exact_match),
    ("ROUGE-L", lambda quality: quality.rouge_l),
)


def find_losses(results: Results) -> list[Loss]:
    """All of them, contender by contender."""
    found = []
    for contender in results.of_kind(Kind.OURS):
        for rival in RIVALS:
            if results.has(rival):
                found += [
                    loss
                    for name, cost in _COSTS
                    if (loss := _cost_loss(results, contender, rival, name, cost))
                ]
                found += _quality_losses(results, contender, rival)
    return found


def _cost_loss(
    results: Results, contender: str, rival: str, name: str, cost: Callable[[Row], float]
) -> Loss | None:
    worse: dict[str, float] = {}
    compared = 0
    for link in results.links:
        ours, theirs = results.row(contender, link.name), results.row(rival, link.name)
        if ours is None or theirs is None:
            continue
        mine, other = cost(ours), cost(theirs)
        if not other:  # a rival that uses no network sends no bytes: there is no ratio to it
            continue
        compared += 1
        if mine > other * (1 + TOLERANCE):
            worse[link.name] = mine / other
    if not worse:
        return None
    least, most = min(worse.values()), max(worse.values())
    return Loss(contender, rival, name, tuple(worse), compared, _times(least), _times(most))


def _quality_losses(results: Results, contender: str, rival: str) -> list[Loss]:
    ours, theirs = results.quality.get(contender), results.quality.get(rival)
    if ours is None or theirs is None:
        return []
    losses = []
    for name, of in _QUALITIES:
        short = 100 * (of(theirs) - of(ours))
        if short > _ROUNDING:
            points = f"{short:.1f} points" if short >= 0.05 else f"{short:.1g} points"
            losses.append(Loss(contender, rival, name, (), 0, points, points))
    return losses


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:,.0f}×"
