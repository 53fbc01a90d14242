"""An escalation as the edge sees it: what was asked, what was guessed, what was answered."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from shared.messages import Decision


@dataclass
class Question:
    """Asks for the token at ``position``, and is asked again on a new connection.

    ``guess`` is what the edge goes on from meanwhile.  After a correction, or where there is no
    guess, ``burst`` more answers follow (fewer after a stop token).  ``lookahead`` lets the
    cloud go on by itself while nobody asks.
    """

    position: int
    burst: int = 0
    guess: int | None = None
    lookahead: int = 0
    answers: deque[Decision] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    answered: int = 0
    corrected: bool = False
    asked: bool = False  # on the connection at hand
    heard_at: float = 0.0  # when it was asked, or answered last
    first_seconds: float = 0.0  # from asking to the first answer

    @property
    def next_position(self) -> int:
        """The first position without an answer."""
        return self.position + self.answered

    @property
    def expected(self) -> int:
        """How many answers are still to come."""
        agreed = self.answered and self.guess is not None and not self.corrected
        return 0 if agreed else self.burst + 1 - self.answered

    @property
    def to_ask(self) -> bool:
        """Whether it is yet to be asked on this connection."""
        return not self.asked and self.expected > 0

    @property
    def ready(self) -> bool:
        """Whether an answer waits to be read."""
        return bool(self.answers)

    @property
    def unfinished(self) -> bool:
        """Whether there is an answer to read, now or later."""
        return self.ready or self.expected > 0

    def answer(self, decision: Decision) -> None:
        """Take the decision at :attr:`next_position`."""
        if not self.answered:
            self.corrected = self.guess is not None and self.guess != decision.token_id
        self.answered += 1
        self.answers.append(decision)
        self.arrived.set()

    def take(self) -> Decision:
        """The oldest answer that was not read; at once, so that no cancellation loses it."""
        decision = self.answers.popleft()
        if not self.answers:
            self.arrived.clear()
        return decision
