"""What Prometheus can ask a daemon (docs/edge.md has the table).

Answers are counted as they end; what is true at the moment is looked up when somebody asks.
Nothing is registered globally, so several daemons of one process do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.generation import Mode
from edge.service import AnswerRecord, EdgeService, ServiceStatus

_PREFIX = "tandem_edge_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
# whoever asks is named by our own shells; a client shall not make labels
_SOURCES = ("api", "page", "chat")


class EdgeMetrics:
    """All metrics of one daemon: give :meth:`answered` to :meth:`EdgeService.observe`."""

    def __init__(self, service: EdgeService) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(StatusCollector(service.status))
        self._answers = self._counter("answers", "Answers that have ended.", "outcome", "source")
        self._tokens = self._counter("tokens", "Tokens of answers.", "origin")
        self._alone = self._counter(
            "alone_tokens", "Tokens that the cloud would have been asked for, had it been there."
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._first = self._histogram(
            "first_token_seconds", "From an answer's start to its first token.", _SECONDS
        )
        self._each = self._histogram(
            "token_seconds", "Time per further token, one value an answer.", _TOKEN_SECONDS
        )
        self._whole = self._histogram("answer_seconds", "Time of an answer.", _SECONDS)
        self._escalations = self._counter("escalations", "Positions that the cloud was asked for.")
        self._rollbacks = self._counter("rollbacks", "Times that drafted tokens were taken back.")
        self._discarded = self._counter("discarded_tokens", "Drafted tokens that were taken back.")
        self._uploaded = self._counter("uploaded_bytes", "Message bytes to the cloud.")
        self._downloaded = self._counter("downloaded_bytes", "Message bytes from the cloud.")

    def answered(self, record: AnswerRecord) -> None:
        """Count an answer that has ended."""
        source = record.request.source
        self._answers.labels(record.outcome.value, source if source in _SOURCES else "other").inc()
        result = record.result
        if result is None:
            return
        for token in result.tokens:
            self._tokens.labels(token.origin).inc()
        self._alone.inc(sum(token.alone for token in result.tokens))
        self._prompt_tokens.inc(result.prompt_tokens)
        if result.tokens:
            self._first.observe(result.first_token_seconds)
            self._whole.observe(result.seconds)
        if len(result.tokens) > 1:
            further = result.seconds - result.first_token_seconds
            self._each.observe(further / (len(result.tokens) - 1))
        self._escalations.inc(result.statistics.escalations)
        self._rollbacks.inc(result.statistics.rollbacks)
        self._discarded.inc(result.statistics.discarded)
        self._uploaded.inc(result.uploaded_bytes)
        self._downloaded.inc(result.downloaded_bytes)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(_PREFIX + name, text, registry=self.registry, buckets=buckets)


class StatusCollector(Collector):
    """What is true at the moment; what is not known has no sample."""

    def __init__(self, status: Callable[[], ServiceStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One gauge after the other."""
        status = self._status()
        yield InfoMetricFamily(
            f"{_PREFIX}build",
            "What answers.",
            {"version": version("tandem"), "model": status.model},
        )
        yield _gauge("serving", "1 while answers are begun, 0 while draining.", not status.draining)
        yield _gauge("active_answers", "Answers that are being made.", status.active)
        yield _gauge("waiting_answers", "Answers that wait for their turn.", status.waiting)
        yield _gauge("uptime_seconds", "Time since the start.", status.uptime_seconds)
        mode = GaugeMetricFamily(f"{_PREFIX}mode", "1 for the mode in use.", labels=["mode"])
        for one in Mode:
            mode.add_metric([one.value], float(one is status.controls.mode))
        yield mode
        known = {"up": 1.0, "lost": 0.0}.get(status.link)
        yield _gauge("link_up", "Whether the cloud is there; nothing without one.", known)
        yield _gauge("rtt_seconds", "Round trip to the cloud, of late.", status.rtt_seconds)
        yield _gauge(
            "device_share",
            "Share of the last answers' tokens that the device decided.",
            status.device_share,
        )
        yield _gauge("tokens_per_second", "Speed of the last answers.", status.tokens_per_second)


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, text)
    if value is not None:
        family.add_metric([], float(value))
    return family
