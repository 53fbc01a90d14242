"""A file that may change while the cloud runs: it is read again when it is another one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from shared.clock import Clock, monotonic
from shared.errors import ConfigurationError
from shared.logs import about

CHECK_SECONDS = 1.0

_LOG = logging.getLogger("tandem.cloud")

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """What ``read`` makes of ``path``; raises its :class:`ConfigurationError` at the start.

    Later, a file that is broken or gone leaves what was read before, and the log says so once.
    Whoever changes it writes another file and renames it, or appends one whole line.

    Args:
        what: the file's name in the log.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], T], what: str, *, clock: Clock = monotonic
    ) -> None:
        self._path, self._read, self._what, self._clock = path, read, what, clock
        self._seen = self._identity()
        self._content = read(path)
        self._looked = clock()

    @property
    def content(self) -> T:
        """What was read last."""
        return self._content

    def current(self) -> T:
        """What the file says now; looks at it at most once a second."""
        self.look()
        return self._content

    def look(self) -> bool:
        """Read the file again if it is another one, looking at most once a second; return whether
        the content is a new one."""
        if 0 <= self._clock() - self._looked < CHECK_SECONDS:  # a clock may be set back
            return False
        self._looked = self._clock()
        return self._identity() != self._seen and self.reload()

    def reload(self) -> bool:
        """Read the file now; return whether that worked."""
        self._seen = self._identity()  # before it is read: a change meanwhile is seen next time
        try:
            self._content = self._read(self._path)
        except ConfigurationError as error:
            _LOG.error(
                f"{self._what} refused, what was read before stays", extra=about(error=error)
            )
            return False
        _LOG.info(f"{self._what} read", extra=about(path=self._path.name))
        return True

    def _identity(self) -> tuple[int, ...] | None:
        """Tells one content from another; ``None`` where there is no file."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
