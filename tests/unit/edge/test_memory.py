"""Giving back memory after a load: mapped pages go and come back as they were."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from edge import memory
from edge.memory import release_after_load

SIZE = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _resident_kib(path: Path) -> int:
    """Resident part of this process's mappings of ``path``."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "some graph.weights"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_untouched_copies_of_a_file_leave_memory_and_read_the_same(weights: Path) -> None:
    with weights.open("r+b") as file, mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE) as view:
        before = bytes(view)
        if not _resident_kib(weights):
            pytest.skip("this system does not tell what a mapping holds")
        release_after_load(weights)
        assert _resident_kib(weights) == 0
        assert bytes(view) == before


def test_pages_that_were_written_to_are_kept(weights: Path) -> None:
    with weights.open("r+b") as file, mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE) as view:
        view[5000] = 0
        release_after_load(weights)
        assert view[5000] == 0


def test_a_system_that_does_not_tell_is_left_alone(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_SMAPS", tmp_path / "none")
    release_after_load(weights)
