"""What a run came to, as plain data: the same seed gives the same to the byte.

Energy and cost rest on assumptions that :data:`ASSUMPTIONS` states and every output repeats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.fleet.group import Group
from simulator.fleet.simulation import FleetRun

FORMAT = 1
_DIGITS = 6
_PERCENTILES = (50, 95, 99)

ASSUMPTIONS = (
    "Times of devices and clouds are those of their profiles; each says whether it was measured or "
    "derived, and from what.",
    "A simulated answer is a recorded one. Where an edge accepts a token that is not the full "
    "model's, the real text would go on otherwise; the simulated one goes on as recorded.",
    "Time per token is an answer's time, from the question to the last token, over its tokens; "
    "percentiles are over answers, those that ended after the warm-up and before the simulation "
    "did.",
    "Energy of an edge is what its answers take beyond idling: (active - idle) watts times the "
    "seconds in which it computes. The radio is left out. Energy of the cloud is all that its "
    "replicas draw, idle or not.",
    "Cost is the price of the replicas for the time behind the warm-up, used or not, over the "
    "tokens of the answers that ended in it; the edges' electricity is left out.",
    "One tenant: the batcher serves in order of arrival.",
)


def summarise(run: FleetRun) -> dict[str, Any]:
    """Everything that is reported of ``run``; seconds, bytes, joules and US dollars."""
    hours = run.config.counted_seconds / 3600.0
    price = run.cloud.price_per_hour * len(run.replicas) * hours
    groups = [_group(group, run) for group in run.groups]
    tokens = sum(sum(group.log.tokens) for group in run.groups)
    cloud = _cloud(run)
    rounded: dict[str, Any] = _rounded(
        {
            "format": FORMAT,
            "name": run.config.name,
            "seed": run.seed,
            "simulated_seconds": run.config.duration_s,
            "counted_seconds": run.config.counted_seconds,
            "edges": sum(table.count for table in run.config.edges),
            "answers": sum(len(group.log.tokens) for group in run.groups),
            "tokens": tokens,
            "tokens_per_second": tokens / run.config.counted_seconds,
            "all": _latencies(run.groups),
            "groups": groups,
            "cloud": cloud,
            "cost": {
                "price_per_replica_hour": run.cloud.price_per_hour,
                "price_source": run.cloud.price_source,
                "replica_hours": len(run.replicas) * hours,
                "dollars": price,
                "dollars_per_million_tokens": price / tokens * 1e6 if tokens else None,
            },
            "energy": _energy(run, tokens),
            "bundle": run.recording.model.bundle,
            "prompts": run.recording.model.prompts,
            "assumptions": list(ASSUMPTIONS),
            "config": json.loads(run.config.model_dump_json(exclude_unset=True)),
        }
    )
    return rounded


def to_json(summary: dict[str, Any]) -> str:
    """As a file holds it."""
    return json.dumps(summary, indent=2, sort_keys=False) + "\n"


def _token_seconds(group: Group) -> npt.NDArray[np.float64]:
    log = group.log
    return np.array(log.seconds, np.float64) / np.array(log.tokens, np.float64)


def _spread(values: npt.NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.percentile(values, _PERCENTILES)
    return {"mean": float(values.mean())} | {
        f"p{percent}": float(value) for percent, value in zip(_PERCENTILES, found, strict=True)
    }


def _latencies(groups: Sequence[Group]) -> dict[str, Any]:
    def column(name: str) -> npt.NDArray[np.float64]:
        return np.concatenate([np.array(getattr(group.log, name), np.float64) for group in groups])

    return {
        "seconds_per_token": _spread(np.concatenate([_token_seconds(group) for group in groups])),
        "first_token_seconds": _spread(column("first_seconds")),
        "answer_seconds": _spread(column("seconds")),
    }


def _group(group: Group, run: FleetRun) -> dict[str, Any]:
    log, device = group.log, group.device
    tokens = sum(log.tokens)
    table = next(table for table in run.config.edges if table.label == group.name)
    work, idle_to_active = sum(log.work_seconds), _extra_watts(group)
    return {
        "name": group.name,
        "edges": table.count,
        "device": device.name,
        "device_source": device.source,
        "link": table.link,
        "policy": group.policy.label,
        "answers": len(log.tokens),
        "tokens": tokens,
        **_latencies([group]),
        "agreement": 1.0 - sum(log.wrong) / tokens if tokens else None,
        "per_token": _per_token(group, tokens),
        "plans": dict(sorted(log.plans.items())),
        "edge_joules": work * idle_to_active,
        "edge_joules_per_token": work * idle_to_active / tokens if tokens else None,
    }


def _per_token(group: Group, tokens: int) -> dict[str, float] | None:
    if not tokens:
        return None
    log = group.log
    sums = {
        "questions": sum(log.questions),
        "corrections": sum(log.corrections),
        "discarded": sum(log.discarded),
        "alone": sum(log.alone),
        "bytes_up": sum(log.bytes_up),
        "bytes_down": sum(log.bytes_down),
        "edge_seconds": sum(log.work_seconds),
    }
    return {name: value / tokens for name, value in sums.items()}


def _cloud(run: FleetRun) -> dict[str, Any]:
    replicas, duration = run.replicas, run.config.counted_seconds
    passes = sum(replica.passes for replica in replicas)
    use = [replica.busy_seconds / duration for replica in replicas]
    waits = np.concatenate([np.array(replica.waits, np.float64) for replica in replicas])
    return {
        "profile": run.cloud.name,
        "source": run.cloud.source,
        "replicas": len(replicas),
        "utilisation": {"mean": sum(use) / len(use), "least": min(use), "most": max(use)},
        "passes": passes,
        "rows_per_pass": sum(r.rows for r in replicas) / passes if passes else None,
        "sessions_per_pass": sum(r.sessions for r in replicas) / passes if passes else None,
        "queue_seconds": _spread(waits),
    }


def _extra_watts(group: Group) -> float:
    power = group.device.power
    return power.active_watts - power.idle_watts


def _energy(run: FleetRun, tokens: int) -> dict[str, Any]:
    power, duration = run.cloud.power, run.config.counted_seconds
    busy = sum(replica.busy_seconds for replica in run.replicas)
    cloud = len(run.replicas) * duration * power.idle_watts
    cloud += busy * (power.active_watts - power.idle_watts)
    edges = sum(sum(group.log.work_seconds) * _extra_watts(group) for group in run.groups)
    return {
        "edge_joules": edges,
        "cloud_joules": cloud,
        "joules_per_token": (edges + cloud) / tokens if tokens else None,
        "cloud_power_source": power.source,
        "device_power_sources": {
            group.device.name: group.device.power.source for group in run.groups
        },
    }


def _rounded(value: Any) -> Any:
    """Floats to the microsecond (or byte, or joule, in millionths)."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
