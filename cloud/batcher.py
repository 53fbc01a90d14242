"""The batcher: the one thread that runs the model, fed with the ready work of many sessions.

Each pass takes as many rows of what waits as fit, in the order of :mod:`cloud.fair_queue`, and runs
them as one forward pass: single tokens, runs of drafts to check, catch-up and prefills alike.  Work
that does not fit whole is cut, and its rest goes on in the next pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud.deep_model import Chunk, DeepModel
from cloud.fair_queue import FairQueue
from cloud.kv_cache import KvCache
from cloud.metrics import CloudMetrics
from shared.clock import Clock, monotonic
from shared.errors import CloudInternalError
from shared.sampling import Choice, Sampling, choose_token

# of a pass's time, to wait for the sessions in it that go on: a pass over a few rows costs as much
# as over one, and without a pause those would always be a pass behind the others
_PAUSE = 0.1
_LONGEST_PAUSE = 1.0  # of a pass in whose middle the machine was suspended

_LOG = logging.getLogger("tandem.cloud")


@dataclass
class Work:
    """What one session wants of the model.

    Attributes:
        cache: the session's; the batcher alone touches it until :meth:`Batcher.run` returns.
        start: position of the first row; the cache is cut off there.
        rows: new context from ``start`` on, hidden states ``[n, hidden]`` or token ids ``[n]``;
            may be empty.
        decide: rising positions to decide; the rows before them are among ``rows``, but for
            ``start`` itself, which ``final_state`` decides.
        final_state: ``[hidden]``, final hidden state of position ``start`` - 1 where it is known.
        urgent: may be raised while the work waits.
        tenant: whose account it goes on.
        continues: its session has more as soon as it hears of the outcome (a burst).
    """

    cache: KvCache
    start: int
    rows: npt.NDArray[Any]
    decide: tuple[int, ...]
    final_state: Tensor | None
    sampling: Sampling
    urgent: bool
    tenant: str
    continues: bool = False

    def piece(self, first: int, count: int) -> Work:
        """``count`` rows from the ``first`` on, with the decisions that they (or, for the first
        piece, the known final state) allow."""
        start = self.start + first
        own = tuple(p for p in self.decide if start + (first > 0) <= p <= start + count)
        return replace(
            self,
            start=start,
            rows=self.rows[first : first + count],
            decide=own,
            final_state=None if first else self.final_state,
        )


@dataclass(frozen=True)
class Outcome:
    """Tokens for ``decide``, the final hidden state ``[hidden]`` of the last row (``None`` without
    rows), and the work's share of its passes in seconds."""

    choices: tuple[Choice, ...]
    final_state: Tensor | None
    seconds: float


@dataclass(eq=False)
class _Waiting:
    """Work in the queue or in a pass; ``done`` of its rows were run in earlier ones."""

    work: Work
    outcome: asyncio.Future[Outcome]
    since: float
    done: int = 0
    choices: list[Choice] = field(default_factory=list)
    seconds: float = 0.0
    left: bool = False  # nobody waits for it any more

    @property
    def tenant(self) -> str:
        return self.work.tenant

    @property
    def urgent(self) -> bool:
        return self.work.urgent

    @property
    def rows(self) -> int:
        return len(self.work.rows) - self.done


class Batcher:
    """An ``async with`` block that owns the model's thread.

    ``max_rows`` bounds a pass, and so how long a token waits for the passes of others.  ``failed``
    is set where no pass will ever run again: the cloud cannot go on then.
    """

    def __init__(
        self,
        model: DeepModel,
        *,
        max_rows: int = 128,
        threads: int | None = None,
        metrics: CloudMetrics | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.max_rows = max_rows
        self.model = model
        self._metrics, self._clock = metrics or CloudMetrics(), clock
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._arrived, self.failed = asyncio.Event(), asyncio.Event()
        self._batch: Sequence[tuple[_Waiting, int]] = ()
        self._executor = ThreadPoolExecutor(
            1, "deep-model", initializer=_use_threads, initargs=(threads,)
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run_passes(), name="batcher")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        for waiting in self._queue.drain():
            waiting.outcome.cancel()
        self._executor.shutdown()

    def check(self) -> None:
        """Raise where no pass will ever run again."""
        if self._task.done():
            raise RuntimeError("the batcher has stopped")

    async def run(self, work: Work) -> Outcome:
        """Compute ``work``.  When this returns, or is cancelled, its cache is no longer touched.

        Raises:
            CloudInternalError: the batcher has failed.
        """
        if self.failed.is_set():
            raise _failure()
        waiting = _Waiting(work, asyncio.get_running_loop().create_future(), self._clock())
        self._queue.push(waiting)
        self._arrived.set()
        try:
            return await asyncio.shield(waiting.outcome)
        except asyncio.CancelledError:
            waiting.left = True
            if not self._queue.remove(waiting):
                while not waiting.outcome.done():
                    with contextlib.suppress(asyncio.CancelledError):  # one is raised below
                        await asyncio.wait([waiting.outcome])
                if not waiting.outcome.cancelled():
                    waiting.outcome.exception()  # nobody else looks at it
            raise

    async def _run_passes(self) -> None:
        """Run passes until cancelled.  A fault in a pass is for its sessions to bear; any other
        ends the batcher, and nobody is left to wait for it."""
        try:
            await self._passes()
        except Exception:
            _LOG.exception("batcher failed")
            self.failed.set()
            for waiting in [*self._queue.drain(), *(waiting for waiting, _ in self._batch)]:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(_failure())

    async def _passes(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._batch = batch = self._queue.take(self.max_rows)
            if not batch:
                self._arrived.clear()
                continue
            works = [waiting.work.piece(waiting.done, rows) for waiting, rows in batch]
            began = self._clock()
            computing = loop.run_in_executor(self._executor, self._compute_all, works)
            try:
                results = await asyncio.shield(computing)
            except asyncio.CancelledError:
                await asyncio.wait([computing])
                for waiting, _ in batch:
                    waiting.outcome.cancel()
                raise
            self._metrics.pass_ended(
                [(waiting.urgent, began - waiting.since) for waiting, _ in batch],
                sum(len(work.rows) for work in works),
                self._clock() - began,
            )
            # what goes on keeps its place, the first of a tenant's in front of its second
            for (waiting, rows), result in reversed(list(zip(batch, results, strict=True))):
                self._settle(waiting, rows, result)
            going_on = sum(w.work.continues and w.outcome.done() for w, _ in batch)
            if going_on:
                took = self._clock() - began
                await self._pause(going_on, min(_PAUSE * took, _LONGEST_PAUSE))

    async def _pause(self, going_on: int, seconds: float) -> None:
        """Wait for so many pieces of work to join the queue, so many seconds at most."""
        wanted = len(self._queue) + going_on
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self._queue) < wanted:
                    self._arrived.clear()
                    await self._arrived.wait()
        self._arrived.set()

    def _settle(self, waiting: _Waiting, rows: int, result: Outcome | Exception) -> None:
        """Hand over what a pass made of ``rows`` rows, or let the rest wait for the next."""
        if isinstance(result, Exception):
            waiting.outcome.set_exception(result)
            return
        waiting.done += rows
        waiting.choices += result.choices
        waiting.seconds += result.seconds
        if not waiting.rows:
            choices = tuple(waiting.choices)
            waiting.outcome.set_result(Outcome(choices, result.final_state, waiting.seconds))
        elif waiting.left:
            waiting.outcome.cancel()
        else:
            waiting.since = self._clock()
            self._queue.push(waiting, first=True)

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


def _failure() -> CloudInternalError:
    return CloudInternalError("the cloud failed; its log says why")


def _use_threads(threads: int | None) -> None:
    """OpenMP keeps the number of threads per calling thread, so the worker sets its own."""
    if threads:
        torch.set_num_threads(threads)
