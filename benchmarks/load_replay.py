"""Edges without models: each replays recorded sessions against a real cloud, one after the other.

An edge sends the recorded frames at the recorded times of its own, and waits where the recorded one
had waited, for as long as it takes.  All edges live on one event loop, each on a connection of its
own.  A session whose cloud decides otherwise than when it was recorded (a tie that fell the other
way) is left and counted as diverged.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from benchmarks.load_recording import Await, Recording, Send
from cloud.collaboration_service import SESSION_METHOD
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.clock import monotonic
from shared.errors import CloudUnavailableError

# for one answer: more than this is a cloud that hangs
_ANSWER_SECONDS = 120.0
# of an answer, before its pace says anything
LEAST_GAPS = 8
# for every edge's first prompt, beyond the warm-up
STEADY_SECONDS = 180.0
_LOOK_SECONDS = 0.1


@dataclass
class Tally:
    """What all edges saw while it was ``counting``; lists are of seconds.

    Attributes:
        decisions: from a question to its answer, in a burst from the answer before.
        gaps_of: each answer's, between a token and the next.
        firsts: from the prompt to the first token.
        begun_edges: those that have shown a token or ended an answer, counting or not.
        seconds: for how long it was counting, once that is over.
    """

    counting: bool = False
    tokens: int = 0
    answers: int = 0
    diverged: int = 0
    decisions: list[float] = field(default_factory=list)
    gaps_of: list[list[float]] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    begun_edges: set[int] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def gaps(self) -> list[float]:
        """Those of all answers."""
        return [gap for gaps in self.gaps_of for gap in gaps]

    @property
    def paces(self) -> list[float]:
        """Of each answer the mean of its gaps, where it had ``LEAST_GAPS`` of them."""
        return [sum(gaps) / len(gaps) for gaps in self.gaps_of if len(gaps) >= LEAST_GAPS]

    def begun(self) -> list[float]:
        """A new answer; its gaps go into what is returned."""
        self.gaps_of.append([])
        return self.gaps_of[-1]

    def decided(self, seconds: float) -> None:
        """An answer came."""
        if self.counting:
            self.decisions.append(seconds)

    def shown(self, edge: int, seconds: float, gaps: list[float] | None) -> None:
        """``edge`` showed a token so long after the one before it, which is one of its answer's
        ``gaps``, or (``None``) after the prompt."""
        self.begun_edges.add(edge)
        if self.counting:
            self.tokens += 1
            (self.firsts if gaps is None else gaps).append(seconds)

    def ended(self, edge: int, *, diverged: bool) -> None:
        """An answer of ``edge`` is complete, or went another way."""
        self.begun_edges.add(edge)
        if self.counting:
            self.diverged += diverged
            self.answers += not diverged


class _DivergedError(Exception):
    """The cloud decided otherwise than in the recording."""


class _Replay:
    """One session on the wire."""

    def __init__(
        self, edge: int, recording: Recording, channel: grpc.aio.Channel, tally: Tally
    ) -> None:
        self._edge, self._recording, self._tally = edge, recording, tally
        self._call: Any = channel.stream_stream(SESSION_METHOD)()
        self._asked: dict[int, float] = {}
        self._decided: dict[tuple[int, int], int] = {}
        self._opened = False
        self._news = asyncio.Event()

    async def run(self, speed: float) -> None:
        """Replay to the end; ``speed`` divides the edge's own times."""
        reading = asyncio.create_task(self._read(), name="replay")
        try:
            await self._play(reading, speed)
            if not await _within(_ANSWER_SECONDS, reading):
                raise CloudUnavailableError("the cloud did not close a session in time")
        finally:
            reading.cancel()
            self._call.cancel()
            await asyncio.wait([reading])

    async def _play(self, reading: asyncio.Task[None], speed: float) -> None:
        began, waited = monotonic(), 0.0
        last, gaps, first = began, self._tally.begun(), True
        for event in self._recording.events:
            delay = began + waited + event.time / speed - monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            match event:
                case Send(_, frame):
                    await self._send(frame, reading)
                case Await(_, step, position, token):
                    since = monotonic()
                    if await self._answer((step, position), reading) != token:
                        raise _DivergedError
                    waited += monotonic() - since
                case _:
                    now = monotonic()
                    self._tally.shown(self._edge, now - last, None if first else gaps)
                    last, first = now, False

    async def _send(self, frame: bytes, reading: asyncio.Task[None]) -> None:
        message = pb.EdgeMessage.FromString(frame)
        if message.HasField("open"):
            message.open.session_id = os.urandom(16)  # or replays would resume one another
            await self._call.write(message.SerializeToString())
            await self._wait(lambda: self._opened, reading)
            return
        if message.HasField("escalate"):
            self._asked[message.step] = monotonic()
        await self._call.write(frame)

    async def _answer(self, to: tuple[int, int], reading: asyncio.Task[None]) -> int:
        await self._wait(lambda: to in self._decided, reading)
        return self._decided[to]

    async def _wait(self, ready: Callable[[], bool], reading: asyncio.Task[None]) -> None:
        deadline = monotonic() + _ANSWER_SECONDS
        while not ready():
            if reading.done():
                reading.result()
                raise _DivergedError  # it closed the session before it said what we wait for
            self._news.clear()
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait(
                    [news, reading],
                    timeout=deadline - monotonic(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                news.cancel()
            if monotonic() >= deadline:
                raise CloudUnavailableError(f"no answer in {_ANSWER_SECONDS:.0f} s")

    async def _read(self) -> None:
        async for frame in self._call:
            message, now = pb.CloudMessage.FromString(frame), monotonic()
            if message.HasField("error"):
                raise CloudUnavailableError(f"the cloud ended a session: {message.error.message}")
            if message.HasField("decision"):
                self._tally.decided(now - self._asked[message.step])
                self._asked[message.step] = now  # a burst goes on from here
                self._decided[message.step, message.position] = message.decision.token_id
            self._opened = True
            self._news.set()


async def _within(seconds: float, task: asyncio.Task[None]) -> bool:
    done, _ = await asyncio.wait([task], timeout=seconds)
    if done:
        task.result()
    return bool(done)


async def load(
    address: str,
    recordings: Sequence[Recording],
    edges: int,
    *,
    speed: float,
    seconds: float,
    warm_up: float,
    began: Callable[[], Awaitable[None]],
    ended: Callable[[], Awaitable[None]],
) -> Tally:
    """Start ``edges`` edges one by one in the first half of ``warm_up`` seconds, and count for
    ``seconds`` once it is over and every edge has shown a token; ``began`` is awaited before the
    first that counts and ``ended`` behind the last.  What is under way at the end is given up.

    Raises:
        CloudUnavailableError: the cloud ended a session or hung, or not every edge had its first
            token within ``STEADY_SECONDS`` after the warm-up.
    """
    tally = Tally()

    async def edge(number: int) -> None:
        await asyncio.sleep(warm_up / 2 * number / edges)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            for recording in _from(recordings, number):
                try:
                    await _Replay(number, recording, channel, tally).run(speed)
                except _DivergedError:
                    tally.ended(number, diverged=True)
                else:
                    tally.ended(number, diverged=False)

    running = [asyncio.create_task(edge(number), name=f"edge {number}") for number in range(edges)]
    try:
        await _all_run(running, warm_up)
        deadline = monotonic() + STEADY_SECONDS
        while len(tally.begun_edges) < edges:
            if monotonic() >= deadline:
                raise CloudUnavailableError(
                    f"{edges - len(tally.begun_edges)} of {edges} edges have no token after "
                    f"{warm_up + STEADY_SECONDS:.0f} s: give the cloud fewer --edges"
                )
            await _all_run(running, _LOOK_SECONDS)
        await began()
        tally.counting, since = True, monotonic()
        await _all_run(running, seconds)
        tally.counting, tally.seconds = False, monotonic() - since
        await ended()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return tally


async def _all_run(running: Sequence[asyncio.Task[None]], seconds: float) -> None:
    done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # edges end only by a fault


def _from(recordings: Sequence[Recording], number: int) -> Iterator[Recording]:
    """Each edge begins with another one."""
    return itertools.islice(itertools.cycle(recordings), number % len(recordings), None)
