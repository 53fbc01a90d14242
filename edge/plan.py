"""How an answer is made: whom to trust, how far to draft ahead, what the cloud adds by itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge.context_source import ContextCodec
from edge.exit_policy import DEFAULT_THRESHOLD, ExitPolicy
from shared.errors import ConfigurationError
from shared.messages import MAX_LOOKAHEAD

DEFAULT_WINDOW = 8
MAX_WINDOW = 64
BURST_UNLIMITED = 1 << 20
MOST_LOOKAHEAD = 16  # more is decoded only where it is asked for by number


class Schedule(Enum):
    """How escalations are waited for."""

    BLOCKING = "blocking"
    OPTIMISTIC = "optimistic"


@dataclass(frozen=True)
class Plan:
    """What decides an answer's text and cost, besides prompt, model and sampling.

    Attributes:
        threshold: confidence from which an exit's token is accepted.
        window: unanswered questions that the edge drafts past.  0 waits at each (CE-CoLLM's
            blocking schedule); the text is the same whatever it is.
        burst: tokens that the cloud adds after each correction, which is a decision that differs
            from the best guess of the deepest exit.  Needs token ids as context.
        codec: how context travels.
        verified: every accepted token is checked by the cloud as well, so that the text is the
            full model's (over hidden states: that of its deep layers over the edge's own).
        least_chance: below this probability that every guess in flight is right the edge waits;
            ``None`` weighs what there is to win (:mod:`edge.drafting`).
        lookahead: tokens that the cloud may decode ahead of the edge while nobody asks; they answer
            questions before they are asked, and change no text.  Needs token ids as context, and
            goes with a window and without burst; ``None`` goes by the round trip
            (:mod:`edge.drafting`).
        plain: the cloud decides every token from the first and streams them, as plain serving does;
            the edge drafts nothing, and is there where the cloud falls silent.  An unlimited burst
            without a guess before it.
    """

    threshold: float = DEFAULT_THRESHOLD
    window: int = DEFAULT_WINDOW
    burst: int = 0
    codec: ContextCodec = ContextCodec.FP16
    verified: bool = False
    least_chance: float | None = None
    lookahead: int | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        ExitPolicy(self.threshold)
        if not 0 <= self.window <= MAX_WINDOW:
            raise ConfigurationError(f"window {self.window} is not within [0, {MAX_WINDOW}]")
        if not 0 <= self.burst <= BURST_UNLIMITED:
            raise ConfigurationError(f"burst {self.burst} is not within [0, {BURST_UNLIMITED}]")
        if self.burst and self.codec is not ContextCodec.TOKENS:
            raise ConfigurationError(
                "a burst needs token ids as context, or the cloud cannot go on by itself: use "
                "--context tokens"
            )
        assert not self.plain or self.burst == BURST_UNLIMITED
        if self.lookahead is not None and not 0 <= self.lookahead <= MAX_LOOKAHEAD:
            raise ConfigurationError(
                f"lookahead {self.lookahead} is not within [0, {MAX_LOOKAHEAD}]"
            )
        if self.lookahead:
            self._check_lookahead()

    def _check_lookahead(self) -> None:
        if self.codec is not ContextCodec.TOKENS:
            raise ConfigurationError(
                "hidden states cannot be decoded from, so nothing can be decoded ahead: use "
                "--context tokens, or drop --lookahead"
            )
        if not self.window:
            raise ConfigurationError(
                "blocking is the paper's schedule, in which the cloud does nothing unasked: drop "
                "--lookahead, or --schedule blocking"
            )
        if self.burst:
            raise ConfigurationError(
                "with a burst the cloud goes on by itself already: drop --lookahead, or --burst"
            )

    @property
    def may_look_ahead(self) -> bool:
        """Whether the cloud can go on by itself without a change of the text."""
        return self.codec is ContextCodec.TOKENS and self.window > 0 and not self.burst

    @property
    def schedule(self) -> Schedule:
        """What the window amounts to."""
        return Schedule.OPTIMISTIC if self.window else Schedule.BLOCKING

    @property
    def kind(self) -> str:
        """``blocking`` or ``optimistic``, or what it is beyond that: ``verified``, ``burst``,
        ``ahead``, ``verified burst``, ``verified ahead``, ``plain``."""
        if self.plain:
            return "plain"
        words = ["verified"] * self.verified + ["burst"] * bool(self.burst)
        words += ["ahead"] * bool(self.lookahead)
        return " ".join(words) or self.schedule.value

    def __str__(self) -> str:
        if self.plain:
            return f"plain, {self.codec.value}"
        window = f" window {self.window}" if self.window else ""
        return f"{self.kind}@{self.threshold:g}{window}, {self.codec.value}"
