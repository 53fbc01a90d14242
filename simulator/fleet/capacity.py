"""How many edges a cloud serves at a latency target, and what they cost, policy by policy.

For each policy the largest fleet is sought whose answers keep the target: larger fleets are tried
until one does not, then the number of edges is bisected.  Each trial is a simulation as long as it
takes for some hundreds of answers, and several times as long as an answer that keeps the target;
all have the same seed.  Where edges can go on alone, a fleet counts as served only while next to
none of its tokens are made so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.fleet.config import DAY_SECONDS, FleetConfig, Workload, parse_config
from simulator.fleet.recordings import Recording
from simulator.fleet.simulation import FleetRun, run_fleet
from simulator.fleet.target import Target

POLICIES: dict[str, dict[str, str]] = {
    "cloud-only": {"policy": "cloud-only"},
    "auto-latency": {"policy": "auto", "aim": "latency"},
    "auto-cost": {"policy": "auto", "aim": "cost"},
    "auto-quality": {"policy": "auto", "aim": "quality"},
    "blocking": {"policy": "blocking"},
    "optimistic": {"policy": "optimistic"},
    "verified": {"policy": "verified"},
}
DEFAULT_POLICIES = ("cloud-only", "auto-latency", "auto-cost", "auto-quality")
MOST_ALONE = 0.01  # of all tokens
_ANSWERS = 500  # that a trial is to see, about
_LEAST_SECONDS = 90.0
_MOST_SECONDS = 10 * DAY_SECONDS
_FIRST = 4  # edges
_NEAR = 0.6  # of what the cloud's use by a small fleet suggests, to try next
_WARM_UP = 0.3  # of a trial, and at least as long as an answer that keeps the target
_LONGEST = 3.0  # of such answers one behind the other, what counts of a trial at least
_CLOSE_ENOUGH = 0.03
_USUAL_TOKEN_SECONDS = 0.2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """What is asked about: edges that are alike, on one link, and their cloud.

    ``edges`` are keys of :class:`simulator.fleet.config.EdgesTable` but for count and policy.
    """

    edges: dict[str, Any]
    cloud: dict[str, Any]
    workload: dict[str, Any]
    target: Target
    seed: int = 0
    most_edges: int = 100_000

    @property
    def think_seconds(self) -> float:
        """Mean time from an answer to the next question."""
        return float(self.workload.get("think_s", 600.0))

    def config(self, policy: str, count: int) -> FleetConfig:
        """A trial with so many edges."""
        seconds = max(_LEAST_SECONDS, _ANSWERS * self.think_seconds / count)
        seconds = min(_MOST_SECONDS, seconds)
        answer = min(_MOST_SECONDS / 2, self._longest_answer())
        warm_up = max(_WARM_UP * seconds, answer)
        counted = max((1.0 - _WARM_UP) * seconds, _LONGEST * answer)
        fields: dict[str, Any] = {
            "name": f"{count} edges, {policy}",
            "duration_s": warm_up + counted,
            "warmup_s": warm_up,
            "seed": self.seed,
            "workload": self.workload,
            "cloud": self.cloud,
            "edges": [{"count": count} | self.edges | POLICIES[policy]],
        }
        return parse_config(fields, "capacity")

    def _longest_answer(self) -> float:
        """Seconds of an answer that just keeps the target; not known where only its first token
        has to."""
        seconds, most = self.target.seconds, Workload.model_validate(self.workload).max_tokens
        return {"answer": seconds, "time per token": most * seconds}.get(
            self.target.quantity, most * _USUAL_TOKEN_SECONDS + seconds
        )


@dataclass(frozen=True)
class Capacity:
    """The largest fleet of one policy; figures are those of its trial.

    Attributes:
        edges: 0 where not even one edge keeps the target.
        limited: more edges than were tried would do as well.
        measured_seconds: what the target is about, at ``edges`` (at one edge where that is 0).
    """

    policy: str
    rtt_ms: float
    edges: int
    limited: bool
    measured_seconds: float
    tokens_per_second: float
    utilisation: float
    dollars_per_million_tokens: float | None
    agreement: float | None
    bytes_up_per_token: float | None
    plans: dict[str, int]


def find_capacity(
    scenario: Scenario, policy: str, recording: Recording, tell: Tell | None = None
) -> Capacity:
    """Find the largest fleet: larger ones until one is too large, then bisection."""
    tried: dict[int, FleetRun] = {}

    def keeps(count: int) -> bool:
        if tell is not None:
            tell(f"{policy}: {count:,} edges")
        tried[count] = run_fleet(scenario.config(policy, count), recording=recording)
        return _keeps(tried[count], scenario.target)

    least, most = 0, 0
    count = min(_FIRST, scenario.most_edges)
    while not most:
        if not keeps(count):
            most = count
        elif count == scenario.most_edges:
            return _capacity(scenario, policy, count, True, tried[count])
        else:
            least = count
            suggested = _NEAR * count / max(_use(tried[count]), 1e-3)
            count = min(max(2 * count, int(suggested)), scenario.most_edges)
    while most - least > max(1, _CLOSE_ENOUGH * least):
        middle = (least + most) // 2
        if keeps(middle):
            least = middle
        else:
            most = middle
    shown = tried.get(max(1, least)) or tried[min(tried)]
    return _capacity(scenario, policy, least, False, shown)


def _keeps(run: FleetRun, target: Target) -> bool:
    log = run.groups[0].log
    alone = sum(log.alone) <= MOST_ALONE * sum(log.tokens)
    # a cloud that falls behind answers few of those that ask: what never ends is not counted
    return alone and _keeps_up(run) and target.measure(run.groups[0]) <= target.seconds


def _keeps_up(run: FleetRun) -> bool:
    return _use(run) < 0.995


def _use(run: FleetRun) -> float:
    """Of the busiest replica's time."""
    return max(replica.busy_seconds for replica in run.replicas) / run.config.counted_seconds


def _capacity(
    scenario: Scenario,
    policy: str,
    edges: int,
    limited: bool,
    run: FleetRun,
) -> Capacity:
    group = run.groups[0]
    log = group.log
    tokens = sum(log.tokens)
    per_second = tokens / run.config.counted_seconds
    price = run.cloud.price_per_hour * len(run.replicas) / 3600.0
    busy = sum(replica.busy_seconds for replica in run.replicas)
    return Capacity(
        policy=policy,
        rtt_ms=run.config.edges[0].make_link().rtt_ms,
        edges=edges,
        limited=limited,
        measured_seconds=scenario.target.measure(group),
        tokens_per_second=per_second,
        utilisation=busy / run.config.counted_seconds / len(run.replicas),
        dollars_per_million_tokens=price / per_second * 1e6 if edges and per_second else None,
        agreement=1.0 - sum(log.wrong) / tokens if tokens else None,
        bytes_up_per_token=sum(log.bytes_up) / tokens if tokens else None,
        plans=dict(sorted(log.plans.items())),
    )


def capacities(
    scenario: Scenario,
    policies: Sequence[str],
    rtts_ms: Sequence[float],
    recording: Recording,
    tell: Tell | None = None,
) -> list[Capacity]:
    """All policies on the scenario's own link, and with each other round trip that is named."""
    found = [find_capacity(scenario, policy, recording, tell) for policy in policies]
    own = found[0].rtt_ms
    for rtt in rtts_ms:
        if rtt == own:
            continue
        moved = Scenario(
            scenario.edges | {"rtt_ms": rtt},
            scenario.cloud,
            scenario.workload,
            scenario.target,
            scenario.seed,
            scenario.most_edges,
        )
        found += [find_capacity(moved, policy, recording, tell) for policy in policies]
    return found
