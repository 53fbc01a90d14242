"""What a plan would cost here, in time and in work of the cloud: pure arithmetic.

Predicted seconds per token of a plan, from

===========  =====================================================================================
``e``        the edge's own time for a token
``R``, ``c`` round trip; the cloud's time for a question, by the share of layers that it runs
``g``        the cloud's time for a token that it decodes by itself
``f``        the edge's own time for a token of a prompt
``u``        time to upload a token's context; ``s = max(e, u)`` is the pace of drafting
``d``        share of tokens accepted that are not the full model's (0 where ``verified``)
``q``        share of tokens asked for (1 where ``verified``)
``r``        share of tokens asked for and guessed wrong
``W``, ``N`` window, length of an answer
===========  =====================================================================================

are::

    blocking     s + q (R + c)
    optimistic   s + r (R + c + e/2) + stall        e/2: the token under way at a rollback
    stall        r z/(1-z) max(0, R + c - W s/q)    z = (1 - r/q)^W: a run that fills the window
    verified     as optimistic with q = 1 and r the share of all tokens that are guessed wrong
    shared       s + max(w c, stall) + r (R + e/2)      optimistic, both on the same cores:
                 only the way is hidden; w: what the cloud decides, in vain or not
    ahead        s + g + d (R + c)                      where the cloud decodes ahead
    plain        g + (R + c) / N                        the cloud decides and streams
    burst        (T (s + stall) + P (R + c + e/2) + (N - T) g) / N
                 P = 1 - (1-r)^N: an answer is corrected; T = P/r: tokens up to there

and for a prompt of ``p`` tokens ``p (u + f) / N`` on top (plain: ``p u / N``, since the edge takes
in nothing).  A burst of k tokens after each correction takes (L s + R + c + k g) / (L + k + 1) with
L = 1/r - 1, which is monotone in k: only none and unlimited can be best.  ``docs/controller.md``
explains the terms and what each aim does with them.

All plans that may be chosen are scored together: what follows is arrays with an entry for each row
of a :class:`PlanTable`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.context_source import ContextCodec
from edge.plan import Plan
from shared.model_bundle import OperatingPoint

MOST_WINDOW = 16  # more is hardly ever of use

_FRAMING_BYTES = 30
_TOKEN_ID_BYTES = 12
BYTES_PER_ELEMENT = {
    ContextCodec.FLOAT32: 4.0,
    ContextCodec.FP16: 2.0,
    ContextCodec.INT8: 1.06,
    ContextCodec.INT4: 0.56,
}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CostModel:
    """What was measured, and what is asked for.

    Attributes:
        guess_agreement: share of right guesses, measured at ``reference``.
        unsure: how many times as many tokens are unsure here as the operating points say.
    """

    rtt: float
    edge: float
    cloud_pass: float
    cloud_token: float
    bytes_per_second: float
    guess_agreement: float
    unsure: float
    reference: OperatingPoint
    hidden_layer_share: float
    prompt_tokens: int
    answer_tokens: int
    edge_prefill: float = 0.0
    shared_cores: bool = False


class PlanTable:
    """Of each plan all but its window, in columns.

    Attributes:
        threshold, escalation_rate, agreement: those of the operating point nearest to the plan's
            threshold.
        size: bytes of a token's context with its framing.
        token_ids, verified, burst, ahead, plain: whether it has such.
    """

    def __init__(
        self, plans: Sequence[Plan], points: Sequence[OperatingPoint], hidden_size: int
    ) -> None:
        near = [nearest_point(points, plan.threshold) for plan in plans]
        self.threshold: Floats = np.array([point.threshold for point in near])
        self.escalation_rate: Floats = np.array([point.escalation_rate for point in near])
        self.agreement: Floats = np.array([point.agreement for point in near])
        self.size: Floats = np.array([_context_bytes(p.codec, hidden_size) for p in plans])
        self.token_ids: Flags = np.array([plan.codec is ContextCodec.TOKENS for plan in plans])
        self.verified: Flags = np.array([plan.verified for plan in plans])
        self.burst: Flags = np.array([plan.burst > 0 for plan in plans])
        self.ahead: Flags = np.array([bool(plan.lookahead) for plan in plans])
        self.plain: Flags = np.array([plan.plain for plan in plans])


def _context_bytes(codec: ContextCodec, hidden_size: int) -> float:
    if codec is ContextCodec.TOKENS:
        return float(_TOKEN_ID_BYTES + _FRAMING_BYTES)
    return BYTES_PER_ELEMENT[codec] * hidden_size + _FRAMING_BYTES


class _Way(NamedTuple):
    """What asking takes: ``u``, ``R + c``, ``s``, and the share of layers that the cloud runs."""

    upload: Floats
    wait: Floats
    pace: Floats
    layer_share: Floats


class _Drafts(NamedTuple):
    """What becomes of drafts: ``q``, ``r`` and ``d``."""

    asked: Floats
    wrong: Floats
    accepted_wrong: Floats


class Forecast:
    """What ``model`` says of the plans in ``table``.

    Attributes:
        agreement: expected share of tokens that equal the full model's (a lossy codec left out).
    """

    def __init__(self, model: CostModel, table: PlanTable) -> None:
        self._model, self._table = model, table
        self._way = _way(model, table)
        self._drafts = _drafts(model, table)
        tokens = model.answer_tokens
        self._drafted, self._corrected = _until_correction(self._drafts.wrong, tokens)
        by_edge = np.where(table.burst, self._drafted / tokens, 1.0)
        agreement = 1.0 - self._drafts.accepted_wrong * by_edge
        self.agreement: Floats = np.where(table.plain, 1.0, agreement)

    def windows(self) -> Ints:
        """Questions that are asked while one is out: more would not be used."""
        behind = self._way.wait * self._drafts.asked / self._way.pace
        return np.clip(np.ceil(behind), 1, MOST_WINDOW).astype(np.int64)

    def seconds(self, windows: Ints) -> Floats:
        """Predicted seconds per token of an answer, with these windows."""
        model, table, way, (asked, wrong, _) = self._model, self._table, self._way, self._drafts
        tokens = model.answer_tokens
        stall = _stall(asked, wrong, way.wait, way.pace, windows)
        if model.shared_cores:
            work = model.cloud_pass * self._while_drafting(windows)
            step = way.pace + np.maximum(work, stall)
            correction = np.full_like(step, model.rtt + model.edge / 2)
        else:
            step, correction = way.pace + stall, way.wait + model.edge / 2
        blocking = windows == 0
        step = np.where(blocking, way.pace + (asked - wrong) * way.wait, step)
        correction = np.where(blocking, way.wait, correction)
        alone = tokens - self._drafted
        bursting = self._drafted * step + self._corrected * correction + alone * model.cloud_token
        ahead = way.pace + model.cloud_token + (1.0 - self.agreement) * way.wait
        drafting = np.where(table.burst, bursting / tokens, step + wrong * correction)
        drafting = np.where(table.ahead, ahead, drafting)
        prompt = model.prompt_tokens * way.upload / tokens
        taken_in = model.prompt_tokens * model.edge_prefill / tokens
        plain = model.cloud_token + way.wait / tokens
        return prompt + np.where(table.plain, plain, taken_in + drafting)

    def cloud_tokens(self, windows: Ints) -> Floats:
        """Tokens that the cloud decides, in vain or not, per token of an answer; one decided from
        hidden states counts as the share of layers that the cloud runs."""
        table, tokens = self._table, self._model.answer_tokens
        drafting = self._while_drafting(windows)
        bursting = (self._drafted * drafting + tokens - self._drafted) / tokens
        asking = np.where(table.burst, bursting, drafting)
        return np.where(table.ahead | table.plain, 1.0, asking)

    def _while_drafting(self, windows: Ints) -> Floats:
        """Tokens that the cloud decides for each that the edge drafts, counted so."""
        way, (asked, wrong, _) = self._way, self._drafts
        behind = way.wait * asked / way.pace  # asked while a wrong one is out
        in_vain = np.minimum(np.maximum(0, windows - 1), behind)
        return way.layer_share * (asked + wrong * in_vain)


def _way(model: CostModel, table: PlanTable) -> _Way:
    layer_share = np.where(table.token_ids, 1.0, model.hidden_layer_share)
    upload = table.size / model.bytes_per_second
    wait = model.rtt + model.cloud_pass * layer_share
    pace = np.maximum(upload, max(model.edge, 1e-6))
    return _Way(upload, wait, pace, layer_share)


def _drafts(model: CostModel, table: PlanTable) -> _Drafts:
    """``r`` goes by what accepting more or less than at the reference adds to the agreement, held
    against what the reference's share of right guesses would give: guesses are better where more
    tokens count as unsure."""
    there, wrong_guesses = model.reference, 1.0 - model.guess_agreement
    unsure = np.minimum(1.0, table.escalation_rate * model.unsure)
    accepted_wrong = 1.0 - table.agreement
    by_share = unsure * wrong_guesses
    at_reference = min(1.0, there.escalation_rate * model.unsure) * wrong_guesses
    by_agreement = at_reference + table.agreement - there.agreement
    picked = np.where(
        table.threshold < there.threshold,
        np.maximum(by_share, by_agreement),
        np.minimum(by_share, by_agreement),
    )
    unsure_wrong = np.minimum(unsure, np.maximum(0.0, picked))
    checked = np.minimum(1.0, unsure_wrong + accepted_wrong)
    return _Drafts(
        np.where(table.verified, 1.0, unsure),
        np.where(table.verified, checked, unsure_wrong),
        np.where(table.verified, 0.0, accepted_wrong),
    )


def _until_correction(wrong: Floats, tokens: int) -> tuple[Floats, Floats]:
    """Tokens drafted up to and with the first correction, and the chance that there is one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = -np.expm1(tokens * np.log1p(-wrong))
        return np.where(wrong > 0.0, corrected / wrong, tokens), corrected


def _stall(asked: Floats, wrong: Floats, wait: Floats, pace: Floats, windows: Ints) -> Floats:
    """Per token, waiting for an answer that is right because the window is full; says nothing of a
    window of 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.maximum(0.0, wait - windows * pace / asked)
        filled = windows * np.log1p(-wrong / asked)  # log z
        runs = np.where(wrong > 0.0, wrong * np.exp(filled) / -np.expm1(filled), asked / windows)
        return np.where((asked > 0.0) & (wrong < asked), runs * each, 0.0)


def nearest_point(points: Sequence[OperatingPoint], threshold: float) -> OperatingPoint:
    """The point whose threshold is closest, the lower of two; ``points`` by rising threshold."""
    above = bisect_left(points, threshold, key=lambda point: point.threshold)
    near = points[max(0, above - 1) : above + 1]
    return min(near, key=lambda point: abs(point.threshold - threshold))
