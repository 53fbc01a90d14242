"""The fleet simulator against real processes: the same edges, texts, link and schedule in both."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cloud.deep_model import DeepModel
from shared.messages import ContextKind
from shared.model_bundle import ModelBundle, Precision
from simulator.bench import markdown
from simulator.bench.environment import look_around
from simulator.fleet.cores import Cores, on_cores, part_cores
from simulator.fleet.measuring import cloud_profile, measure_cloud
from simulator.fleet.measuring_cloud import CloudEffort, load_deep_model, measure_passes
from simulator.fleet.measuring_edge import step_seconds
from simulator.fleet.profiles import CloudProfile, DeviceProfile
from simulator.fleet.recordings import Recording
from simulator.fleet.validation_edge import TimedAnswer
from simulator.fleet.validation_real import (
    RealFleet,
    Turn,
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
        *((s, r, past, d) for s in (1, 2, 4, 8, 16) for r in (1, 2, 4) for past in (32, 128)
          for d in {1, r}),
        *((s, r, 0, 0) for s in (1, 2) for r in (16, 32, 64)),
    ),
    rounds=4,
    questions=60,
    streams=16,
)  # fmt: skip

_PROBE = CloudEffort(shapes=((1, 1, 96, 1), (8, 1, 96, 1)), rounds=9, questions=0, streams=0)


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
    """Seconds per token: over all tokens, and the 95th percentile of answers; and from a question
    to its answer's ``first`` token, the mean."""

    mean: float
    p95: float
    first: float


@dataclass(frozen=True)
class Row:
    """One comparison; ``answers`` of the real edges.  A pass took ``slowdown`` times as long around
    it as when the profile was measured."""

    policy: str
    edges: int
    answers: int
    real: Pace
    simulated: Pace
    slowdown: float = 1.0

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


def pace_of(answers: Sequence[tuple[float, float, int]]) -> Pace:
    """The pace of answers: for each the seconds to its first token and to its last, and how many it
    had.

    The percentile is the smallest value that 95% of the answers are not above.
    """
    each = sorted(seconds / tokens for _, seconds, tokens in answers)
    return Pace(
        sum(seconds for _, seconds, _ in answers) / sum(tokens for _, _, tokens in answers),
        each[math.ceil(0.95 * len(each)) - 1],
        sum(first for first, _, _ in answers) / len(answers),
    )


async def validate(
    asked: Asked, bundle: ModelBundle, precision: Precision, advance: Callable[[str], None]
) -> Validation:
    """Measure this machine's cloud, record texts with it, then run and simulate every fleet.

    A shared machine is now faster, now slower, so passes are timed again before and after each
    fleet, and the profile's are made as much longer or shorter for it.

    ``advance`` is told what was done: the cloud's profile, the texts, then each comparison.

    Raises:
        ConfigurationError, CloudUnavailableError: a process failed; says why.
    """
    environment = look_around(bundle)
    cores = part_cores(asked.cloud_threads)
    model = await asyncio.to_thread(load_deep_model, bundle)
    probe = SpeedProbe(model, asked.cloud_threads, cores)
    before = await probe.seconds()
    times = await measure_cloud(
        bundle, model, asked.cloud_effort, lambda: None, threads=asked.cloud_threads, cores=cores
    )
    cloud = cloud_profile("validated", times, environment)
    usual = (before + await probe.seconds()) / 2
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
            now = await probe.seconds()  # recording has taken its time
            for policy in asked.policies:
                for edges in asked.edges:
                    turns = turns_of(edges, len(recorded.texts), asked.stagger)
                    real = await fleet.run(policy, turns)
                    before, now = now, await probe.seconds()
                    slowdown = (before + now) / 2 / usual
                    paced = simulated_pace(
                        asked, recording, policy, turns, device, slowed(cloud, slowdown)
                    )
                    timed = [answer for answers in real for answer in answers]
                    pace = pace_of(_times(timed))
                    rows.append(Row(policy, edges, len(timed), pace, paced, slowdown))
                    advance(f"{policy}, {edges} edges")
    return Validation(tuple(rows), device, cloud)


def simulated_pace(
    asked: Asked,
    recording: Recording,
    policy: str,
    turns: Sequence[Turn],
    device: DeviceProfile,
    cloud: CloudProfile,
) -> Pace:
    """The simulator's, over runs with other chance in the links."""
    logs = [
        log
        for run in range(_RUNS)
        for log in simulate(recording, policy, turns, device, cloud, asked.link, asked.seed + run)
    ]
    return pace_of(
        [
            answer
            for log in logs
            for answer in zip(log.first_seconds, log.seconds, log.tokens, strict=True)
        ]
    )


class SpeedProbe:
    """How fast the cloud's cores are now, by the same few passes each time."""

    def __init__(self, model: DeepModel, threads: int, cores: Cores) -> None:
        self._model, self._threads, self._cores = model, threads, cores

    async def seconds(self) -> float:
        """Of the passes, in sum; each is a median."""
        with on_cores(self._cores.cloud):
            samples = await measure_passes(
                self._model, ContextKind.TOKEN_IDS, _PROBE, lambda: None, threads=self._threads
            )
        return sum(sample.seconds for sample in samples)


def slowed(cloud: CloudProfile, factor: float) -> CloudProfile:
    """The same cloud, whose passes take ``factor`` times as long."""
    passes = {name: getattr(cloud, name).scaled(factor, factor) for name in ("whole", "deep")}
    return cloud.model_copy(update=passes)


def _times(answers: Sequence[TimedAnswer]) -> list[tuple[float, float, int]]:
    return [
        (answer.shown[0] - answer.began, answer.shown[-1] - answer.began, len(answer.shown))
        for answer in answers
    ]


_HEAD = (
    "policy", "edges", "answers", "mean real, ms/token", "simulated", "error",
    "p95 real, ms/token", "simulated", "error", "first token real, ms", "simulated", "passes",
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
        f"{1e3 * row.real.first:.0f}",
        f"{1e3 * row.simulated.first:.0f}",
        f"× {row.slowdown:.2f}",
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
