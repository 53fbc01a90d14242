"""One machine that stands for two: who runs where."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from simulator.fleet.cores import ANY_CORES, on_cores, part_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux says who runs where")

_WHERE = "import os; print(*sorted(os.sched_getaffinity(0)))"


def where_children_run() -> set[int]:
    found = subprocess.run(
        [sys.executable, "-c", _WHERE], check=True, capture_output=True, text=True
    )
    return set(map(int, found.stdout.split()))


def test_what_is_started_meanwhile_keeps_to_the_cores() -> None:
    mine = os.sched_getaffinity(0)
    one = {min(mine)}
    with on_cores(one):
        assert where_children_run() == one
    assert os.sched_getaffinity(0) == mine
    assert where_children_run() == mine


def test_the_cores_come_back_after_a_failure() -> None:
    mine = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), on_cores({max(mine)}):
        _ = 1 // 0
    assert os.sched_getaffinity(0) == mine


def test_without_cores_nothing_changes() -> None:
    mine = os.sched_getaffinity(0)
    with on_cores(ANY_CORES.cloud):
        assert os.sched_getaffinity(0) == mine


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_cloud_gets_as_many_cores_as_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5, 2, 9, 7})
    cores = part_cores(threads)
    assert cores.cloud == set([2, 5, 7, 9][:threads])
    assert cores.rest == {2, 5, 7, 9} - cores.cloud


def test_nothing_is_parted_where_nothing_would_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    assert part_cores(2) == ANY_CORES
    assert part_cores(None) == ANY_CORES
    assert part_cores(1) != ANY_CORES
