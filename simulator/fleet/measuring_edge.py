"""How long this machine takes as an edge: the real model's segments, exits and token loop.

Every figure is a median over rounds that take turns with the context lengths, so that a machine
that slows down slows all of them alike.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.engine import EdgeEngine
from edge.exit_model import ExitModel, ModelState
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.clock import Clock, monotonic
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle
from simulator.fleet.measuring_fit import slope
from simulator.fleet.validation_replay import ReplayedEdge, ReplayedModel, Script, instant_device

# counts of positions that a level takes in at once
_PENDING = (1, 4, 16, 64)
_STEP_TOKENS = 64


@dataclass(frozen=True)
class EdgeEffort:
    """How much to measure: ``rounds`` of ``tokens`` tokens behind prompts of each of ``contexts``
    tokens."""

    contexts: tuple[int, ...] = (64, 256, 512)
    rounds: int = 7
    tokens: int = 24

    @property
    def steps(self) -> int:
        """How often progress is told."""
        return self.rounds * len(self.contexts) + 1


QUICK_EDGE = EdgeEffort((64, 128), rounds=2, tokens=6)


@dataclass(frozen=True)
class EdgeTimes:
    """Seconds, as in :class:`~simulator.fleet.profiles.DeviceProfile`; ``by_context`` are those of
    a token at each level, by the tokens before it."""

    segments: tuple[float, ...]
    exits: tuple[float, ...]
    pending: tuple[float, ...]
    prefill: float
    step: float
    by_context: dict[int, tuple[float, ...]]


@dataclass
class _Samples:
    """Seconds of each kind of work, as they were measured; levels by their number."""

    clock: Clock
    prefill: list[float] = field(default_factory=list)
    segments: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    exits: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    levels: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    pending: dict[int, dict[int, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def timed(self, work: Callable[..., Any], *arguments: Any) -> float:
        began = self.clock()
        work(*arguments)
        return self.clock() - began


def measure_edge(
    engine: EdgeEngine,
    effort: EdgeEffort,
    advance: Callable[[], None],
    *,
    clock: Clock = monotonic,
) -> EdgeTimes:
    """Measure the engine's model on this thread; ``advance`` follows each step.

    Raises:
        ConfigurationError: the model has no exits, or holds no context that is so long.
    """
    model = engine.load_model()
    if not model.exits:
        raise ConfigurationError("the bundle has no exits: run `tandem prepare --force`")
    room = max(effort.contexts) + effort.tokens + sum(_PENDING) * len(model.exits) + 8
    if room > model.architecture.max_positions:
        raise ConfigurationError(
            f"measuring takes {room} positions, and the model holds "
            f"{model.architecture.max_positions}"
        )
    samples = _Samples(clock)
    noise = np.random.default_rng(0)
    for number in range(-1, effort.rounds):  # the first round warms up, and does not count
        kept = samples if number >= 0 else _Samples(clock)
        for context in effort.contexts:
            ids = noise.integers(0, model.architecture.vocabulary_size, room).tolist()
            _measure_round(model, model.open(room), ids, context, effort.tokens, kept)
            if number >= 0:
                advance()
    levels = range(len(model.exits))
    segments = tuple(statistics.median(samples.segments[level]) for level in levels)
    exits = tuple(statistics.median(samples.exits[level]) for level in levels)
    step = step_seconds(engine.bundle, effort.rounds)
    advance()
    return EdgeTimes(
        segments,
        exits,
        tuple(slope(samples.pending[level]) for level in levels),
        statistics.median(samples.prefill),
        step,
        {
            context: tuple(statistics.median(samples.levels[context, i]) for i in levels)
            for context in effort.contexts
        },
    )


def _measure_round(
    model: ExitModel, state: ModelState, ids: list[int], context: int, tokens: int, kept: _Samples
) -> None:
    """A prompt, tokens that are read at every exit, and tokens that were not read for a while."""
    deepest = len(model.exits) - 1
    kept.prefill.append(kept.timed(state.extend, ids[:context]) / context)
    for level in range(deepest + 1):
        state.read_exit(level)
    at = context
    for _ in range(tokens):
        extended = kept.timed(state.extend, ids[at : at + 1])
        at += 1
        for level in range(deepest + 1):
            whole = kept.timed(state.read_exit, level)
            again = kept.timed(state.read_exit, level)  # the exit alone: its segment is filled
            segment = extended if level == 0 else max(0.0, whole - again)
            exit_seconds = whole if level == 0 else whole - segment
            kept.segments[level].append(segment)
            kept.exits[level].append(exit_seconds)
            kept.levels[context, level].append(segment + exit_seconds)
    for level in range(deepest + 1):
        for count in _PENDING:
            for _ in range(count):
                state.extend(ids[at : at + 1])
                at += 1
                for shallow in range(level):
                    state.read_exit(shallow)
            kept.pending[level][count].append(kept.timed(state.read_exit, level))
        for deeper in range(level + 1, deepest + 1):  # leave nothing for the next level to take in
            state.read_exit(deeper)


def step_seconds(bundle: ModelBundle, rounds: int) -> float:
    """What the real token loop takes for a token beside the model: with one that takes no time,
    every exit read."""
    manifest = bundle.manifest
    exits = len(manifest.exits)
    model = ReplayedModel(
        manifest.architecture, manifest.exits, instant_device(exits), 1.0, rows=None
    )
    shape = (_STEP_TOKENS, exits)
    model.script = Script(
        (1, 2), (1,) * _STEP_TOKENS, np.full(shape, 0.5, np.float32), np.ones(shape, np.bool_)
    )
    options = GenerationOptions(Mode.STANDALONE, threshold=1.0, max_tokens=_STEP_TOKENS)
    engine = ReplayedEdge(bundle, model)

    async def answer() -> float:
        result = await engine.generate((1, 2), options)
        return (result.seconds - result.first_token_seconds) / (len(result.tokens) - 1)

    try:
        return statistics.median(asyncio.run(answer()) for _ in range(rounds))
    finally:
        engine.close()
