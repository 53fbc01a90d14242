"""A question on its way, and what it takes to go back to it."""

from __future__ import annotations

from simulator.fleet.cloud_side import Question


class Asked:
    """A token that the edge drafted and asked for.

    Attributes:
        index: its position in the answer.
        begin: where the stretch of drafting began whose last token it is.
        start: when that did; ``frontier`` when it ended.
        at: when the question was ready to be sent.
        confidence: of the exit that guessed it.
        size: bytes of context that go before the question.
        wrong: accepted tokens up to it that are not the full model's.
        busy: the way up as it was before (:class:`simulator.fleet.ways.PlainWay`); ``last`` too.
    """

    __slots__ = (
        "at", "begin", "busy", "confidence", "frontier", "index", "last", "question", "size",
        "start", "wrong",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        begin: int,
        start: float,
        frontier: float,
        at: float,
        confidence: float,
        question: Question,
        size: float,
        wrong: int,
    ) -> None:
        self.index, self.begin, self.start, self.frontier = index, begin, start, frontier
        self.at, self.confidence, self.question = at, confidence, question
        self.size, self.wrong = size, wrong
        self.busy = self.last = 0.0
