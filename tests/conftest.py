"""Settings for every test."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# tiny matrices gain nothing from threads, and threads that wait for each other on a busy machine
# lose a great deal
torch.set_num_threads(1)
# a slow machine is no failure
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell without job control starts background work so, and children would inherit it: those
    # that tests interrupt would not hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Room:
    """Where tests of all workers run: any number at once, or one that is ``alone``.

    Whoever comes passes the door first; a test that wants to be alone keeps the door shut while it
    waits for the others to leave, so that it waits for what runs already and for nothing else.

    Args:
        folder: that all workers of a run share.
    """

    def __init__(self, folder: Path) -> None:
        self._door = (folder / "door").open("w")
        self._room = (folder / "room").open("w")
        self._alone = False

    def enter(self, *, alone: bool) -> None:
        """Wait for room; one who is alone already, and stays so, does not wait."""
        if alone and self._alone:
            return
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_UN)
        self._alone = alone

    def leave(self) -> None:
        """Give the room to others."""
        self._alone = False
        fcntl.flock(self._room, fcntl.LOCK_UN)


_ROOM = pytest.StashKey[Room]()


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes that run tests
        config.stash[_ROOM] = Room(Path(config.getoption("basetemp")).parent)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _ROOM in config.stash:  # first, while the others have not begun: nobody waits long
        items.sort(key=lambda item: not _is_alone(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    room = item.config.stash.get(_ROOM, None)
    if room is None:
        return (yield)
    room.enter(alone=_is_alone(item))
    try:
        return (yield)
    finally:
        if not (_is_alone(item) and nextitem is not None and _is_alone(nextitem)):
            room.leave()
