"""How long this machine takes as a cloud: passes of the real batcher and model, and what a question
takes besides.

Passes are measured in this process, with nobody else at work: sessions × positions, from token ids
and from hidden states, with the vocabulary head at one position of each session or at all.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cloud.batcher import Batcher, Work
from cloud.deep_model import DeepModel
from cloud.kv_cache import KvCache
from cloud.session_engine import CATCH_UP_FROM
from edge.cloud_channel import CloudEndpoint
from edge.cloud_session import CloudSession
from edge.context_source import ContextCodec, HiddenStateSource, TokenSource
from shared.clock import Clock, monotonic
from shared.messages import ContextKind
from shared.model_bundle import ModelBundle
from shared.sampling import GREEDY
from simulator.fleet.measuring_fit import PassSample
from simulator.fleet.profiles import PassModel

Shape = tuple[int, int, int, int]  # sessions, rows, past, decisions, each of a session
_WARM_UP_QUESTIONS = 8
_BETWEEN_MESSAGES = 0.003
_MESSAGES = 2  # of one exchange: a question with its context, and the decision


@dataclass(frozen=True)
class CloudEffort:
    """How much to measure: ``shapes`` of passes so many ``rounds``, and ``questions`` to a served
    cloud."""

    shapes: tuple[Shape, ...]
    rounds: int
    questions: int

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


FULL_CLOUD = CloudEffort(_shapes((1, 2, 4, 8, 16), (1, 2, 4, 8), (64, 256), 128), 5, 60)
QUICK_CLOUD = CloudEffort(_shapes((1, 4), (1, 4), (32, 96), 64), 2, 12)


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


@dataclass(frozen=True)
class Overheads:
    """Seconds that a question takes beside its pass: for each message at the edge, and in the cloud
    with the wire's ends; and a cloud's processor time for each message, which its passes lose."""

    message: float
    turnaround: float
    cloud_message: float


def with_messages(model: PassModel, message: float, rows: int, decisions: int) -> PassModel:
    """A served cloud's pass: the fitted one, and the messages of its rows and decisions.

    Python runs one thread at a time, so what the service does for a message the model's thread
    waits for.
    """
    return model.model_copy(
        update={
            "row_seconds": model.row_seconds + rows * message,
            "decision_seconds": model.decision_seconds + decisions * message,
        }
    )


async def measure_exchanges(
    bundle: ModelBundle, address: str, questions: int, *, clock: Clock
) -> tuple[float, float]:
    """Ask the cloud at ``address``, on this machine, for one token after the other: median seconds
    of an exchange, and what this process computes for each of its messages."""
    await _ask(bundle, address, _WARM_UP_QUESTIONS, clock)
    exchanges, computed = await _ask(bundle, address, questions, clock)
    return statistics.median(exchanges), computed / questions / _MESSAGES


async def measure_messages(
    bundle: ModelBundle, address: str, count: int, cloud_seconds: Callable[[], float]
) -> float:
    """The cloud's processor seconds for a message of context, hidden states of one position:
    ``cloud_seconds`` tells what it has used.  They are taken back before they make a pass."""
    hidden_size = bundle.manifest.architecture.hidden_size
    source = HiddenStateSource(_Noise(hidden_size), hidden_size, ContextCodec.FP16)
    sent = 0
    async with CloudSession(
        CloudEndpoint(address), bundle.manifest.fingerprint, GREEDY, source
    ) as cloud:
        cloud.offer(1)
        await cloud.decide(1)
        before = await asyncio.to_thread(cloud_seconds)
        while sent < count:
            for positions in range(2, CATCH_UP_FROM):
                cloud.offer(positions)
                await asyncio.sleep(_BETWEEN_MESSAGES)  # or several would be one message
                sent += 1
            cloud.truncate(1)
            sent += 1
        used = await asyncio.to_thread(cloud_seconds) - before
    return used / sent


class _Noise:
    """Hidden states of no text."""

    def __init__(self, hidden_size: int) -> None:
        noise = np.random.default_rng(0)
        self._states = noise.standard_normal((CATCH_UP_FROM, hidden_size)).astype(np.float32)

    def hidden_states(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        return self._states[start:stop]


async def _ask(
    bundle: ModelBundle, address: str, questions: int, clock: Clock
) -> tuple[list[float], float]:
    """Seconds of each exchange, and of this process in all."""
    text = [1]
    exchanges = []
    source = TokenSource(text)
    async with CloudSession(
        CloudEndpoint(address), bundle.manifest.fingerprint, GREEDY, source, text=text
    ) as cloud:
        computed = time.process_time()
        for _ in range(questions):
            cloud.offer(len(text))
            began = clock()
            decision = await cloud.decide(len(text))
            exchanges.append(clock() - began)
            text.append(decision.token_id)
        computed = time.process_time() - computed
    return exchanges, computed


def load_deep_model(bundle: ModelBundle) -> DeepModel:
    """The cloud half as ``tandem cloud serve`` loads it by default."""
    return DeepModel.load(bundle, torch.device("cpu"), torch.float32)
