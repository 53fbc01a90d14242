"""``auto`` mode on the way: measure, choose anew, and go on alone while the cloud is silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.controller import Choice
from edge.link_monitor import Conditions, LinkMonitor
from edge.plan import Plan
from shared.clock import Clock
from shared.errors import BudgetExceededError, CloudInternalError, CloudUnavailableError

if TYPE_CHECKING:
    from edge.cloud_session import CloudSession
    from edge.question import Question
    from shared.messages import Decision

# the least that an answer is waited for, and how many times as long as answers take of late
LEAST_PATIENCE_SECONDS = 2.0
_PATIENCE_FACTOR = 6.0
CHOOSE_SECONDS = 0.25  # from one choice of a plan to the next
# an uplink that is slower counts as none
_LEAST_BYTES_PER_SECOND = 60_000.0
# the others say what only the user can mend: a token, a bundle, a version
_SURVIVABLE = (CloudUnavailableError, BudgetExceededError, CloudInternalError)

_LOG = logging.getLogger("tandem.edge")


class Steering:
    """One answer's hands on the wheel.

    ``choose`` gives the plan for what ``monitor`` knows, which outlives the answer.  A connection
    that is too slow is given up, and the session goes on making new ones; the first word that the
    cloud says ends the time alone.
    """

    def __init__(
        self,
        cloud: CloudSession,
        monitor: LinkMonitor,
        choose: Callable[[], Choice],
        first: Plan,
        clock: Clock,
    ) -> None:
        self._cloud, self._monitor, self._choose, self._clock = cloud, monitor, choose, clock
        self._plan, self._chosen_at = first, clock()
        self._alone = not monitor.alive  # as the answer before this one left it
        self._openings = cloud.openings

    @property
    def current(self) -> Plan:
        """The plan that was followed last."""
        return self._plan

    @property
    def alone(self) -> bool:
        """Whether to go on without asking."""
        if self._alone and self._cloud.openings > self._openings:
            self._alone = False
            self._monitor.restored()
            _LOG.info("the cloud is back")
        return self._alone

    def plan(self) -> Plan:
        """How to go on, by what is known now."""
        if self._clock() >= self._chosen_at + CHOOSE_SECONDS:
            self._chosen_at = self._clock()
            self._plan = self._choose().plan
        return self._plan

    def drafted(self, seconds: float) -> None:
        """The edge's own time for a token."""
        self._monitor.edge_token(seconds)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """The edge's own time for a prompt."""
        self._monitor.edge_prefill(tokens, seconds)

    def judged(self, *, unsure: bool) -> None:
        """The exits looked at a token."""
        self._monitor.judged(unsure)

    def settled(self, *, unsure: bool, agreed: bool) -> None:
        """The cloud judged a guess."""
        self._monitor.question(unsure, agreed)

    async def answer(self, question: Question) -> Decision | None:
        """The next answer, or ``None`` where the edge is to go on alone.

        Raises:
            TandemError: the cloud refuses the edge altogether.
        """
        try:
            async with asyncio.timeout(self._patience_seconds()):
                return await self._cloud.answer(question)
        except (TimeoutError, *_SURVIVABLE) as error:
            if question.ready:
                return question.take()
            reason = str(error) or str(self._cloud.last_error or "no answer in time")
        _LOG.info("going on without the cloud: %s", reason)
        self._alone = True
        self._openings = self._cloud.openings
        self._monitor.lost()
        self._cloud.give_up_connection()
        return None

    def _patience_seconds(self) -> float:
        return patience_seconds(self._monitor.conditions(), self._cloud.backlog_bytes)


def patience_seconds(measured: Conditions, backlog_bytes: int) -> float:
    """How long an answer is waited for behind ``backlog_bytes`` of context."""
    usual = (measured.rtt_seconds or 0.0) + (measured.cloud_pass_seconds or 0.0)
    rate = max(_LEAST_BYTES_PER_SECOND, measured.up_bytes_per_second or 0.0)
    return max(LEAST_PATIENCE_SECONDS, _PATIENCE_FACTOR * usual) + 2 * backlog_bytes / rate


class SessionObserver:
    """Tells ``monitor`` what a session sees, whose cloud runs ``layer_share`` of the layers."""

    def __init__(self, monitor: LinkMonitor, layer_share: float) -> None:
        self._monitor, self._layer_share = monitor, layer_share

    def opened(self, seconds: float) -> None:
        """Opening is a round trip and next to no work."""
        self._monitor.round_trip(seconds)

    def decided(self, seconds: float, cloud_seconds: float, *, in_burst: bool) -> None:
        """In a burst the answers follow one another at the cloud's pace."""
        if in_burst:
            self._monitor.cloud_token(cloud_seconds)
        else:
            self._monitor.round_trip(seconds - cloud_seconds)
            self._monitor.cloud_pass(cloud_seconds, self._layer_share)

    def uploaded(self, size: int, seconds: float) -> None:
        """The round trip is taken out where one is known."""
        self._monitor.upload(size, seconds - (self._monitor.conditions().rtt_seconds or 0.0))
