"""Which cores what runs on: so that one machine can stand for two, and neither takes from the
other."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """Cores of the cloud, and of all else; both empty where they cannot be parted."""

    cloud: frozenset[int] = frozenset()
    rest: frozenset[int] = frozenset()


ANY_CORES = Cores()


def part_cores(cloud_threads: int | None) -> Cores:
    """So many for the cloud, where this process may use more than that and the system can say who
    runs where (Linux can)."""
    if sys.platform != "linux" or cloud_threads is None:
        return ANY_CORES
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) <= cloud_threads:
        return ANY_CORES
    return Cores(frozenset(mine[:cloud_threads]), frozenset(mine[cloud_threads:]))


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """What this thread starts meanwhile, threads and processes, keeps to ``cores``, and so does it
    itself; without any, nothing changes."""
    if sys.platform != "linux" or not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
