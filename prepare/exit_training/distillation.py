"""The loss that exits learn by: divergence from the teacher, known on its top tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LEAST = 1e-4  # probability below which a remainder is not told from none


def kl_to_teacher(logits: Tensor, rows: Tensor, inside: Tensor, top_logprobs: Tensor) -> Tensor:
    """Mean KL(teacher ‖ exit) over ``[n]`` positions.

    Exact on the teacher's top tokens; everything else, and what the head leaves out, is lumped
    into one remainder, so that an exit learns to be unsure where the answer is outside its
    vocabulary.  The gradient is computed in closed form: with q the exit's softmax, p the
    teacher's, K the known tokens, r the remainders,

        dL/dz_j = q_j - p_j  (j in K),   q_j (1 - r_p / r_q)  (elsewhere).

    Args:
        logits: ``[n, vocabulary]`` of the exit, any float dtype; computed in float32.
        rows: ``[n, top]`` head rows of the teacher's top tokens (any row where not ``inside``).
        inside: ``[n, top]`` bool, whether the head has the token.
        top_logprobs: ``[n, top]`` of the teacher.
    """
    loss: Tensor = _KlToTeacher.apply(logits, rows, inside, top_logprobs)  # type: ignore[no-untyped-call]
    return loss


class _KlToTeacher(torch.autograd.Function):
    """One buffer for scores and gradient: at tens of thousands of rows memory traffic costs as
    much as the matrices do."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, inside: Tensor, top_logprobs: Tensor
    ) -> Tensor:
        scores = logits.to(torch.float32, copy=True)
        scores -= scores.amax(-1, keepdim=True)
        known = scores.gather(1, rows)
        total = scores.exp_().sum(-1, keepdim=True)
        log_q = known - total.log()
        q, p = log_q.exp() * inside, top_logprobs.float().exp() * inside
        rest_p = (1.0 - p.sum(-1, keepdim=True)).clamp_min(_LEAST)
        rest_q = (1.0 - q.sum(-1, keepdim=True)).clamp_min(_LEAST)
        divergence = (p * (top_logprobs.float() - log_q)).masked_fill(~inside, 0.0)
        ctx.save_for_backward(rows, inside, q - p, (1.0 - rest_p / rest_q) / total)
        ctx.scores, ctx.dtype = scores, logits.dtype
        return (divergence.sum(-1) + (rest_p * (rest_p / rest_q).log())[:, 0]).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, inside, known, rest = ctx.saved_tensors
        scores: Tensor = ctx.scores
        share = gradient / len(scores)
        scores *= rest * share
        # added, not written: rows that are not inside may repeat one that is
        change = known * share - scores.gather(1, rows)
        scores.scatter_add_(1, rows, change.masked_fill(~inside, 0.0))
        return scores.to(ctx.dtype), None, None, None
