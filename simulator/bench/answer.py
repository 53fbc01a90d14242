"""One measured answer, and how its time is split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from pydantic import ConfigDict

from edge.generation import Mode
from edge.generation_result import GenerationResult
from simulator.bench.stored import read_stored


@dataclass(frozen=True)
class TimeSplit:
    """Seconds of one answer, or of several; ``edge + cloud + link`` is the total.

    Attributes:
        edge: everything on the device: its model, sampling, encoding, this program.
        cloud: of the waits for decisions, what the cloud says that they took there: from the
            question's arrival to the answer's departure, the queue before its model included.
        link: the rest of the waits: round trips, transfer, connection set-up.
    """

    edge: float
    cloud: float
    link: float

    @classmethod
    def of(cls, total: float, stall: float, cloud: float) -> Self:
        """From the total, the time spent waiting and what the cloud says of it."""
        stall = min(stall, total)
        cloud = min(cloud, stall)
        return cls(total - stall, cloud, stall - cloud)

    @property
    def stall(self) -> float:
        """The edge waiting: cloud and link."""
        return self.cloud + self.link

    @property
    def total(self) -> float:
        """All of it."""
        return self.edge + self.cloud + self.link


@dataclass(frozen=True)
class Answer:
    """What a contender said to a prompt, and what it cost; times in seconds.

    Attributes:
        stall_seconds, cloud_seconds: waited for the cloud, and what the cloud says of it.
        requests: tokens that the cloud decided.
        cloud_layer_positions: positions the cloud computed, summed over layers; ``None`` unknown.
        cloud_busy_seconds: time of the cloud's model, waited for or not; ``None`` unknown.
        origins: tokens by where they came from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    token_ids: tuple[int, ...]
    text: str
    seconds: float
    first_token_seconds: float
    stall_seconds: float = 0.0
    cloud_seconds: float = 0.0
    requests: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    cloud_layer_positions: int | None = 0
    cloud_busy_seconds: float | None = 0.0
    origins: Mapping[str, int] = field(default_factory=dict)

    @property
    def split(self) -> TimeSplit:
        """Where the time went."""
        return TimeSplit.of(self.seconds, self.stall_seconds, self.cloud_seconds)

    def as_record(self) -> dict[str, Any]:
        """Plain data for the journal."""
        rounded = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in vars(self).items()
        }
        return rounded | {"token_ids": list(self.token_ids), "origins": dict(self.origins)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_record`; a :class:`~shared.errors.ConfigurationError` where
        another version wrote it."""
        return read_stored(cls, record, "a measured answer")

    @classmethod
    def of_result(cls, result: GenerationResult) -> Self:
        """From a generation of Tandem's."""
        statistics, tokens = result.statistics, result.tokens
        cloud_only = result.options.mode is Mode.CLOUD_ONLY
        return cls(
            token_ids=tuple(token.token_id for token in tokens),
            text=result.text,
            seconds=result.seconds,
            first_token_seconds=result.first_token_seconds,
            stall_seconds=statistics.stall_seconds,
            cloud_seconds=statistics.cloud_seconds,
            # cloud-only asks once, but the cloud decides every token
            requests=len(tokens) if cloud_only else statistics.escalations,
            uploaded_bytes=result.uploaded_bytes,
            downloaded_bytes=result.downloaded_bytes,
            cloud_layer_positions=result.cloud_layer_positions,
            cloud_busy_seconds=result.cloud_compute_seconds,
            origins=dict(Counter(token.origin for token in tokens)),
        )
