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
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


class _Way(NamedTuple):
    """What asking takes with one codec: ``u``, ``R + c``, ``s``, and the share of layers run."""

    upload: float
    wait: float
    pace: float
    layer_share: float


class _Drafts(NamedTuple):
    """What becomes of drafts at one threshold, verified or not: ``q``, ``r`` and ``d``."""

    asked: float
    wrong: float
    accepted_wrong: float


@dataclass(frozen=True)
class CostModel:
    """The formulas of this module.  ``reference`` is where ``guess_agreement`` was measured, and
    ``unsure``: how many times as many tokens are unsure here as the table says.

    What a codec and a threshold bring is worked out once for all plans that share it."""

    rtt: float
    edge: float
    cloud_pass: float
    cloud_token: float
    bytes_per_second: float
    guess_agreement: float
    unsure: float
    reference: OperatingPoint
    points: Sequence[OperatingPoint]
    hidden_layer_share: float
    hidden_size: int
    prompt_tokens: int
    answer_tokens: int
    edge_prefill: float = 0.0
    shared_cores: bool = False
    _ways: dict[ContextCodec, _Way] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _made: dict[tuple[float, bool], _Drafts] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def seconds(self, plan: Plan) -> float:
        """Predicted seconds per token of an answer."""
        way, tokens = self._way(plan.codec), self.answer_tokens
        prompt = self.prompt_tokens * way.upload / tokens
        if plan.plain:
            return prompt + self.cloud_token + way.wait / tokens
        prompt += self.prompt_tokens * self.edge_prefill / tokens
        if plan.lookahead:
            return prompt + self._ahead(plan, way)
        drafts = self._drafts(plan)
        asked, wrong = drafts.asked, drafts.wrong
        if not plan.window:
            step, correction = way.pace + (asked - wrong) * way.wait, way.wait
        else:
            stall = _stall(asked, wrong, way.wait, way.pace, plan.window)
            step, correction = way.pace + stall, way.wait + self.edge / 2
            if self.shared_cores:
                work = self.cloud_pass * _while_drafting(plan, way, drafts)
                step, correction = way.pace + max(work, stall), self.rtt + self.edge / 2
        if not plan.burst:
            return prompt + step + wrong * correction
        drafted, corrected = self._until_correction(wrong)
        alone = tokens - drafted
        total = drafted * step + corrected * correction + alone * self.cloud_token
        return prompt + total / tokens

    def cloud_tokens(self, plan: Plan) -> float:
        """Tokens that the cloud decides, in vain or not, per token of an answer; one decided from
        hidden states counts as the share of layers that the cloud runs."""
        if plan.lookahead or plan.plain:
            return 1.0
        drafts = self._drafts(plan)
        drafting = _while_drafting(plan, self._way(plan.codec), drafts)
        if not plan.burst:
            return drafting
        drafted, _ = self._until_correction(drafts.wrong)
        return (drafted * drafting + self.answer_tokens - drafted) / self.answer_tokens

    def agreement(self, plan: Plan) -> float:
        """Expected share of tokens that equal the full model's (a lossy codec left out)."""
        if plan.verified or plan.plain:
            return 1.0
        drafts = self._drafts(plan)
        accepted_wrong = drafts.accepted_wrong
        if plan.burst:
            drafted, _ = self._until_correction(drafts.wrong)
            accepted_wrong *= drafted / self.answer_tokens
        return 1.0 - accepted_wrong

    def window(self, plan: Plan) -> int:
        """Questions that are asked while one is out: more would not be used."""
        way = self._way(plan.codec)
        behind = way.wait * self._drafts(plan).asked / way.pace
        return max(1, min(MOST_WINDOW, math.ceil(behind)))

    def _way(self, codec: ContextCodec) -> _Way:
        way = self._ways.get(codec)
        if way is None:
            way = self._ways[codec] = self._find_way(codec)
        return way

    def _find_way(self, codec: ContextCodec) -> _Way:
        if codec is ContextCodec.TOKENS:
            size, layer_share = float(_TOKEN_ID_BYTES), 1.0
        else:
            size = BYTES_PER_ELEMENT[codec] * self.hidden_size
            layer_share = self.hidden_layer_share
        upload = (size + _FRAMING_BYTES) / self.bytes_per_second
        wait = self.rtt + self.cloud_pass * layer_share
        return _Way(upload, wait, max(self.edge, upload, 1e-6), layer_share)

    def _drafts(self, plan: Plan) -> _Drafts:
        key = plan.threshold, plan.verified
        drafts = self._made.get(key)
        if drafts is None:
            drafts = self._made[key] = self._find_drafts(*key)
        return drafts

    def _find_drafts(self, threshold: float, verified: bool) -> _Drafts:
        """``r`` goes by what accepting more or less than at the reference adds to the agreement,
        held against what the reference's share of right guesses would give: guesses are better
        where more tokens count as unsure."""
        point, there = nearest_point(self.points, threshold), self.reference
        unsure, accepted_wrong = self._unsure(point), 1.0 - point.agreement
        by_share = unsure * (1.0 - self.guess_agreement)
        at_reference = self._unsure(there) * (1.0 - self.guess_agreement)
        by_agreement = at_reference + point.agreement - there.agreement
        pick = max if point.threshold < there.threshold else min
        unsure_wrong = min(unsure, max(0.0, pick(by_share, by_agreement)))
        if verified:
            return _Drafts(1.0, min(1.0, unsure_wrong + accepted_wrong), 0.0)
        return _Drafts(unsure, unsure_wrong, accepted_wrong)

    def _unsure(self, point: OperatingPoint) -> float:
        return min(1.0, point.escalation_rate * self.unsure)

    def _ahead(self, plan: Plan, way: _Way) -> float:
        overruled = 1.0 - self.agreement(plan)
        return way.pace + self.cloud_token + overruled * way.wait

    def _until_correction(self, wrong: float) -> tuple[float, float]:
        """Tokens drafted up to and with the first correction, and the chance that there is one."""
        if wrong <= 0.0:
            return float(self.answer_tokens), 0.0
        if wrong >= 1.0:
            return 1.0, 1.0
        corrected = -math.expm1(self.answer_tokens * math.log1p(-wrong))
        return corrected / wrong, corrected


def _while_drafting(plan: Plan, way: _Way, drafts: _Drafts) -> float:
    """Tokens that the cloud decides for each that the edge drafts, counted so."""
    behind = way.wait * drafts.asked / way.pace  # asked while a wrong one is out
    in_vain = min(max(0, plan.window - 1), behind)
    return way.layer_share * (drafts.asked + drafts.wrong * in_vain)


def _stall(asked: float, wrong: float, wait: float, pace: float, window: int) -> float:
    """Per token, waiting for an answer that is right because the window is full."""
    if asked <= 0.0 or wrong >= asked:
        return 0.0
    each = max(0.0, wait - window * pace / asked)
    if wrong <= 0.0:
        return asked / window * each
    filled = window * math.log1p(-wrong / asked)  # log z
    return wrong * math.exp(filled) / -math.expm1(filled) * each


def nearest_point(points: Sequence[OperatingPoint], threshold: float) -> OperatingPoint:
    """The point whose threshold is closest, the lower of two; ``points`` by rising threshold."""
    above = bisect_left(points, threshold, key=lambda point: point.threshold)
    near = points[max(0, above - 1) : above + 1]
    return min(near, key=lambda point: abs(point.threshold - threshold))
