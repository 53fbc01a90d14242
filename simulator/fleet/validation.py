"""The fleet simulator against real processes: the same edges, texts, link and schedule in both."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from shared.model_bundle import ModelBundle, Precision
from simulator.bench import markdown
from simulator.bench.environment import look_around
from simulator.fleet.cores import part_cores
from simulator.fleet.measuring import cloud_profile, measure_cloud
from simulator.fleet.measuring_cloud import CloudEffort
from simulator.fleet.measuring_edge import step_seconds
from simulator.fleet.profiles import CloudProfile, DeviceProfile
from simulator.fleet.validation_edge import TimedAnswer
from simulator.fleet.validation_real import (
    RealFleet,
    record_texts,
    scripts_of,
    serving_cloud,
    turns_of,
)
from simulator.fleet.validation_simulated import simulate
from simulator.link_spec import LinkSpec

GOAL = 0.10
_STEP_ROUNDS = 5
_RUNS = 9  # of the simulator, by chance of the link
# a few rows of many sessions, and a prompt: what so many edges give a pass
CLOUD_EFFORT = CloudEffort(
    shapes=(
        *((s, r, 96, d) for s in (1, 2, 4, 8, 16) for r in (1, 2, 4) for d in {1, r}),
        *((1, r, 0, 1) for r in (16, 32, 64)),
    ),
    rounds=4,
    questions=60,
    streams=16,
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is to be compared; ``stagger`` seconds lie between the first and the last edge's
    beginnings."""

    edges: tuple[int, ...]
    policies: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    device: DeviceProfile
    link: LinkSpec
    cloud_threads: int
    seed: int
    stagger: float = 3.0
    cloud_effort: CloudEffort = CLOUD_EFFORT


@dataclass(frozen=True)
class Pace:
    """Seconds per token: over all tokens, and the 95th percentile of answers."""

    mean: float
    p95: float


@dataclass(frozen=True)
class Row:
    """One comparison; ``answers`` of the real edges."""

    policy: str
    edges: int
    answers: int
    real: Pace
    simulated: Pace

    @property
    def errors(self) -> tuple[float, float]:
        """Of the simulated mean and p95, relative to the real ones."""
        return (
            self.simulated.mean / self.real.mean - 1.0,
            self.simulated.p95 / self.real.p95 - 1.0,
        )

    @property
    def within(self) -> bool:
        """Whether both are within the goal."""
        return max(map(abs, self.errors)) <= GOAL


@dataclass(frozen=True)
class Validation:
    """All comparisons, and the profiles that the simulator was fed with."""

    rows: tuple[Row, ...]
    device: DeviceProfile
    cloud: CloudProfile

    @property
    def within(self) -> bool:
        """Whether every one is within the goal."""
        return all(row.within for row in self.rows)

    def as_record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rows": [asdict(row) | {"errors": row.errors} for row in self.rows],
            "device": self.device.model_dump(mode="json"),
            "cloud": self.cloud.model_dump(mode="json"),
        }


def pace_of(answers: Sequence[tuple[float, int]]) -> Pace:
    """The pace of answers of so many seconds and tokens.

    The percentile is the smallest value that 95% of the answers are not above.
    """
    each = sorted(seconds / tokens for seconds, tokens in answers)
    return Pace(
        sum(seconds for seconds, _ in answers) / sum(tokens for _, tokens in answers),
        each[math.ceil(0.95 * len(each)) - 1],
    )


async def validate(
    asked: Asked, bundle: ModelBundle, precision: Precision, advance: Callable[[str], None]
) -> Validation:
    """Measure this machine's cloud, record texts with it, then run and simulate every fleet.

    ``advance`` is told what was done: the cloud's profile, the texts, then each comparison.

    Raises:
        ConfigurationError, CloudUnavailableError: a process failed; says why.
    """
    environment = look_around(bundle)
    cores = part_cores(asked.cloud_threads)
    times = await measure_cloud(
        bundle, asked.cloud_effort, lambda: None, threads=asked.cloud_threads, cores=cores
    )
    cloud = cloud_profile("validated", times, environment)
    # token loop and messages are what a replayed edge computes itself, on this machine
    step = await asyncio.to_thread(step_seconds, bundle, _STEP_ROUNDS)
    device = asked.device.model_copy(
        update={"message_seconds": times.overheads.edge_message, "step_seconds": step}
    )
    advance("the cloud's profile")
    rows = []
    most = max(asked.edges)
    async with serving_cloud(bundle, asked.cloud_threads, most, cores.cloud) as served:
        recorded, hidden = await record_texts(
            bundle, precision, served.address, asked.prompts, asked.max_tokens
        )
        scripts = await scripts_of(bundle, served.address, recorded.texts, hidden)
        recording = recorded.as_recording(bundle, "the validation's own")
        fleet = RealFleet(
            bundle, device, asked.link, served.address, scripts, most, asked.seed, cores.rest
        )
        advance("the texts")
        async with fleet:
            for policy in asked.policies:
                for edges in asked.edges:
                    turns = turns_of(edges, len(recorded.texts), asked.stagger)
                    real = await fleet.run(policy, turns)
                    logs = [
                        log
                        for run in range(_RUNS)
                        for log in simulate(
                            recording, policy, turns, device, cloud, asked.link, asked.seed + run
                        )
                    ]
                    timed = [answer for answers in real for answer in answers]
                    simulated = [
                        pair for log in logs for pair in zip(log.seconds, log.tokens, strict=True)
                    ]
                    rows.append(
                        Row(policy, edges, len(timed), pace_of(_pairs(timed)), pace_of(simulated))
                    )
                    advance(f"{policy}, {edges} edges")
    return Validation(tuple(rows), device, cloud)


def _pairs(answers: Sequence[TimedAnswer]) -> list[tuple[float, int]]:
    return [(answer.shown[-1] - answer.began, len(answer.shown)) for answer in answers]


_HEAD = (
    "policy", "edges", "answers", "mean real, ms/token", "simulated", "error",
    "p95 real, ms/token", "simulated", "error",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    mean, p95 = row.errors
    return [
        row.policy,
        str(row.edges),
        str(row.answers),
        f"{1e3 * row.real.mean:.1f}",
        f"{1e3 * row.simulated.mean:.1f}",
        f"{mean:+.1%}",
        f"{1e3 * row.real.p95:.1f}",
        f"{1e3 * row.simulated.p95:.1f}",
        f"{p95:+.1%}",
    ]


def table(rows: Sequence[Row]) -> Table:
    """For the terminal; what misses the goal stands out."""
    shown = Table(box=None, pad_edge=False)
    for index, heading in enumerate(_HEAD):
        shown.add_column(heading, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*_cells(row), style=None if row.within else "bold red")
    return shown


def markdown_table(rows: Sequence[Row]) -> str:
    """For the documentation."""
    return markdown.table(_HEAD, map(_cells, rows))
