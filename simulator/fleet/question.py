"""A question: what the cloud is asked in one message, and what it takes to go back to it."""

from __future__ import annotations


class Question:
    """A token that the edge asks for; positions are of the text, prompt included.

    For the cloud:

    Attributes:
        epoch: corrections that the edge had heard of when it asked.
        agreed: whether its guess is the full model's token; false without a guess.
        burst: tokens that follow a correction.
        lookahead: positions beyond the edge's text that may be decided ahead.
        line: counts the times that the edge went on from another token than the cloud's; from
            ``cut`` on, what the cloud said ahead is then about another text.
        messages: that it comes in: itself, and the context since the one before.
        arrival: when it is at the cloud.

    For the edge:

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
        "agreed", "arrival", "at", "begin", "burst", "busy", "confidence", "cut", "epoch",
        "frontier", "guessed", "index", "last", "line", "lookahead", "messages", "position",
        "size", "start", "wrong",
    )  # fmt: skip

    arrival: float
    busy: float
    last: float

    # Millions of these are made: by position, since keywords would cost as much again.
    def __init__(
        self,
        position: int,
        epoch: int,
        agreed: bool,
        guessed: bool = True,
        burst: int = 0,
        lookahead: int = 0,
        line: int = 0,
        cut: int = 0,
        messages: int = 2,
        index: int = 0,
        begin: int = 0,
        start: float = 0.0,
        frontier: float = 0.0,
        at: float = 0.0,
        confidence: float = 1.0,
        size: float = 0.0,
        wrong: int = 0,
    ) -> None:
        self.position = position
        self.epoch = epoch
        self.agreed = agreed
        self.guessed = guessed
        self.burst = burst
        self.lookahead = lookahead
        self.line = line
        self.cut = cut
        self.messages = messages
        self.index = index
        self.begin = begin
        self.start = start
        self.frontier = frontier
        self.at = at
        self.confidence = confidence
        self.size = size
        self.wrong = wrong
