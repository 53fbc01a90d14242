"""What messages take, at the edge and in a served cloud: over loopback, from and to a cloud whose
model computes nothing (:mod:`simulator.fleet.instant_cloud`)."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud.deep_model import DeepModel
from edge.cloud_channel import CloudEndpoint
from edge.cloud_session import CloudSession
from edge.context_source import ContextCodec, HiddenStateSource, TokenSource
from shared.clock import Clock, monotonic
from shared.messages import ContextKind
from shared.model_bundle import ModelBundle
from shared.sampling import GREEDY
from simulator.bench.worker_process import WorkerProcess
from simulator.fleet.cores import on_cores
from simulator.fleet.instant_cloud import InstantModel
from simulator.fleet.measuring_cloud import CloudEffort, measure_passes

_WARM_UP_QUESTIONS = 8
_PER_QUESTION = 3  # messages of an exchange: context, question, decision
_EDGE_PER_QUESTION = 2  # for the edge one up, one down
_PAUSES = (0.05, 0.15)  # seconds between the questions of a stream
_BURST = 4  # tokens, for each question of the effort


@dataclass(frozen=True)
class Overheads:
    """Seconds that a question takes beside its pass.

    Attributes:
        edge_message: of the edge's processor, for a message either way.
        message: of the cloud's processor beside the model, for a message in or out: the mean of
            ``asked`` (context, questions, decisions) and ``said`` (decisions of bursts).
        turnaround: the rest of an exchange.
        exchange: all of it, over loopback, with a pass of ``empty_pass`` seconds.
    """

    edge_message: float
    message: float
    asked: float
    said: float
    turnaround: float
    exchange: float
    empty_pass: float


async def measure_messages(
    bundle: ModelBundle,
    model: DeepModel,
    effort: CloudEffort,
    *,
    cloud_cores: frozenset[int] = frozenset(),
    clock: Clock = monotonic,
) -> Overheads:
    """Measure with a cloud in a process of its own, on ``cloud_cores`` where some are named;
    ``model`` lends its caches."""
    arguments = [str(bundle.folder), str(effort.streams)]
    worker = WorkerProcess("the cloud without a model", "simulator.fleet.instant_cloud", arguments)
    async with AsyncExitStack() as stack:
        with on_cores(cloud_cores):
            cloud = await stack.enter_async_context(worker)
        lines = _Lines(bundle, cloud.ready["address"], clock)
        await lines.exchanges(_WARM_UP_QUESTIONS)
        began = time.process_time()
        exchange = statistics.median(await lines.exchanges(effort.questions))
        edge = (time.process_time() - began) / effort.questions / _EDGE_PER_QUESTION
        streams, tokens = range(effort.streams), _BURST * effort.questions
        count = effort.streams * effort.questions
        seconds = [await _used(cloud)]
        await asyncio.gather(*(lines.ask_on(effort.questions, number) for number in streams))
        seconds.append(await _used(cloud))
        await asyncio.gather(*(lines.hear_burst(tokens) for _ in streams))
        seconds.append(await _used(cloud))
    asked = (seconds[1] - seconds[0]) / (_PER_QUESTION * count)
    said = (seconds[2] - seconds[1]) / (_BURST * count)
    message = (asked + said) / 2
    empty_pass = await _empty_pass(model, effort.questions)
    rest = exchange - empty_pass - _EDGE_PER_QUESTION * edge - _PER_QUESTION * message
    return Overheads(edge, message, asked, said, max(0.0, rest), exchange, empty_pass)


async def _used(cloud: WorkerProcess) -> float:
    return float((await cloud.ask({}))["seconds"])


async def _empty_pass(model: DeepModel, rounds: int) -> float:
    """Seconds of a pass of the bare batcher over a row, with a model that computes nothing."""
    effort = CloudEffort(((1, 1, 8, 1),), rounds, 0, 0)
    instant: DeepModel = InstantModel(model)  # type: ignore[assignment]
    (sample,) = await measure_passes(instant, ContextKind.TOKEN_IDS, effort, lambda: None)
    return sample.seconds


class _Lines:
    """Sessions with the cloud at ``address``."""

    def __init__(self, bundle: ModelBundle, address: str, clock: Clock) -> None:
        self._bundle, self._address, self._clock = bundle, address, clock

    def _session(self, source: TokenSource | HiddenStateSource, text: list[int]) -> CloudSession:
        endpoint, fingerprint = CloudEndpoint(self._address), self._bundle.manifest.fingerprint
        return CloudSession(endpoint, fingerprint, GREEDY, source, text=text)

    async def exchanges(self, questions: int) -> list[float]:
        """Seconds of each of so many, one token after the other, with an edge's pause between."""
        text, found = [1], []
        async with self._session(TokenSource(text), text) as cloud:
            for _ in range(questions):
                await asyncio.sleep(_PAUSES[0])
                cloud.offer(len(text))
                began = self._clock()
                decision = await cloud.decide(len(text))
                found.append(self._clock() - began)
                text.append(decision.token_id)
        return found

    async def ask_on(self, questions: int, number: int) -> None:
        """Hidden states of a position and a question about it, so often; as edges do, when it
        suits them: what comes alone takes longer than what comes together."""
        size = self._bundle.manifest.architecture.hidden_size
        chance = random.Random(number)  # noqa: S311
        source = HiddenStateSource(_Noise(size, questions), size, ContextCodec.FP16)
        async with self._session(source, []) as cloud:
            for position in range(1, questions + 1):
                await asyncio.sleep(chance.uniform(*_PAUSES))
                cloud.offer(position)
                await cloud.decide(position)

    async def hear_burst(self, tokens: int) -> None:
        """One question, and so many tokens."""
        text = [1]
        async with self._session(TokenSource(text), text) as cloud:
            cloud.offer(1)
            async for decision in cloud.decide_burst(1, tokens - 1):
                text.append(decision.token_id)
                cloud.offer(len(text))


class _Noise:
    """Hidden states of no text."""

    def __init__(self, size: int, positions: int) -> None:
        noise = np.random.default_rng(0)
        self._states = noise.standard_normal((positions, size)).astype(np.float32)

    def hidden_states(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        return self._states[start:stop]
