"""The fleet simulator against real processes: the same edges, texts, link and schedule in both."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from cloud.deep_model import DeepModel
from shared.messages import ContextKind
from shared.model_bundle import ModelBundle, Precision
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
from simulator.fleet.validation_report import Pace, Round, Row, Validation, pace_of
from simulator.fleet.validation_simulated import simulate
from simulator.link_spec import LinkSpec

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
    """What is to be compared, and in how many ``rounds``; ``stagger`` seconds lie between the first
    and the last edge's beginnings."""

    edges: tuple[int, ...]
    policies: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    device: DeviceProfile
    link: LinkSpec
    cloud_threads: int
    seed: int
    rounds: int = 3
    stagger: float = 3.0
    cloud_effort: CloudEffort = CLOUD_EFFORT


async def validate(
    asked: Asked, bundle: ModelBundle, precision: Precision, advance: Callable[[str], None]
) -> Validation:
    """Measure this machine's cloud, record texts with it, then run and simulate every fleet, in
    rounds that each have all of them.

    A shared machine is now faster, now slower, so passes are timed again before and after each
    fleet, and the profile's are made as much longer or shorter for it.

    ``advance`` is told what was done: the cloud's profile, the texts, then each round's fleets.

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
            found = await _rounds(
                asked, fleet, probe, usual,
                lambda policy, turns, slowdown: simulated_pace(
                    asked, recording, policy, turns, device, slowed(cloud, slowdown)
                ),
                advance,
            )  # fmt: skip
    rows = [
        Row(policy, edges, edges * len(recorded.texts), tuple(rounds))
        for (policy, edges), rounds in found.items()
    ]
    return Validation(tuple(rows), device, cloud)


async def _rounds(
    asked: Asked,
    fleet: RealFleet,
    probe: SpeedProbe,
    usual: float,
    simulated: Callable[[str, Sequence[Turn], float], Pace],
    advance: Callable[[str], None],
) -> dict[tuple[str, int], list[Round]]:
    """Every fleet in every round; the probe took ``usual`` seconds beside the profile."""
    found: dict[tuple[str, int], list[Round]] = defaultdict(list)
    now = await probe.seconds()
    for _ in range(asked.rounds):
        for policy, edges in product(asked.policies, asked.edges):
            turns = turns_of(edges, len(asked.prompts), asked.stagger)
            real = await fleet.run(policy, turns)
            before, now = now, await probe.seconds()
            slowdown = (before + now) / 2 / usual
            pace = pace_of(_times([answer for answers in real for answer in answers]))
            late = max(
                answers[0].began - turn.begin for answers, turn in zip(real, turns, strict=True)
            )
            found[policy, edges].append(
                Round(pace, simulated(policy, turns, slowdown), slowdown, late)
            )
            advance(f"{policy}, {edges} edges")
    return found


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
