"""How long this machine takes as a cloud: passes of the real batcher and model.

They are measured in this process, with nobody else at work: sessions × positions, from token ids
and from hidden states, with the vocabulary head at one position of each session or at all.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud.batcher import Batcher, Work
from cloud.deep_model import DeepModel
from cloud.kv_cache import KvCache
from shared.clock import Clock, monotonic
from shared.messages import ContextKind
from shared.model_bundle import ModelBundle
from shared.sampling import GREEDY
from simulator.fleet.measuring_fit import PassSample

Shape = tuple[int, int, int, int]  # sessions, rows, past, decisions, each of a session


@dataclass(frozen=True)
class CloudEffort:
    """How much to measure: ``shapes`` of passes so many ``rounds``, and messages of so many streams
    at once, each of which asks so many ``questions`` and hears a burst of four times as many
    tokens."""

    shapes: tuple[Shape, ...]
    rounds: int
    questions: int
    streams: int

    @property
    def steps(self) -> int:
        """How often progress is told, for each kind of context."""
        return self.rounds


def _shapes(
    sessions: tuple[int, ...], rows: tuple[int, ...], pasts: tuple[int, ...], most: int
) -> tuple[Shape, ...]:
    """Single tokens and runs to check, one decision a session and all; prompts and catch-up."""
    small = [(s, r, p, d) for s in sessions for r in rows for p in pasts for d in {1, r}
             if s * r <= most]  # fmt: skip
    large = [(1, r, p, d) for r in (16, 64, 128) for p in (0, pasts[0]) for d in (0, 1)
             if r <= most]  # fmt: skip
    return tuple(sorted({*small, *large}))


FULL_CLOUD = CloudEffort(_shapes((1, 2, 4, 8, 16), (1, 2, 4, 8), (64, 256), 128), 5, 60, 16)
QUICK_CLOUD = CloudEffort(_shapes((1, 4), (1, 4), (32, 96), 64), 2, 12, 4)


async def measure_passes(
    model: DeepModel,
    kind: ContextKind,
    effort: CloudEffort,
    advance: Callable[[], None],
    *,
    threads: int | None = None,
    clock: Clock = monotonic,
) -> list[PassSample]:
    """Medians over the rounds, each of which goes through all shapes in another order; ``advance``
    follows each round."""
    seconds: dict[Shape, list[float]] = defaultdict(list)
    order, chance = list(effort.shapes), random.Random(0)  # noqa: S311
    longest = max(past for _, _, past, _ in order)
    async with Batcher(model, max_rows=1024, threads=threads) as batcher:
        sessions = [
            _Session(model, kind, longest + 128) for _ in range(max(shape[0] for shape in order))
        ]
        for session in sessions:
            await batcher.run(session.work(0, longest, 0))
        for number in range(-1, effort.rounds):  # the first round warms up
            chance.shuffle(order)
            for shape in order:
                count, rows, past, decisions = shape
                works = [session.work(past, rows, decisions) for session in sessions[:count]]
                began = clock()
                # all are queued before the batcher looks, so they are one pass
                await asyncio.gather(*map(batcher.run, works))
                if number >= 0:
                    seconds[shape].append(clock() - began)
            if number >= 0:
                advance()
    return [
        PassSample(*_in_order(shape), statistics.median(found)) for shape, found in seconds.items()
    ]


def _in_order(shape: Shape) -> tuple[int, int, int, int]:
    sessions, rows, past, decisions = shape
    return sessions, rows, past, decisions


class _Session:
    """Context of one session, and the cache that is made of it."""

    def __init__(self, model: DeepModel, kind: ContextKind, positions: int) -> None:
        noise = np.random.default_rng(positions)
        arch = model.architecture
        self._context: npt.NDArray[Any]
        if kind is ContextKind.TOKEN_IDS:
            self._context = noise.integers(0, arch.vocabulary_size, positions).astype(np.int32)
            self._cache: KvCache = model.new_cache(0)
        else:
            self._context = noise.standard_normal((positions, arch.hidden_size), np.float32)
            self._cache = model.new_cache(model.cut)

    def work(self, start: int, rows: int, decisions: int) -> Work:
        """Rows from ``start`` on, of which the last so many are decided."""
        stop = start + rows
        decide = tuple(range(stop - decisions + 1, stop + 1))
        return Work(
            self._cache, start, self._context[start:stop], decide, None, GREEDY, True, "measured"
        )


def load_deep_model(bundle: ModelBundle) -> DeepModel:
    """The cloud half as ``tandem cloud serve`` loads it by default."""
    return DeepModel.load(bundle)
