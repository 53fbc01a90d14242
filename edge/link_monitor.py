"""What the edge has measured of the link, the cloud and itself, kept across answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from shared.clock import Clock

SAMPLES = 9  # the median of so many rides out four that went astray
LINK_MEMORY_SECONDS = 60.0  # a link measured longer ago may be another one
MIN_UPLOAD_BYTES = 4096  # below, an upload's time says nothing of the rate
MIN_PREFILL_TOKENS = 8
GUESS_MEMORY = 64  # questions over which an old answer's weight falls to 1/e
_MIN_UPLOAD_SECONDS = 1e-3  # what is left of an upload without its round trip is noise below this


@dataclass(frozen=True)
class Conditions:
    """Recent estimates; ``None`` where nothing is known.

    Attributes:
        rtt_seconds: from a question to its answer, less what the cloud took.
        up_bytes_per_second: rate of uploads.
        edge_token_seconds: the edge's own time for a token, exits included.
        edge_prefill_seconds: the same for a token of a prompt, taken in with many others.
        cloud_pass_seconds: the cloud's time to decide a question, were it to run all layers.
        cloud_token_seconds: the cloud's time for each token that it decodes by itself; while it has
            not, that of the fastest question, so that letting it is not ruled out untried.
        guess_agreement: share of unsure tokens that the deepest exit guessed right.
        guess_count: questions that ``guess_agreement`` rests on.
        unsure_share: share of drafted tokens that no exit was sure of.
        unsure_count: tokens that ``unsure_share`` rests on.
    """

    rtt_seconds: float | None = None
    up_bytes_per_second: float | None = None
    edge_token_seconds: float | None = None
    edge_prefill_seconds: float | None = None
    cloud_pass_seconds: float | None = None
    cloud_token_seconds: float | None = None
    guess_agreement: float | None = None
    guess_count: int = 0
    unsure_share: float | None = None
    unsure_count: int = 0


class LinkMonitor:
    """Fed by whoever sees an event; seconds are those of the events, ``clock`` dates them.

    Samples of the link are forgotten after a minute and when the link is lost; what the cloud and
    the edge were last seen to take stays.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._round_trips = _Samples(LINK_MEMORY_SECONDS)
        self._upload_rates = _Samples(LINK_MEMORY_SECONDS)
        self._cloud_passes, self._cloud_tokens = _Samples(), _Samples()
        self._edge_tokens, self._edge_prefills = _Samples(), _Samples()
        self._guesses, self._unsure = _Share(), _Share()
        self._alive = True

    @property
    def alive(self) -> bool:
        """Whether the link is not known to be lost."""
        return self._alive

    def round_trip(self, seconds: float) -> None:
        """An answer's time less what the cloud says that it took for it."""
        self._round_trips.add(self._clock(), max(0.0, seconds))

    def upload(self, size_bytes: int, seconds: float) -> None:
        """Bytes and their time from send to acknowledgement, the round trip already taken out.

        Less than ``MIN_UPLOAD_BYTES`` is left aside.  A time too short to be told from nothing
        counts as a millisecond, so that a fast link is under- and not overestimated.
        """
        if size_bytes >= MIN_UPLOAD_BYTES:
            rate = size_bytes / max(_MIN_UPLOAD_SECONDS, seconds)
            self._upload_rates.add(self._clock(), rate)

    def cloud_pass(self, seconds: float, layer_share: float = 1.0) -> None:
        """The cloud's time to decide a question through ``layer_share`` of the model's layers: 1
        for token ids, ``(layers - cut) / layers`` for hidden states."""
        assert 0.0 < layer_share <= 1.0
        self._cloud_passes.add(self._clock(), max(0.0, seconds) / layer_share)

    def cloud_token(self, seconds: float) -> None:
        """The cloud's time for a token while it decodes by itself (a burst)."""
        self._cloud_tokens.add(self._clock(), max(0.0, seconds))

    def edge_token(self, seconds: float) -> None:
        """The edge's own time for a token, exits included."""
        self._edge_tokens.add(self._clock(), max(0.0, seconds))

    def edge_prefill(self, tokens: int, seconds: float) -> None:
        """The edge's own time for a prompt of ``tokens``, the first reading of its exits included.

        Fewer than ``MIN_PREFILL_TOKENS`` say nothing of a long one.
        """
        if tokens >= MIN_PREFILL_TOKENS:
            self._edge_prefills.add(self._clock(), max(0.0, seconds) / tokens)

    def question(self, unsure: bool, agreed: bool) -> None:
        """The cloud decided a token: whether the deepest exit had guessed it.

        Tokens that an exit was sure of (``verified`` asks for them too) do not count: they would
        flatter the guesses.
        """
        if unsure:
            self._guesses.add(agreed)

    def judged(self, unsure: bool) -> None:
        """The exits looked at a token: whether none was sure of it."""
        self._unsure.add(unsure)

    def judged_all(self, unsure: Iterable[bool]) -> None:
        """As :meth:`judged`, for each of them."""
        self._unsure.add_all(unsure)

    def lost(self) -> None:
        """The link is gone, and what was known of it."""
        self._alive = False
        self._round_trips.clear()
        self._upload_rates.clear()

    def restored(self) -> None:
        """The link is back."""
        self._alive = True

    @property
    def rtt_seconds(self) -> float | None:
        """That of :meth:`conditions`, alone."""
        return self._round_trips.median(self._clock())

    def conditions(self) -> Conditions:
        """Medians of the last samples, and the weighted share of right guesses."""
        now = self._clock()
        return Conditions(
            rtt_seconds=self._round_trips.median(now),
            up_bytes_per_second=self._upload_rates.median(now),
            edge_token_seconds=self._edge_tokens.median(now),
            edge_prefill_seconds=self._edge_prefills.median(now),
            cloud_pass_seconds=self._cloud_passes.median(now),
            cloud_token_seconds=self._cloud_tokens.median(now) or self._cloud_passes.least(now),
            guess_agreement=self._guesses.value,
            guess_count=self._guesses.count,
            unsure_share=self._unsure.value,
            unsure_count=self._unsure.count,
        )


class _Share:
    """A share: the plain mean at first, then one that forgets."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self.count = 0

    def add(self, is_one: bool) -> None:
        self.add_all((is_one,))

    def add_all(self, are_ones: Iterable[bool]) -> None:
        count, value = self.count, self.value
        for is_one in are_ones:
            count += 1
            before = value or 0.0
            value = before + (is_one - before) / (count if count < GUESS_MEMORY else GUESS_MEMORY)
        self.count, self.value = count, value


class _Samples:
    """The last few values of one quantity, forgotten after ``memory_seconds``.

    A median is remembered until a value comes or goes: it is asked for more often than it changes.
    """

    __slots__ = ("_dated", "_known", "_known_median", "_memory_seconds", "_oldest")

    def __init__(self, memory_seconds: float = float("inf")) -> None:
        self._memory_seconds = memory_seconds
        self._dated: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._known = False
        self._known_median: float | None = None
        self._oldest = 0.0  # of the values that the known median is of

    def add(self, now: float, value: float) -> None:
        self._dated.append((now, value))
        self._known = False

    def clear(self) -> None:
        self._dated.clear()
        self._known = False

    def median(self, now: float) -> float | None:
        if not self._known or now - self._oldest > self._memory_seconds:
            recent = self._recent(now)
            self._known_median = median(recent) if recent else None
            # what is too old now stays so, as long as time does not go back
            self._known = len(recent) == len(self._dated)
            self._oldest = min((at for at, _ in self._dated), default=now)
        return self._known_median

    def least(self, now: float) -> float | None:
        return min(self._recent(now), default=None)

    def _recent(self, now: float) -> list[float]:
        return [value for at, value in self._dated if now - at <= self._memory_seconds]
