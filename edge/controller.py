"""Picks how the next answer is made: a pure function of what was measured and what is wished.

``docs/controller.md`` explains what each aim does; :mod:`edge.cost_model` predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

import numpy as np

from edge.context_source import ContextCodec
from edge.cost_model import (
    BYTES_PER_ELEMENT,
    MOST_WINDOW,
    CostModel,
    Floats,
    Forecast,
    Ints,
    PlanTable,
    nearest_point,
)
from edge.exit_policy import DEFAULT_THRESHOLD, threshold_for
from edge.link_monitor import Conditions
from edge.plan import BURST_UNLIMITED, MOST_LOOKAHEAD, Plan
from shared.errors import ConfigurationError
from shared.model_bundle import OperatingPoint

# of the previous plan's score, before it is given up in the middle of an answer, and between two,
# where a change costs nothing
LEAST_GAIN, LEAST_GAIN_BETWEEN = 0.10, 0.02
TIE = 0.02  # within which the better agreement counts for more
COST_PRICE = 1.0  # seconds of waiting for a cloud token, where the aim is cost and none is named
ANSWER_TOKENS = 100  # of an answer whose length nobody told

_GUESS_PRIOR, _GUESS_PRIOR_COUNT = 0.5, 8
_UNSURE_PRIOR_COUNT = 16
_UNKNOWN_BYTES_PER_SECOND = 125_000.0  # a thin link, until one has been measured
_MOST_COST_WINDOW = 2
_ANY_WINDOW = 1  # in plans whose window is yet to be chosen
_USED = -1  # in place of a window: the one that would be used
_HIDDEN_CODECS = (ContextCodec.FP16, ContextCodec.INT8, ContextCodec.INT4)
_FROM_LOSSY_TO_EXACT = [*reversed(BYTES_PER_ELEMENT), ContextCodec.TOKENS]
# of a bundle that was never measured; the threshold is the only one that it can be run at
_ASSUMED_POINT = OperatingPoint(threshold=DEFAULT_THRESHOLD, agreement=0.95, escalation_rate=0.5)


class Aim(Enum):
    """What the user wants most."""

    LATENCY = "latency"
    COST = "cost"
    QUALITY = "quality"


_DEFAULT_TARGET = {Aim.LATENCY: 0.90, Aim.COST: 0.95, Aim.QUALITY: 0.95}
_UNMEASURED_WINDOW = {Aim.LATENCY: 4, Aim.COST: 1, Aim.QUALITY: 8}


@dataclass(frozen=True)
class Wishes:
    """What the user asks for.

    Attributes:
        target_agreement: share of tokens that shall equal the full model's; 0.9 for latency and
            0.95 for cost where none is named.  ``verified`` plans keep any.
        cloud_token_price: seconds of waiting that one token decided by the cloud through all its
            layers is worth (one decided from hidden states: the share of layers run).  The plan
            then has the least ``seconds + price * cloud tokens`` per token.
        private: no token ids to the cloud, so hidden states only and no burst.
        codec: the only one to be used.
    """

    aim: Aim = Aim.LATENCY
    target_agreement: float | None = None
    cloud_token_price: float | None = None
    private: bool = False
    codec: ContextCodec | None = None

    def __post_init__(self) -> None:
        if self.private and self.codec is ContextCodec.TOKENS:
            raise ConfigurationError(
                "token ids show the cloud the words, which privacy forbids: choose another "
                "--context, or none"
            )
        if self.target_agreement is not None and not 0.0 <= self.target_agreement <= 1.0:
            raise ConfigurationError(
                f"target agreement {self.target_agreement} is not within [0, 1]"
            )
        price = self.cloud_token_price
        if price is not None and not 0.0 <= price < math.inf:
            raise ConfigurationError(f"a cloud token's price of {price} s is not 0 or more")
        if price is not None and self.aim is Aim.QUALITY:
            raise ConfigurationError(
                "the aim quality asks the cloud for every token at any price: drop the price, or "
                "aim at latency or cost"
            )


NO_WISHES = Wishes()


@dataclass(frozen=True)
class Choice:
    """The plan, and predicted seconds per token (``None``: too little is measured yet).

    Attributes:
        explain: makes the reason, which takes longer than a choice and is seldom read.
    """

    plan: Plan
    explain: Callable[[], str]
    seconds_per_token: float | None

    @property
    def reason(self) -> str:
        """A line for the log."""
        return self.explain()


class _Candidates:
    """The plans to choose from: ``plans`` with their windows open, and ``fixed``, the windows of
    those that have one.  ``count`` of them are proposed, and behind them is the one to be ``kept``,
    where there is one.

    Attributes:
        exactness: of their codecs; what travels more exactly has the higher.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        fixed: Sequence[int],
        kept: Plan | None,
        table: PlanTable,
    ) -> None:
        self.plans, self.kept, self.table = plans, kept, table
        self.count = len(plans) - (kept is not None)
        self.exactness = [_FROM_LOSSY_TO_EXACT.index(plan.codec) for plan in plans]
        self._fixed = np.array(fixed)
        self._is_fixed = self._fixed != _USED
        self._made: dict[tuple[int, int], Plan] = {}

    def plan(self, row: int, window: int) -> Plan:
        """One with this window; made once."""
        plan = self._made.get((row, window))
        if plan is None:
            plan = self._made[row, window] = replace(self.plans[row], window=window)
        return plan

    def windows(self, used: Ints) -> Ints:
        """Where one is open, the one that would be ``used``."""
        return np.where(self._is_fixed, self._fixed, used)


@dataclass(frozen=True, eq=False)
class _Scored:
    """Candidates with what is predicted for each; ``score`` is to be least."""

    candidates: _Candidates
    windows: Ints
    seconds: Floats
    cloud_tokens: Floats
    score: Floats

    def plan(self, row: int) -> Plan:
        """A candidate with its window."""
        return self.candidates.plan(row, int(self.windows[row]))


def choose(
    conditions: Conditions,
    points: Sequence[OperatingPoint],
    wishes: Wishes,
    layers: int,
    cut: int,
    hidden_size: int,
    previous: Plan | None = None,
    *,
    prompt_tokens: int = 0,
    answer_tokens: int = ANSWER_TOKENS,
    shared_cores: bool = False,
    least_gain: float = LEAST_GAIN,
) -> Choice:
    """The plan for the next answer.

    ``previous`` (the plan under which ``conditions`` were measured) is kept while it is allowed
    and nothing gains more than ``least_gain`` of its score over it.

    Args:
        points: the bundle's operating points, by rising threshold.
        prompt_tokens: how many the cloud lacks; uploading them counts.
        answer_tokens: expected length of the answer.
        shared_cores: edge and cloud work on the same ones.

    Raises:
        ConfigurationError: a target agreement, but no operating points to find it in.
    """
    assert 0 < cut < layers
    assert answer_tokens >= 1
    candidates = _candidates(tuple(points), wishes, hidden_size, previous)
    kept = candidates.kept
    model = _cost_model(
        conditions,
        points,
        layers,
        cut,
        previous,
        prompt_tokens,
        answer_tokens,
        shared_cores=shared_cores,
    )
    if model is None:
        unmeasured = kept or _unmeasured_plan(candidates.plans, wishes)
        why = "too little measured" + (", kept as it is" if kept else "")
        return Choice(unmeasured, lambda: f"{_measured(conditions)}: {unmeasured} ({why})", None)
    forecast = Forecast(model, candidates.table)
    price = _price(wishes)
    scored = _scored(forecast, candidates, wishes, price)
    best = chosen = _best(forecast, scored)
    plan = scored.plan(best)
    if kept is not None and scored.score[best] >= scored.score[-1] * (1.0 - least_gain):
        chosen, plan = len(candidates.plans) - 1, kept
    return Choice(
        plan,
        lambda: f"{_measured(conditions)}: {_compared(chosen, best, scored, price)}",
        float(scored.seconds[chosen]),
    )


@lru_cache(maxsize=512)
def _candidates(
    points: tuple[OperatingPoint, ...], wishes: Wishes, hidden_size: int, previous: Plan | None
) -> _Candidates:
    allowed = _allowed_plans(points, wishes)
    plans, fixed = [], []
    for plan in allowed:
        for window in _windows(plan, wishes):
            plans.append(plan)
            fixed.append(window)
    kept = _kept(previous, allowed, wishes)
    if kept is not None:
        plans.append(replace(kept, window=_ANY_WINDOW))
        fixed.append(kept.window)
    table = PlanTable(plans, points or (_ASSUMED_POINT,), hidden_size)
    return _Candidates(plans, fixed, kept, table)


def _allowed_plans(points: Sequence[OperatingPoint], wishes: Wishes) -> list[Plan]:
    """Every plan that the wishes allow, windows left open."""
    thresholds, verifiable = _thresholds(points, wishes)
    cheap = wishes.aim is Aim.COST and wishes.cloud_token_price is None
    if wishes.codec is not None:
        codecs: tuple[ContextCodec, ...] = (wishes.codec,)
    elif wishes.aim is Aim.QUALITY:
        codecs = (ContextCodec.FP16,) if wishes.private else (ContextCodec.TOKENS,)
    elif wishes.private or cheap:
        codecs = _HIDDEN_CODECS
    else:
        codecs = (ContextCodec.TOKENS, *_HIDDEN_CODECS)
    plain = [_plain(verifiable)] if ContextCodec.TOKENS in codecs else []
    if wishes.aim is Aim.QUALITY:
        return [
            Plan(verifiable, _ANY_WINDOW, 0, codecs[0], verified=True, lookahead=0),
            *plain,
        ]
    accepting = [(threshold, False) for threshold in thresholds]
    verifying = [(verifiable, True)]
    if cheap:
        kinds, plain = accepting[:1] or verifying, []
    else:
        kinds = accepting + verifying
    drafting = [
        Plan(threshold, _ANY_WINDOW, burst, codec, verified, lookahead=ahead)
        for threshold, verified in kinds
        for codec in codecs
        for burst, ahead in _by_itself(codec, wishes)
    ]
    return drafting + plain


def _plain(threshold: float) -> Plan:
    return Plan(threshold, _ANY_WINDOW, BURST_UNLIMITED, ContextCodec.TOKENS, plain=True)


def _by_itself(codec: ContextCodec, wishes: Wishes) -> list[tuple[int, int]]:
    """Bursts and lookaheads; the cloud can only go on by itself from token ids."""
    if codec is not ContextCodec.TOKENS:
        return [(0, 0)]
    if wishes.cloud_token_price is not None:  # nothing that may never be asked for
        return [(0, 0), (BURST_UNLIMITED, 0)]
    if wishes.aim is Aim.COST:
        return [(0, 0)]
    return [(0, 0), (BURST_UNLIMITED, 0), (0, MOST_LOOKAHEAD)]


def _thresholds(points: Sequence[OperatingPoint], wishes: Wishes) -> tuple[list[float], float]:
    """Thresholds that keep the target, rising (there may be none), and the one to verify at."""
    if not points and wishes.target_agreement is None:
        return [DEFAULT_THRESHOLD], DEFAULT_THRESHOLD
    if not points and wishes.aim is Aim.QUALITY:
        return [], DEFAULT_THRESHOLD
    target = wishes.target_agreement
    if target is None:
        target = _DEFAULT_TARGET[wishes.aim]
    if points and points[-1].agreement < target:
        return [], points[-1].threshold
    lowest = threshold_for(points, target)
    return [point.threshold for point in points if point.threshold >= lowest], lowest


def _kept(previous: Plan | None, allowed: Sequence[Plan], wishes: Wishes) -> Plan | None:
    """``previous``, where it is still allowed."""
    if previous is None:
        return None
    least, most = 1, MOST_WINDOW
    if wishes.cloud_token_price is not None:
        least = 0
    elif wishes.aim is Aim.COST:
        least, most = 0, _MOST_COST_WINDOW
    if not least <= previous.window <= most:
        return None
    return previous if replace(previous, window=_ANY_WINDOW) in allowed else None


def _unmeasured_plan(plans: Sequence[Plan], wishes: Wishes) -> Plan:
    """Token ids where they are allowed, else the codec for a thin link that costs little."""
    preferred = [ContextCodec.TOKENS, ContextCodec.INT8, *ContextCodec]
    plan = min(
        (plan for plan in plans if not plan.burst),
        key=lambda plan: (
            plan.verified,
            (wishes.aim is Aim.COST) and plan.codec is ContextCodec.TOKENS,
            preferred.index(plan.codec),
            plan.threshold,
            plan.lookahead,
        ),
    )
    return replace(plan, window=_UNMEASURED_WINDOW[wishes.aim])


def _windows(plan: Plan, wishes: Wishes) -> Sequence[int]:
    """Those to be tried with a plan."""
    if plan.plain:
        return (_ANY_WINDOW,)
    if wishes.aim is Aim.QUALITY:
        return (_USED,)
    few = tuple(range(_MOST_COST_WINDOW + 1))
    if wishes.cloud_token_price is not None:
        return (*few, _USED)
    return few if wishes.aim is Aim.COST else (_USED,)


def _price(wishes: Wishes) -> float:
    if wishes.cloud_token_price is not None:
        return wishes.cloud_token_price
    return COST_PRICE if wishes.aim is Aim.COST else 0.0


def _scored(forecast: Forecast, candidates: _Candidates, wishes: Wishes, price: float) -> _Scored:
    """The score is seconds per token, and the price of what the cloud does beyond the least of
    all."""
    used = forecast.windows()
    if wishes.aim is Aim.QUALITY:
        used = np.clip(2 * used, _UNMEASURED_WINDOW[Aim.QUALITY], MOST_WINDOW)
    windows = candidates.windows(used)
    score = seconds = forecast.seconds(windows)
    work = np.zeros_like(seconds)
    if price:
        work = forecast.cloud_tokens(windows)
        score = seconds + price * (work - work.min())
    return _Scored(candidates, windows, seconds, work, score)


def _best(forecast: Forecast, scored: _Scored) -> int:
    """The row of the least score; among ties of what agrees best, then travels most exactly."""
    proposed = scored.score[: scored.candidates.count]
    (ties,) = np.nonzero(proposed <= proposed.min() * (1.0 + TIE))
    if len(ties) == 1:
        return int(ties[0])
    agreement, exactness = forecast.agreement, scored.candidates.exactness
    return int(max(ties, key=lambda row: (agreement[row], exactness[row], -proposed[row])))


def _cost_model(
    conditions: Conditions,
    points: Sequence[OperatingPoint],
    layers: int,
    cut: int,
    previous: Plan | None,
    prompt_tokens: int,
    answer_tokens: int,
    *,
    shared_cores: bool,
) -> CostModel | None:
    """``None`` while round trip, edge or cloud are unknown; the rest has stand-ins."""
    rtt, edge = conditions.rtt_seconds, conditions.edge_token_seconds
    cloud_pass, cloud_token = conditions.cloud_pass_seconds, conditions.cloud_token_seconds
    if rtt is None or edge is None or cloud_pass is None:
        return None
    count, prior = conditions.guess_count, _GUESS_PRIOR_COUNT
    measured = conditions.guess_agreement
    guess = _GUESS_PRIOR
    if measured is not None:
        guess = (measured * count + _GUESS_PRIOR * prior) / (count + prior)
    threshold = previous.threshold if previous else DEFAULT_THRESHOLD
    reference = nearest_point(points or (_ASSUMED_POINT,), threshold)
    return CostModel(
        rtt=rtt,
        edge=edge,
        cloud_pass=cloud_pass,
        cloud_token=cloud_pass if cloud_token is None else cloud_token,
        bytes_per_second=conditions.up_bytes_per_second or _UNKNOWN_BYTES_PER_SECOND,
        guess_agreement=guess,
        unsure=_times_unsure(conditions, reference),
        reference=reference,
        hidden_layer_share=(layers - cut) / layers,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        edge_prefill=conditions.edge_prefill_seconds or 0.0,
        shared_cores=shared_cores,
    )


def _times_unsure(conditions: Conditions, reference: OperatingPoint) -> float:
    """How many times as many tokens are unsure here as where the table was measured."""
    share, count, prior = conditions.unsure_share, conditions.unsure_count, _UNSURE_PRIOR_COUNT
    if share is None or not reference.escalation_rate:
        return 1.0
    here = (share * count + reference.escalation_rate * prior) / (count + prior)
    return here / reference.escalation_rate


def _compared(chosen: int, best: int, scored: _Scored, price: float) -> str:
    """What was chosen, and why not another."""

    def figures(row: int) -> str:
        work = f" and {scored.cloud_tokens[row]:.2f} cloud tokens" if price else ""
        return _ms(scored.seconds[row]) + work

    words = [f"{figures(chosen)} a token"]
    plan, rival = scored.plan(chosen), scored.plan(best)
    if plan != rival:
        gain = 1.0 - scored.score[best] / scored.score[chosen]
        words.append(f"kept: {rival} would gain {max(0.0, gain):.0%}")
    kinds = [scored.plan(row).kind for row in range(len(scored.windows))]
    others = [row for row, kind in enumerate(kinds) if kind not in {plan.kind, rival.kind}]
    if others:
        other = min(others, key=lambda row: scored.score[row])
        words.append(f"next best {kinds[other]} {figures(other)}")
    return f"{plan} ({'; '.join(words)})"


def _measured(conditions: Conditions) -> str:
    words = [
        f"rtt {_ms(conditions.rtt_seconds)}",
        f"cloud {_ms(conditions.cloud_pass_seconds)}",
        f"edge {_ms(conditions.edge_token_seconds)}",
    ]
    if (rate := conditions.up_bytes_per_second) is not None:
        words.insert(1, f"up {rate * 8e-6:.3g} Mbit/s")
    if conditions.guess_agreement is not None:
        words.append(f"guesses right {conditions.guess_agreement:.0%}")
    return ", ".join(words)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2g} ms"
