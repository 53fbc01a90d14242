"""Where sessions wait for room in the context store: who came first goes first.

A session that computes, or has a question unanswered, keeps its cache; it is short work, and what
it holds is there for others afterwards.  So whoever waits gets its turn, and with it one answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cloud.held_session import HeldSession
from shared.clock import Clock
from shared.errors import NoRoomError, TandemError

# less than edges wait for an answer before they take the connection for broken
WAIT_SECONDS = 5.0

T = TypeVar("T")


class QuotaInUseError(NoRoomError):
    """A tenant's own sessions in use leave no room in its quota; others may have some."""


@dataclass(eq=False)
class _Waiting:
    """``attempt`` takes the room; ``refusal`` is why it could not yet."""

    session: HeldSession
    attempt: Callable[[], Any]
    taken: asyncio.Future[Any]
    refusal: NoRoomError


class WaitingRoom:
    """The queue for room."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue: list[_Waiting] = []
        self._first: HeldSession | None = None  # of those whom the cloud's own limit holds up

    @property
    def crowded(self) -> bool:
        """Whether anybody waits."""
        return bool(self._queue)

    def check_turn(self, session: HeldSession) -> None:
        """Raise :class:`NoRoomError` where another session is to have room first."""
        if self._first not in (None, session):
            raise NoRoomError("others wait for the cloud's memory: try again later")

    async def take(self, session: HeldSession, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns, as soon as there is room for it.

        It may be called in any task, by whoever gives the room.  A session that comes again after
        it waited in vain has kept its place.

        Raises:
            NoRoomError: there was none for ``WAIT_SECONDS``.
            TandemError: what else ``attempt`` raises.
        """
        try:
            found = attempt()
        except NoRoomError as refusal:
            taken: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            waiting = _Waiting(session, attempt, taken, refusal)
        else:
            session.waiting_since = None
            return found
        if session.waiting_since is None:
            session.waiting_since = self._clock()
        self._queue.append(waiting)
        self._queue.sort(key=_since)
        self.serve()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await taken
        except TimeoutError:
            raise waiting.refusal from None
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self.serve()  # whom it held up

    def serve(self) -> None:
        """There may be room: let those who wait take it.  One whom its tenant's quota holds up is
        in nobody else's way."""
        self._first = None
        for waiting in list(self._queue):
            if waiting.taken.done():
                continue
            try:
                taken = waiting.attempt()
            except NoRoomError as refusal:
                waiting.refusal = refusal
                if not isinstance(refusal, QuotaInUseError):
                    self._first = waiting.session
                    return
                continue
            except TandemError as error:
                waiting.taken.set_exception(error)
            else:
                waiting.taken.set_result(taken)
                waiting.session.waiting_since = None
            self._queue.remove(waiting)


def _since(waiting: _Waiting) -> float:
    since = waiting.session.waiting_since
    return math.inf if since is None else since
