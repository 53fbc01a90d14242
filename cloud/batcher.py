"""The batcher: the one thread that runs the model, fed with the ready work of many sessions.

Each pass takes what is waiting, first come first served and one piece a session, and runs it as
one forward pass.  Urgent work (somebody waits for a token) goes before catch-up (context that
arrived ahead of a question), which runs only in passes of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud.deep_model import Chunk, DeepModel
from cloud.kv_cache import KvCache
from cloud.metrics import CloudMetrics
from shared.clock import Clock, monotonic
from shared.sampling import Choice, Sampling, choose_token


@dataclass
class Work:
    """One session's share of a pass.

    Attributes:
        cache: the session's; the batcher alone touches it until :meth:`Batcher.run` returns.
        start: position of the first row; the cache is cut off there.
        rows: new context from ``start`` on, hidden states ``[n, hidden]`` or token ids ``[n]``;
            may be empty.
        decide: rising positions to decide; the rows before them are among ``rows``, but for
            ``start`` itself, which ``final_state`` decides.
        final_state: ``[hidden]``, final hidden state of position ``start`` - 1 where it is known.
        urgent: may be raised while the work waits.
    """

    cache: KvCache
    start: int
    rows: npt.NDArray[Any]
    decide: tuple[int, ...]
    final_state: Tensor | None
    sampling: Sampling
    urgent: bool


@dataclass(frozen=True)
class Outcome:
    """Tokens for ``decide``, the final hidden state ``[hidden]`` of the last row (``None`` without
    rows), and the work's share of the pass in seconds."""

    choices: tuple[Choice, ...]
    final_state: Tensor | None
    seconds: float


@dataclass
class _Waiting:
    work: Work
    outcome: asyncio.Future[Outcome]
    since: float


class Batcher:
    """An ``async with`` block that owns the model's thread."""

    def __init__(
        self,
        model: DeepModel,
        *,
        max_rows: int = 256,
        threads: int | None = None,
        metrics: CloudMetrics | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.max_rows = max_rows
        self.model = model
        self._metrics, self._clock = metrics or CloudMetrics(), clock
        self._queue: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(
            1, "deep-model", initializer=_use_threads, initargs=(threads,)
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._passes(), name="batcher")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        for waiting in self._queue:
            waiting.outcome.cancel()
        self._executor.shutdown()

    def check(self) -> None:
        """Raise where no pass will ever run again."""
        if self._task.done():
            raise RuntimeError("the batcher has stopped")

    async def run(self, work: Work) -> Outcome:
        """Compute ``work``.  When this returns, or is cancelled, its cache is no longer touched."""
        assert len(work.rows) <= self.max_rows
        waiting = _Waiting(work, asyncio.get_running_loop().create_future(), self._clock())
        self._queue.append(waiting)
        self._arrived.set()
        try:
            return await asyncio.shield(waiting.outcome)
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            else:
                while not waiting.outcome.done():
                    with contextlib.suppress(asyncio.CancelledError):  # one is raised below
                        await asyncio.wait([waiting.outcome])
                if not waiting.outcome.cancelled():
                    waiting.outcome.exception()  # nobody else looks at it
            raise

    async def _passes(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._next_pass()
            if not batch:
                self._arrived.clear()
                continue
            works = [waiting.work for waiting in batch]
            began = self._clock()
            computing = loop.run_in_executor(self._executor, self._compute_all, works)
            try:
                results = await asyncio.shield(computing)
            except asyncio.CancelledError:
                await asyncio.wait([computing])
                for waiting in batch:
                    waiting.outcome.cancel()
                raise
            self._metrics.pass_ended(
                [(waiting.work.urgent, began - waiting.since) for waiting in batch],
                sum(len(work.rows) for work in works),
                self._clock() - began,
            )
            for waiting, result in zip(batch, results, strict=True):
                if isinstance(result, Outcome):
                    waiting.outcome.set_result(result)
                else:
                    waiting.outcome.set_exception(result)

    def _next_pass(self) -> list[_Waiting]:
        """Take from the queue, in order, what fits into one pass."""
        urgent = [waiting for waiting in self._queue if waiting.work.urgent]
        batch: list[_Waiting] = []
        rows = 0
        for waiting in urgent or self._queue:
            rows += len(waiting.work.rows)
            if batch and rows > self.max_rows:
                break
            batch.append(waiting)
        for waiting in batch:
            self._queue.remove(waiting)
        return batch

    def _compute_all(self, works: Sequence[Work]) -> Sequence[Outcome | Exception]:
        """One pass in the worker thread; one that fails is repeated session by session, so that a
        fault reaches no other session."""
        try:
            return self._compute(works)
        except Exception as error:
            if len(works) == 1:
                return [error]
        return [result for work in works for result in self._compute_all([work])]

    def _compute(self, works: Sequence[Work]) -> list[Outcome]:
        began = time.perf_counter()
        chunks = [self._chunk(work) for work in works if len(work.rows)]
        states = iter(self.model.forward(chunks) if chunks else ())
        newest: list[Tensor | None] = []
        asked: list[Tensor] = []
        for work in works:
            known = [] if work.final_state is None else [work.final_state[None]]
            computed = next(states) if len(work.rows) else None
            newest.append(None if computed is None else computed[-1].clone())
            if not work.decide:
                continue
            from_known = work.decide[0] == work.start
            assert not from_known or known
            if from_known:
                asked.extend(known)
            if computed is not None:
                asked.append(computed[: len(work.decide) - from_known])
        logits = self.model.logits(torch.cat(asked)).numpy() if asked else np.empty((0, 0))
        choices: list[tuple[Choice, ...]] = []
        at = 0
        for work in works:
            choices.append(
                tuple(
                    choose_token(row, work.sampling, position)
                    for row, position in zip(logits[at:], work.decide, strict=False)
                )
            )
            at += len(work.decide)
        seconds = time.perf_counter() - began
        total = sum(max(1, len(work.rows)) for work in works)
        return [
            Outcome(chosen, state, seconds * max(1, len(work.rows)) / total)
            for work, chosen, state in zip(works, choices, newest, strict=True)
        ]

    def _chunk(self, work: Work) -> Chunk:
        work.cache.length = work.start
        wanted = [position - 1 - work.start for position in work.decide if position > work.start]
        if not wanted or wanted[-1] != len(work.rows) - 1:
            wanted.append(len(work.rows) - 1)
        rows = torch.from_numpy(work.rows)
        by_ids = work.cache.first_layer == 0
        rows = rows.to(self.model.device, torch.int64 if by_ids else self.model.dtype)
        return Chunk(work.cache, rows, tuple(wanted))


def _use_threads(threads: int | None) -> None:
    """OpenMP keeps the number of threads per calling thread, so the worker sets its own."""
    if threads:
        torch.set_num_threads(threads)
