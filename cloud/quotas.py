"""What each tenant may take of a cloud: sessions, bytes, escalations and rows a second.

The file (TOML, or JSON of the same shape) has defaults and tenants that differ from them::

    [default]
    sessions = 8
    budget_mb = 512
    escalations_per_second = 50
    rows_per_second = 20000

    [tenants.alice]
    sessions = 32
    budget_mb = "unlimited"

The context store keeps sessions and bytes within their quota; this module counts escalations and
rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cloud.metrics import CloudMetrics, TenantMetrics
from cloud.watched_file import WatchedFile
from shared.clock import Clock, monotonic
from shared.config_file import first_problem, read_table
from shared.errors import BudgetExceededError, ConfigurationError

UNLIMITED = "unlimited"
# far more than answers need: it is for who sends context and asks nothing
ROWS_PER_ESCALATION = 256


class Quota(BaseModel):
    """One tenant's; ``None`` (in a file the word ``unlimited``) is no limit but the cloud's own.

    Attributes:
        sessions: held at most, idle ones included (those give way to new ones).
        budget_mb: MiB of context, decisions and KV caches, idle ones included.
        escalations_per_second: questions in the long run; the tokens of a burst count as well.
        escalation_burst: questions at once after a pause.  A session may have as many in flight as
            the cloud gives credits.
        rows_per_second: new positions of context in the long run; what comes faster waits.  Not
            set, it is 256 times ``escalations_per_second``.
        row_burst: new positions at once after a pause.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sessions: int | None = Field(None, ge=1)
    budget_mb: float | None = Field(None, gt=0)
    escalations_per_second: float | None = Field(None, gt=0)
    escalation_burst: int = Field(64, ge=1)
    rows_per_second: Annotated[float, Field(gt=0)] | Literal["unlimited"] | None = None
    row_burst: int = Field(16384, ge=1)

    @field_validator("sessions", "budget_mb", "escalations_per_second", mode="before")
    @classmethod
    def _take_unlimited(cls, value: Any) -> Any:
        return None if value == UNLIMITED else value

    @property
    def budget_bytes(self) -> int | None:
        """``budget_mb`` in bytes."""
        return None if self.budget_mb is None else int(self.budget_mb * 2**20)

    @property
    def row_rate(self) -> float | None:
        """Rows a second that hold."""
        if self.rows_per_second == "unlimited":
            return None
        if self.rows_per_second is None and self.escalations_per_second is not None:
            return ROWS_PER_ESCALATION * self.escalations_per_second
        return self.rows_per_second


NO_QUOTA = Quota()


class TenantQuotas(Protocol):
    """Knows every tenant's quota, which may change while the cloud runs."""

    def of(self, tenant: str) -> Quota:
        """What ``tenant`` may take now."""
        ...


@dataclass(frozen=True)
class Quotas:
    """Every tenant's."""

    default: Quota = NO_QUOTA
    tenants: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, tenant: str) -> Quota:
        """What ``tenant`` may take."""
        return self.tenants.get(tenant, self.default)


class _QuotaFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    default: Quota = NO_QUOTA
    tenants: dict[str, Quota] = {}


def read_quotas(path: Path) -> Quotas:
    """The quotas in ``path``; raise :class:`ConfigurationError` that names a bad key."""
    try:
        file = _QuotaFile.model_validate(read_table(path))
    except ValidationError as error:
        key, problem = first_problem(error)
        raise ConfigurationError(f"{path}: {key}: {problem}") from None
    tenants = {
        tenant: file.default.model_copy(update=own.model_dump(exclude_unset=True))
        for tenant, own in file.tenants.items()
    }
    return Quotas(file.default, tenants)


class QuotaFile:
    """The quotas of a file, read again when it changes and somebody looks."""

    def __init__(self, path: Path, *, clock: Clock = monotonic) -> None:
        self._file = WatchedFile(path, read_quotas, "quota file", clock=clock)
        self.look, self.reload = self._file.look, self._file.reload

    @property
    def quotas(self) -> Quotas:
        """As they were read last."""
        return self._file.content

    def of(self, tenant: str) -> Quota:
        """What ``tenant`` may take."""
        return self._file.content.of(tenant)


class _Bucket:
    """A token bucket; it may be in debt."""

    def __init__(self, left: float, clock: Clock) -> None:
        self.left, self._clock, self._filled = left, clock, clock()

    def fill(self, most: float, per_second: float | None) -> None:
        """Add what time has brought (without a limit it is full when there is one)."""
        now = self._clock()
        passed = max(0.0, now - self._filled)  # a clock may be set back
        self.left = most if per_second is None else min(most, self.left + passed * per_second)
        self._filled = now


class TenantRate:
    """A tenant's escalations and rows of context: token buckets that its sessions share.

    Bursts are paid for as they run, if need be in advance of what the bucket holds; the next
    question then waits for the debt to be paid.  So are the rows of a message.
    """

    def __init__(
        self, tenant: str, quotas: TenantQuotas, usage: TenantMetrics, clock: Clock
    ) -> None:
        self._tenant, self._quotas, self._usage = tenant, quotas, usage
        quota = quotas.of(tenant)
        self._asks = _Bucket(quota.escalation_burst, clock)
        self._rows = _Bucket(quota.row_burst, clock)

    def ask(self) -> None:
        """Count a question, or raise :class:`BudgetExceededError` without counting it."""
        per_second = self._fill()
        if per_second is None:
            return
        if self._asks.left < 1:
            self._usage.over_quota("escalations")
            seconds = (1 - self._asks.left) / per_second
            raise BudgetExceededError(
                f"tenant {self._tenant} may ask {per_second:g} times a second: go on in "
                f"{seconds:.1f} s, ask less often (a lower threshold) or ask for a larger quota"
            )
        self._asks.left -= 1

    @property
    def has_left(self) -> bool:
        """Whether a question would be taken now; what nobody asked for needs that."""
        return self._fill() is None or self._asks.left >= 1

    def add_burst_token(self) -> None:
        """Count a token that the cloud decodes by itself."""
        if self._fill() is not None:
            self._asks.left -= 1

    def seconds_to_rows(self) -> float:
        """How long to wait until new context is taken; 0: it is taken now."""
        per_second = self._fill_rows()
        return (
            0.0 if per_second is None or self._rows.left > 0 else (1 - self._rows.left) / per_second
        )

    def add_rows(self, count: int) -> None:
        """Count rows that are taken."""
        if self._fill_rows() is not None:
            self._rows.left -= count

    def _fill(self) -> float | None:
        """Fill the bucket of escalations; return the rate that holds now."""
        quota = self._quotas.of(self._tenant)
        self._asks.fill(quota.escalation_burst, quota.escalations_per_second)
        return quota.escalations_per_second

    def _fill_rows(self) -> float | None:
        quota = self._quotas.of(self._tenant)
        self._rows.fill(quota.row_burst, quota.row_rate)
        return quota.row_rate


class TenantRates:
    """The rate of every tenant seen so far."""

    def __init__(
        self, quotas: TenantQuotas, metrics: CloudMetrics, *, clock: Clock = monotonic
    ) -> None:
        self._quotas, self._metrics, self._clock = quotas, metrics, clock
        self._rates: dict[str, TenantRate] = {}

    def of(self, tenant: str) -> TenantRate:
        """The one that all sessions of ``tenant`` count in."""
        rate = self._rates.get(tenant)
        if rate is None:
            usage = self._metrics.tenant(tenant)
            rate = TenantRate(tenant, self._quotas, usage, self._clock)
            self._rates[tenant] = rate
        return rate
