"""What the teacher is asked: text files of prompts, and prompts that the model thinks up itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.chat import ChatTemplate, Message


@dataclass(frozen=True)
class Lot:
    """One shard's worth of work: prompts to answer, or (``prompts`` empty) to think up first."""

    prompts: tuple[str, ...]
    invented: int
    temperature: float


def plan_lots(
    prompts: Sequence[str], *, invented: int, lot_size: int, sampled_share: float, seed: int
) -> list[Lot]:
    """Shuffle prompts and invented ones into lots, so that any few lots are a fair mix.

    Args:
        prompts: given prompts, each used once.
        invented: how many more the model shall think up.
        sampled_share: share of lots answered at temperature 0.7 instead of greedily.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(prompts))
    lots = []
    for start in range(0, len(order), lot_size):
        chosen = tuple(prompts[i] for i in order[start : start + lot_size])
        lots.append(Lot(chosen, 0, _temperature(rng, sampled_share)))
    for start in range(0, invented, lot_size):
        count = min(lot_size, invented - start)
        lots.append(Lot((), count, _temperature(rng, sampled_share)))
    return [lots[i] for i in rng.permutation(len(lots))]


def _temperature(rng: np.random.Generator, sampled_share: float) -> float:
    return 0.7 if rng.random() < sampled_share else 0.0


def bare_header(template: ChatTemplate) -> str:
    """The chat text up to where a user's words begin: sampling from here invents a prompt."""
    marker = "\x00"
    return template.render([Message("user", marker)], add_generation_prompt=False).split(marker)[0]
