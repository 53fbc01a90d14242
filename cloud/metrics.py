"""What Prometheus can ask a cloud (docs/cloud.md has the table).

One :class:`CloudMetrics` belongs to one cloud and is handed to those who count.  Nothing is
registered globally, so several clouds of one process do not mix.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# Tenants come from the token file or from certificates; beyond so many, they share one label.
MAX_TENANT_LABELS = 256
OTHER_TENANTS = "_other"
UNKNOWN_TENANT = "_unknown"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_SESSIONS = (1, 2, 4, 8, 16, 32, 64, 128)


class CloudMetrics:
    """All metrics of one cloud; what has a ``tenant`` label is reached through :meth:`tenant`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._tenants: dict[str, TenantMetrics] = {}

        self.serving = self._gauge("serving", "1 while new sessions are taken, 0 while draining.")
        self.budget_bytes = self._gauge("budget_bytes", "Bytes that all sessions may hold.")

        self.passes = self._counter("passes", "Forward passes.")
        self.pass_seconds = self._histogram("pass_seconds", "Time of a pass.", _SECONDS)
        self.pass_positions = self._histogram(
            "pass_positions", "New positions in a pass.", _POSITIONS
        )
        self.pass_sessions = self._histogram("pass_sessions", "Sessions in a pass.", _SESSIONS)
        self.queue_seconds = self._histogram(
            "queue_seconds", "Time that work waited for its pass.", _SECONDS, "work"
        )
        self.decision_seconds = self._histogram(
            "decision_seconds", "Time from a question's arrival to its answer.", _SECONDS
        )

        self.evictions = self._counter("evictions", "Taken from sessions for room.", "what")
        self.expirations = self._counter("expirations", "Sessions that were idle for too long.")
        self.errors = self._counter("errors", "Streams that ended with an error.", "code")

        self._sessions = self._gauge("sessions", "Sessions held, idle ones included.", "tenant")
        self._streams = self._gauge("streams", "Sessions that have a stream.", "tenant")
        self._held_bytes = self._gauge(
            "held_bytes", "Bytes of context, decisions and KV caches.", "tenant"
        )
        self._opened = self._counter("streams_opened", "Streams opened, resumed too.", "tenant")
        self._received = self._counter("received_bytes", "Message bytes from edges.", "tenant")
        self._sent = self._counter("sent_bytes", "Message bytes to edges.", "tenant")
        self._escalations = self._counter("escalations", "Positions asked for.", "tenant")
        self._corrections = self._counter(
            "corrections", "Answers other than the edge's guess.", "tenant"
        )
        self._burst_tokens = self._counter("burst_tokens", "Tokens that bursts added.", "tenant")
        self._lookahead_tokens = self._counter(
            "lookahead_tokens", "Tokens decoded ahead of the edges' questions.", "tenant"
        )
        self._compute = self._counter("compute_seconds", "Share of the passes' time.", "tenant")
        self._over_quota = self._counter("over_quota", "Refusals.", "tenant", "quota")

    def tenant(self, name: str) -> TenantMetrics:
        """The metrics of one tenant."""
        if name not in self._tenants and len(self._tenants) >= MAX_TENANT_LABELS:
            name = OTHER_TENANTS
        metrics = self._tenants.get(name)
        if metrics is None:
            metrics = self._tenants[name] = TenantMetrics(self, name)
        return metrics

    def pass_ended(self, waits: Sequence[tuple[bool, float]], rows: int, seconds: float) -> None:
        """A pass of ``rows`` new positions took ``seconds``; its works were urgent (or not) and had
        waited for so many seconds."""
        self.passes.inc()
        self.pass_seconds.observe(seconds)
        self.pass_positions.observe(rows)
        self.pass_sessions.observe(len(waits))
        for urgent, waited in waits:
            self.queue_seconds.labels("question" if urgent else "catch-up").observe(waited)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tandem_cloud_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tandem_cloud_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            f"tandem_cloud_{name}", text, labels, registry=self.registry, buckets=buckets
        )


class TenantMetrics:
    """One tenant's share of the metrics that have a ``tenant`` label."""

    def __init__(self, metrics: CloudMetrics, tenant: str) -> None:
        self.sessions = metrics._sessions.labels(tenant)
        self.streams = metrics._streams.labels(tenant)
        self.held_bytes = metrics._held_bytes.labels(tenant)
        self.opened = metrics._opened.labels(tenant)
        self.received_bytes = metrics._received.labels(tenant)
        self.sent_bytes = metrics._sent.labels(tenant)
        self.escalations = metrics._escalations.labels(tenant)
        self.corrections = metrics._corrections.labels(tenant)
        self.burst_tokens = metrics._burst_tokens.labels(tenant)
        self.lookahead_tokens = metrics._lookahead_tokens.labels(tenant)
        self.compute_seconds = metrics._compute.labels(tenant)
        self.decision_seconds = metrics.decision_seconds
        self._over_quota, self._tenant = metrics._over_quota, tenant

    def over_quota(self, quota: str) -> None:
        """A request was refused for ``quota``: sessions, bytes or escalations."""
        self._over_quota.labels(self._tenant, quota).inc()
