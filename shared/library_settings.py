"""Settings that libraries read from the environment when they are loaded."""

from __future__ import annotations

import os

_made: set[str] = set()


def make_setting(name: str, value: str) -> None:
    """For this process and those that it starts, unless the user has made it."""
    if name not in os.environ:
        os.environ[name] = value
        _made.add(name)


def environment_for_others() -> dict[str, str]:
    """For a process that is somebody else's program: without what was made here."""
    return {name: value for name, value in os.environ.items() if name not in _made}
