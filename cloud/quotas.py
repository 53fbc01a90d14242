"""What each tenant may take of a cloud: sessions, bytes and escalations a second.

The file (TOML, or JSON of the same shape) has defaults and tenants that differ from them::

    [default]
    sessions = 8
    budget_mb = 512
    escalations_per_second = 50

    [tenants.alice]
    sessions = 32

The context store keeps sessions and bytes within their quota; this module counts escalations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloud.config_file import first_problem, read_table
from cloud.metrics import CloudMetrics, TenantMetrics
from shared.clock import Clock, monotonic
from shared.errors import BudgetExceededError, ConfigurationError


class Quota(BaseModel):
    """One tenant's; ``None`` is no limit but the cloud's own.

    Attributes:
        sessions: held at most, idle ones included (those give way to new ones).
        budget_mb: MiB of context and KV caches, idle ones included.
        escalations_per_second: questions in the long run; the tokens of a burst count as well.
        escalation_burst: questions at once after a pause.  An edge keeps up to 64 in flight.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sessions: int | None = Field(None, ge=1)
    budget_mb: float | None = Field(None, gt=0)
    escalations_per_second: float | None = Field(None, gt=0)
    escalation_burst: int = Field(64, ge=1)

    @property
    def budget_bytes(self) -> int | None:
        """``budget_mb`` in bytes."""
        return None if self.budget_mb is None else int(self.budget_mb * 2**20)


NO_QUOTA = Quota()


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


class EscalationRate:
    """A tenant's escalations: a token bucket that its sessions share.

    Bursts are paid for as they run, if need be in advance of what the bucket holds; the next
    question then waits for the debt to be paid.
    """

    def __init__(self, tenant: str, quota: Quota, usage: TenantMetrics, clock: Clock) -> None:
        self._tenant, self._usage, self._clock = tenant, usage, clock
        self._per_second, self._most = quota.escalations_per_second, float(quota.escalation_burst)
        self._left, self._filled = self._most, clock()

    def ask(self) -> None:
        """Count a question, or raise :class:`BudgetExceededError` without counting it."""
        if self._per_second is None:
            return
        self._fill(self._per_second)
        if self._left < 1:
            self._usage.over_quota("escalations")
            seconds = (1 - self._left) / self._per_second
            raise BudgetExceededError(
                f"tenant {self._tenant} may ask {self._per_second:g} times a second: go on in "
                f"{seconds:.1f} s, ask less often (a lower threshold) or ask for a larger quota"
            )
        self._left -= 1

    def add_burst_token(self) -> None:
        """Count a token that the cloud decodes by itself."""
        if self._per_second is not None:
            self._fill(self._per_second)
            self._left -= 1

    def _fill(self, per_second: float) -> None:
        now = self._clock()
        passed = max(0.0, now - self._filled)  # a clock may be set back
        self._left = min(self._most, self._left + passed * per_second)
        self._filled = now


class EscalationRates:
    """The rate of every tenant seen so far."""

    def __init__(self, quotas: Quotas, metrics: CloudMetrics, *, clock: Clock = monotonic) -> None:
        self._quotas, self._metrics, self._clock = quotas, metrics, clock
        self._rates: dict[str, EscalationRate] = {}

    def of(self, tenant: str) -> EscalationRate:
        """The one that all sessions of ``tenant`` count in."""
        rate = self._rates.get(tenant)
        if rate is None:
            usage = self._metrics.tenant(tenant)
            rate = EscalationRate(tenant, self._quotas.of(tenant), usage, self._clock)
            self._rates[tenant] = rate
        return rate
