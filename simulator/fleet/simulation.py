"""Runs a fleet in virtual time; what comes out is a function of configuration and seed alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from random import Random

import numpy as np

from simulator.fleet.config import DAY_SECONDS, FleetConfig, Workload
from simulator.fleet.events import Clock
from simulator.fleet.group import Group
from simulator.fleet.lines import Lines, PacketLines, PlainLines
from simulator.fleet.profiles import CloudProfile, load_cloud, load_device
from simulator.fleet.recordings import Recording, load_recording
from simulator.fleet.replica import Replica
from simulator.fleet.simulated_edge import SimulatedEdge
from simulator.fleet.tracks import Tracks
from simulator.fleet.ways import LinkMaker
from simulator.fleet.wire import WireSizes

_PARTS = 200  # of a run, between which progress is told

Progress = Callable[[float], None]


@dataclass(frozen=True)
class FleetRun:
    """A run that ended: what its groups and replicas counted."""

    config: FleetConfig
    seed: int
    recording: Recording
    cloud: CloudProfile
    groups: tuple[Group, ...]
    replicas: tuple[Replica, ...]


def run_fleet(
    config: FleetConfig,
    *,
    seed: int | None = None,
    recording: Recording | None = None,
    progress: Progress | None = None,
) -> FleetRun:
    """Simulate ``config``.

    Args:
        seed: in place of the configuration's.
        recording: in place of the one that the configuration names.
        progress: is told the share that is done, now and then.

    Raises:
        ConfigurationError: a profile or recording that cannot be read, or do not fit together.
    """
    seed = config.seed if seed is None else seed
    recording = recording or load_recording(config.workload.recording)
    cloud = _cloud(config)
    env = Clock()
    replicas = tuple(Replica(env, cloud) for _ in range(config.cloud.replicas))
    noises = np.random.default_rng(seed).spawn(len(config.edges))
    tracks, sizes = Tracks(recording), WireSizes.of(recording.model)
    groups = []
    number = 0
    for table, noise in zip(config.edges, noises, strict=True):
        draws, links = noise.spawn(2)
        group = Group(
            env,
            table.label,
            load_device(table.device),
            table.make_policy(),
            recording,
            tracks,
            sizes,
            draws,
            _thinker(config.workload),
            horizon=config.duration_s,
            max_tokens=config.workload.max_tokens,
            warmup=config.warmup_s,
        )
        maker = LinkMaker(table.make_link(), links)
        for _ in range(table.count):
            edge = SimulatedEdge(group, _lines(env, group, maker), replicas[number % len(replicas)])
            number += 1
            group.begin(edge)
        groups.append(group)
    if config.warmup_s:
        for replica in replicas:
            env.call_at(config.warmup_s, replica.count_from_now)
    with _no_collection():
        _run(env, config.duration_s, progress)
    return FleetRun(config, seed, recording, cloud, tuple(groups), replicas)


def _cloud(config: FleetConfig) -> CloudProfile:
    table = config.cloud
    changes: dict[str, object] = {}
    if table.max_rows is not None:
        changes["max_rows"] = table.max_rows
    if table.price_per_hour is not None:
        changes |= {
            "price_per_hour": table.price_per_hour,
            "price_source": "named in the configuration",
        }
    return load_cloud(table.profile).model_copy(update=changes)


def _lines(env: Clock, group: Group, maker: LinkMaker) -> Lines:
    if maker.plain:
        return PlainLines(group, *maker.make_plain())
    return PacketLines(group, *maker.make_packets(env))


def _run(env: Clock, duration: float, progress: Progress | None) -> None:
    for part in range(1, _PARTS + 1):
        until = duration * part / _PARTS
        if until > env.now:
            env.run_until(until)
        if progress is not None:
            progress(part / _PARTS)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing that a run makes refers to itself for long, and looking for what does takes a third
    of the time."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _thinker(workload: Workload) -> Callable[[float, Random], float]:
    """Seconds until the next question, exponential; its rate may swing with the hour (thinning:
    Lewis and Shedler, 1979)."""
    mean, swing = workload.think_s, workload.diurnal
    if not swing:

        def steady(_now: float, chance: Random) -> float:
            return chance.expovariate(1.0 / mean)

        return steady
    begin, peak = workload.begin_h * 3600.0, workload.peak_h * 3600.0

    def with_the_day(now: float, chance: Random) -> float:
        at = now
        while True:
            at += chance.expovariate((1.0 + swing) / mean)
            rate = 1.0 + swing * cos(2.0 * pi * (at + begin - peak) / DAY_SECONDS)
            if chance.random() * (1.0 + swing) <= rate:
                return at - now

    return with_the_day
