"""How many cores a container may use (Linux control groups, version 2)."""

from __future__ import annotations

from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def cores_allowed(cpu_max: str) -> float | None:
    """What a ``cpu.max`` says; ``None`` is no limit."""
    limit, _, period = cpu_max.strip().partition(" ")
    return None if limit == "max" or not period else int(limit) / int(period)


def cpu_quota(limit: Path = _LIMIT) -> float | None:
    """Of this process; ``None`` where there is no limit, or none that can be read."""
    try:
        return cores_allowed(limit.read_text())
    except (OSError, ValueError):
        return None
