"""What was said so far, and how much of it the next prompt can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.chat import Message
from shared.errors import ConfigurationError

Encode = Callable[[Sequence[Message]], tuple[int, ...]]


@dataclass(frozen=True)
class Prompt:
    """Token ids of the next prompt, and how many of the oldest turns had to be left out."""

    ids: tuple[int, ...]
    forgotten: int


class Conversation:
    """Questions and their answers, oldest first, after an optional system message."""

    def __init__(self, system: str | None = None) -> None:
        self._system = (Message("system", system),) if system is not None else ()
        self._turns: list[tuple[str, str]] = []

    @property
    def turns(self) -> int:
        """Questions that are remembered."""
        return len(self._turns)

    def add(self, question: str, answer: str) -> None:
        """Remember a turn; an answer that was stopped counts as far as it went."""
        self._turns.append((question, answer))

    def forget(self, oldest: int | None = None) -> None:
        """Drop that many of the oldest turns, or all."""
        del self._turns[: self.turns if oldest is None else oldest]

    def messages(self, question: str, skip: int = 0) -> list[Message]:
        """The conversation without its ``skip`` oldest turns, and ``question`` at its end."""
        said = [
            Message(role, text)
            for turn in self._turns[skip:]
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*self._system, *said, Message("user", question)]

    def prompt(self, question: str, encode: Encode, max_positions: int, max_tokens: int) -> Prompt:
        """The prompt for ``question`` within ``max_positions`` tokens, answer included.

        While the answer has neither ``max_tokens`` nor a quarter of the positions to itself, the
        oldest turns go.  Then another quarter is made free, so that a full conversation does not
        lose a turn (and the work that was kept of it) at every question.

        Raises:
            ConfigurationError: the question does not fit even alone.
        """
        quarter = max_positions // 4
        least = min(max_tokens, quarter)
        ids, skip = encode(self.messages(question)), 0
        wanted = least if max_positions - len(ids) >= least else least + quarter
        while max_positions - len(ids) < wanted and skip < self.turns:
            skip += 1
            ids = encode(self.messages(question, skip))
        if len(ids) >= max_positions:
            raise ConfigurationError(
                f"the question has {len(ids)} tokens and this model holds {max_positions}, "
                "answer included: shorten it"
            )
        return Prompt(ids, skip)
