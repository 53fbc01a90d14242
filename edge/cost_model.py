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
from dataclasses import dataclass

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


@dataclass(frozen=True)
class CostModel:
    """The formulas of this module.  ``reference`` is where ``guess_agreement`` was measured, and
    ``unsure``: how many times as many tokens are unsure here as the table says."""

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

    def seconds(self, plan: Plan) -> float:
        """Predicted seconds per token of an answer."""
        prompt = self.prompt_tokens * self._upload(plan.codec) / self.answer_tokens
        if plan.plain:
            return prompt + self.cloud_token + self._wait(plan) / self.answer_tokens
        prompt += self.prompt_tokens * self.edge_prefill / self.answer_tokens
        if plan.lookahead:
            return prompt + self._ahead(plan)
        asked, wrong = self._asked(plan), self._wrong(plan)
        wait, pace = self._wait(plan), self._pace(plan)
        if not plan.window:
            step, correction = pace + (asked - wrong) * wait, wait
        else:
            stall = self._stall(asked, wrong, wait, pace, plan.window)
            step, correction = pace + stall, wait + self.edge / 2
            if self.shared_cores:
                work = self.cloud_pass * self._while_drafting(plan)
                step, correction = pace + max(work, stall), self.rtt + self.edge / 2
        if not plan.burst:
            return prompt + step + wrong * correction
        drafted, corrected = self._until_correction(wrong)
        alone = self.answer_tokens - drafted
        total = drafted * step + corrected * correction + alone * self.cloud_token
        return prompt + total / self.answer_tokens

    def cloud_tokens(self, plan: Plan) -> float:
        """Tokens that the cloud decides, in vain or not, per token of an answer; one decided from
        hidden states counts as the share of layers that the cloud runs."""
        if plan.lookahead or plan.plain:
            return 1.0
        drafting = self._while_drafting(plan)
        if not plan.burst:
            return drafting
        drafted, _ = self._until_correction(self._wrong(plan))
        return (drafted * drafting + self.answer_tokens - drafted) / self.answer_tokens

    def _while_drafting(self, plan: Plan) -> float:
        """Tokens that the cloud decides for each that the edge drafts, counted so."""
        asked, wrong = self._asked(plan), self._wrong(plan)
        behind = self._wait(plan) * asked / self._pace(plan)  # asked while a wrong one is out
        in_vain = min(max(0, plan.window - 1), behind)
        return self._layer_share(plan.codec) * (asked + wrong * in_vain)

    def agreement(self, plan: Plan) -> float:
        """Expected share of tokens that equal the full model's (a lossy codec left out)."""
        if plan.verified or plan.plain:
            return 1.0
        accepted_wrong = 1.0 - self._point(plan).agreement
        if plan.burst:
            drafted, _ = self._until_correction(self._wrong(plan))
            accepted_wrong *= drafted / self.answer_tokens
        return 1.0 - accepted_wrong

    def window(self, plan: Plan) -> int:
        """Questions that are asked while one is out: more would not be used."""
        behind = self._wait(plan) * self._asked(plan) / self._pace(plan)
        return max(1, min(MOST_WINDOW, math.ceil(behind)))

    def _point(self, plan: Plan) -> OperatingPoint:
        return nearest_point(self.points, plan.threshold)

    def _asked(self, plan: Plan) -> float:
        return 1.0 if plan.verified else self._unsure(self._point(plan))

    def _unsure(self, point: OperatingPoint) -> float:
        return min(1.0, point.escalation_rate * self.unsure)

    def _wrong(self, plan: Plan) -> float:
        """``r``: by what accepting more or less than at the reference adds to the agreement, held
        against what the reference's share of right guesses would give: guesses are better where
        more tokens count as unsure."""
        point, there = self._point(plan), self.reference
        by_share = self._unsure(point) * (1.0 - self.guess_agreement)
        at_reference = self._unsure(there) * (1.0 - self.guess_agreement)
        by_agreement = at_reference + point.agreement - there.agreement
        pick = max if point.threshold < there.threshold else min
        unsure_wrong = min(self._unsure(point), max(0.0, pick(by_share, by_agreement)))
        return min(1.0, unsure_wrong + (1.0 - point.agreement) * plan.verified)

    def _wait(self, plan: Plan) -> float:
        return self.rtt + self.cloud_pass * self._layer_share(plan.codec)

    def _pace(self, plan: Plan) -> float:
        return max(self.edge, self._upload(plan.codec), 1e-6)

    def _layer_share(self, codec: ContextCodec) -> float:
        return 1.0 if codec is ContextCodec.TOKENS else self.hidden_layer_share

    def _upload(self, codec: ContextCodec) -> float:
        if codec is ContextCodec.TOKENS:
            size = float(_TOKEN_ID_BYTES)
        else:
            size = BYTES_PER_ELEMENT[codec] * self.hidden_size
        return (size + _FRAMING_BYTES) / self.bytes_per_second

    def _ahead(self, plan: Plan) -> float:
        overruled = 1.0 - self.agreement(plan)
        return self._pace(plan) + self.cloud_token + overruled * self._wait(plan)

    def _until_correction(self, wrong: float) -> tuple[float, float]:
        """Tokens drafted up to and with the first correction, and the chance that there is one."""
        if wrong <= 0.0:
            return float(self.answer_tokens), 0.0
        if wrong >= 1.0:
            return 1.0, 1.0
        corrected = -math.expm1(self.answer_tokens * math.log1p(-wrong))
        return corrected / wrong, corrected

    @staticmethod
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
