"""What the cloud has said ahead of the text: answers to questions that need not be asked."""

from __future__ import annotations

from collections.abc import Sequence

from shared.messages import MAX_LOOKAHEAD, Ahead, Decision


class Lookahead:
    """A run of the cloud's decisions, each on the text and the decisions before it.

    The one at a position is the answer there as long as the text up to it is what the cloud took it
    for.  ``text`` is the edge's, drafts included, and may change behind what is certain.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text
        self._began = 0  # where the run did; what is before _start has been used
        self._start = 0
        self._said: list[Decision] = []

    def at(self, position: int) -> Decision | None:
        """The full model's token at ``position``, where it is known."""
        known = self._start <= position < self._end and position <= len(self._text)
        if not known or not self._holds_to(position):
            return None
        # the text before it is the run's, and so as certain as where the run began
        del self._said[: position - self._start]
        self._start = position
        return self._said[0]

    def answered(self, decision: Decision) -> None:
        """The cloud decided what it was asked for; from there it goes on."""
        known = self.at(decision.position)
        if known is None or known.token_id != decision.token_id:
            self._begin(decision)

    def add(self, ahead: Ahead) -> None:
        """The cloud went on; what does not join on to what is known is left aside."""
        decision, joins = ahead.decision, self._said and self._began <= ahead.base
        if decision.position > len(self._text) + MAX_LOOKAHEAD:
            return  # further than anybody asks for
        if joins and decision.position == self._end and self._holds_to(min(ahead.base, self._end)):
            self._said.append(decision)
        elif decision.position == ahead.base:
            self._begin(decision)

    def truncated(self, position: int) -> None:
        """The text before ``position`` alone stays."""
        if position < self._start:
            self._said.clear()

    def _begin(self, decision: Decision) -> None:
        self._began = self._start = decision.position
        self._said = [decision]

    @property
    def _end(self) -> int:
        return self._start + len(self._said)

    def _holds_to(self, position: int) -> bool:
        """Whether the text before ``position`` is the run's."""
        text = self._text[self._start : position]
        return all(
            decision.token_id == token_id
            for decision, token_id in zip(self._said, text, strict=False)
        )
