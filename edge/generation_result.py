"""What a generation gave, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.generation import GeneratedToken, GenerationStatistics, Mode
from edge.plan import Plan

if TYPE_CHECKING:
    from edge.cloud_session import CloudSession
    from edge.generation_options import GenerationOptions
    from shared.messages import Closed


@dataclass(frozen=True)
class GenerationResult:
    """What a generation gave and cost; seconds count from the call, model loading left out.
    ``plan`` is the one at the end, where ``auto`` mode changed it.

    ``cloud_layer_positions`` is the cloud's own count of positions computed, summed over layers,
    and ``cloud_compute_seconds`` what its model took for them, waited for or not; ``None`` where
    the session broke off or was resumed elsewhere, so that nobody knows.  ``cached_tokens`` of the
    prompt were kept from an earlier answer, on the edge (in cloud-only mode: in the cloud).
    """

    text: str
    tokens: tuple[GeneratedToken, ...]
    prompt_tokens: int
    options: GenerationOptions
    plan: Plan
    seconds: float
    first_token_seconds: float
    statistics: GenerationStatistics
    uploaded_bytes: int
    downloaded_bytes: int
    cloud_layer_positions: int | None
    cloud_compute_seconds: float | None
    cached_tokens: int = 0

    def as_record(self) -> dict[str, object]:
        """The object that ``tandem generate --json`` prints."""
        escalates = self.options.mode in (Mode.COLLABORATIVE, Mode.AUTO)
        return {
            "text": self.text,
            "token_ids": [token.token_id for token in self.tokens],
            "origins": [token.origin for token in self.tokens],
            "prompt_tokens": self.prompt_tokens,
            "mode": self.options.mode.value,
            "plan": str(self.plan) if escalates else None,
            "schedule": self.plan.schedule.value if escalates else None,
            "threshold": self.plan.threshold,
            "alone": sum(token.alone for token in self.tokens),
            "seconds": round(self.seconds, 6),
            "first_token_seconds": round(self.first_token_seconds, 6),
            "stall_seconds": round(self.statistics.stall_seconds, 6),
            "escalations": self.statistics.escalations,
            "rollbacks": self.statistics.rollbacks,
            "discarded": self.statistics.discarded,
            "uploaded_bytes": self.uploaded_bytes,
            "downloaded_bytes": self.downloaded_bytes,
        }


def layer_positions(cloud: CloudSession | None) -> int | None:
    """For :attr:`GenerationResult.cloud_layer_positions`."""
    if cloud is None:
        return 0
    account = _account(cloud)
    return account.layer_positions if account else None


def compute_seconds(cloud: CloudSession | None) -> float | None:
    """For :attr:`GenerationResult.cloud_compute_seconds`."""
    if cloud is None:
        return 0.0
    account = _account(cloud)
    return account.compute_microseconds / 1e6 if account else None


def _account(cloud: CloudSession) -> Closed | None:
    """The cloud's own account of the session, where it covers all of it."""
    return None if cloud.reconnects else cloud.closed
