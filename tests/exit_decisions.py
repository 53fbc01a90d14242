"""What the tiny bundle's exits say after a text, from nothing but the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from edge.exit_model import ExitModel
from edge.exit_policy import ExitPolicy
from shared.sampling import GREEDY, Sampling
from tests.cloud_harness import tiny_bundle


@cache
def edge_model() -> ExitModel:
    """The tiny bundle's edge part, in float32."""
    return ExitModel(tiny_bundle(), "float32", threads=1)


def exit_decision(
    text: Sequence[int], threshold: float, sampling: Sampling = GREEDY
) -> tuple[int, bool]:
    """The next token by the first exit that is sure, or by the deepest, and whether one was."""
    model, size = edge_model(), tiny_bundle().manifest.architecture.vocabulary_size
    state = model.open(len(text))
    state.extend(text)
    for index, info in enumerate(model.exits):
        read, ids = state.read_exit(index), model.vocabulary_ids(index)
        judgement = ExitPolicy(threshold).judge(info, read, ids, size, sampling, len(text))
        if judgement.accepted:
            break
    return judgement.choice.token_id, judgement.accepted
