"""The real half of the validation: a cloud process, shaped links, and a process for each edge."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from edge.cloud_channel import CloudEndpoint
from edge.context_source import ContextCodec
from edge.engine import EdgeEngine
from edge.exit_model import ExitModel
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.clock import monotonic
from shared.model_bundle import ModelBundle, Precision
from simulator.bench.worker_process import WorkerProcess
from simulator.fleet.cores import on_cores
from simulator.fleet.profiles import DeviceProfile
from simulator.fleet.recorder import Recorded, RecordedText, record
from simulator.fleet.validation_edge import TimedAnswer, options_of, save_scripts
from simulator.fleet.validation_replay import (
    FloatArray,
    ReplayedEdge,
    ReplayedModel,
    Script,
    instant_device,
)
from simulator.link_spec import LinkSpec
from simulator.local_cloud import LocalCloud

_LEAD_SECONDS = 0.5  # for connected edges to hear when they begin
_QUESTIONS = 32  # at a time, of those that are asked beforehand


@dataclass(frozen=True)
class Turn:
    """What one edge does: from second ``begin`` of a run on it answers the texts of ``order``, one
    behind the other."""

    begin: float
    order: tuple[int, ...]


def turns_of(edges: int, texts: int, stagger: float) -> tuple[Turn, ...]:
    """Every edge answers every text once, each beginning with another one, and at another time
    within ``stagger`` seconds."""
    return tuple(
        Turn(
            stagger * number / edges,
            tuple((number + step) % texts for step in range(texts)),
        )
        for number in range(edges)
    )


@asynccontextmanager
async def serving_cloud(
    bundle: ModelBundle, threads: int, edges: int, cores: frozenset[int] = frozenset()
) -> AsyncIterator[LocalCloud]:
    """A cloud with room for so many edges, and for answers that have just ended; on ``cores``,
    where some are named."""
    options = ["--max-sessions", str(4 * edges + 16), "--max-streams", "1024"]
    cloud = LocalCloud(bundle.folder, threads=threads, options=options)
    async with AsyncExitStack() as stack:
        with on_cores(cores):
            await stack.enter_async_context(cloud)
        yield cloud


async def record_texts(
    bundle: ModelBundle,
    precision: Precision,
    address: str,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
) -> tuple[Recorded, list[FloatArray]]:
    """Texts of the cloud at ``address``, and each one's hidden states at the cut."""
    engine = EdgeEngine(bundle, precision, endpoint=CloudEndpoint(address))
    try:
        recorded = await record(engine, prompts, max_tokens, lambda: None)
        model = engine.load_model()
        hidden = [await asyncio.to_thread(_hidden_states, model, t) for t in recorded.texts]
    finally:
        engine.close()
    return recorded, hidden


def _hidden_states(model: ExitModel, text: RecordedText) -> FloatArray:
    ids = (*text.prompt_ids, *text.answer_ids)
    state = model.open(len(ids))
    state.extend(ids)
    return np.array(state.hidden_states(0, len(ids)))


async def scripts_of(
    bundle: ModelBundle,
    address: str,
    texts: Sequence[RecordedText],
    hidden: Sequence[FloatArray],
) -> dict[ContextCodec, list[Script]]:
    """Scripts for edges that send token ids, and for those that send hidden states.

    From hidden states, which the edge's quantized layers made, the cloud decides a few tokens
    otherwise.  It is asked for all of them beforehand, so that the edges' guesses are right where
    they were recorded to be.
    """
    by_ids = [
        Script(text.prompt_ids, text.answer_ids, text.answer.confidences, text.answer.agrees)
        for text in texts
    ]
    by_states = []
    for script, states in zip(by_ids, hidden, strict=True):
        sent = replace(script, hidden=states)
        by_states.append(replace(sent, answer_ids=await _decisions(bundle, address, sent)))
    return {ContextCodec.TOKENS: by_ids, ContextCodec.FP16: by_states}


async def _decisions(bundle: ModelBundle, address: str, script: Script) -> tuple[int, ...]:
    """What the cloud says at each position of the script's text, from its hidden states."""
    manifest = bundle.manifest
    device = instant_device(len(manifest.exits))
    model = ReplayedModel(manifest.architecture, manifest.exits, device, None, sleep=lambda _: None)
    model.script = script
    options = GenerationOptions(
        Mode.COLLABORATIVE,
        verified=True,
        max_tokens=len(script.answer_ids),
        forced_ids=script.answer_ids,
        window=_QUESTIONS,
    )
    edge = ReplayedEdge(bundle, model, address)
    try:
        result = await edge.generate(script.prompt_ids, options)
    finally:
        edge.close()
    return tuple(token.token_id for token in result.tokens)


class RealFleet:
    """``async with``: edges in processes of their own, each behind its own link to a cloud; all of
    them on ``cores``, where some are named."""

    def __init__(
        self,
        bundle: ModelBundle,
        device: DeviceProfile,
        link: LinkSpec,
        cloud_address: str,
        scripts: dict[ContextCodec, list[Script]],
        edges: int,
        seed: int,
        cores: frozenset[int] = frozenset(),
    ) -> None:
        self._cores = cores
        self._bundle, self._device, self._scripts = bundle, device, scripts
        self._edges = edges
        arguments = [cloud_address, link.model_dump_json(), str(edges), str(seed)]
        self._links = WorkerProcess(
            "the simulated links", "simulator.fleet.validation_links", arguments
        )
        self._workers: list[WorkerProcess] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        with on_cores(self._cores):
            return await self._start()

    async def _start(self) -> Self:
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-fleet-"))
            self._paths = {codec: Path(folder) / f"{codec.value}.npz" for codec in self._scripts}
            for codec, path in self._paths.items():
                save_scripts(path, self._scripts[codec])
            await stack.enter_async_context(self._links)
            arguments = [str(self._bundle.folder), self._device.model_dump_json()]
            for number in range(self._edges):
                worker = WorkerProcess(
                    f"edge {number}", "simulator.fleet.validation_edge", arguments
                )
                self._workers.append(await stack.enter_async_context(worker))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, policy: str, turns: Sequence[Turn]) -> list[list[TimedAnswer]]:
        """Each edge's answers, times in seconds since the run began.

        Raises:
            ConfigurationError: an edge failed; says why.
        """
        options = options_of(policy)
        tokens = options.mode is Mode.CLOUD_ONLY or options.context is ContextCodec.TOKENS
        path = self._paths[ContextCodec.TOKENS if tokens else ContextCodec.FP16]
        addresses = self._links.ready["addresses"]
        workers = self._workers[: len(turns)]
        await asyncio.gather(
            *(
                worker.ask({"policy": policy, "scripts": str(path), "address": address})
                for worker, address in zip(workers, addresses, strict=False)
            )
        )
        began = monotonic() + _LEAD_SECONDS
        replies = await asyncio.gather(
            *(
                worker.ask({"begin": began + turn.begin, "order": turn.order})
                for worker, turn in zip(workers, turns, strict=True)
            )
        )
        return [
            [
                TimedAnswer(first - began, tuple(time - began for time in shown))
                for first, *shown in reply["answers"]
            ]
            for reply in replies
        ]
