"""Tokens that change while the cloud runs: their file is read again when it is another one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cloud.auth import read_token_file
from cloud.logs import about
from shared.clock import Clock, monotonic
from shared.errors import ConfigurationError

CHECK_SECONDS = 1.0

_LOG = logging.getLogger("tandem.cloud")


class TokenFile:
    """The tokens of ``path``; raises :class:`ConfigurationError` where it is broken at the start.

    Later, a file that is broken or gone leaves the tokens as they were, and the log says so once.
    Whoever changes it writes another file and renames it, or appends one whole line.
    """

    def __init__(self, path: Path, *, clock: Clock = monotonic) -> None:
        self._path, self._clock = path, clock
        self._seen = self._identity()
        self._tokens: Sequence[tuple[str, str]] = read_token_file(path)
        self._looked = clock()

    def current(self) -> Sequence[tuple[str, str]]:
        """``(tenant, SHA-256)`` of every token; looks at the file at most once a second."""
        if not 0 <= self._clock() - self._looked < CHECK_SECONDS:  # a clock may be set back
            self._looked = self._clock()
            if self._identity() != self._seen:
                self.reload()
        return self._tokens

    def reload(self) -> None:
        """Read the file now."""
        self._seen = self._identity()  # before it is read: a change meanwhile is seen next time
        try:
            self._tokens = read_token_file(self._path)
        except ConfigurationError as error:
            _LOG.error("token file refused, the tokens before it stay", extra=about(error=error))
        else:
            _LOG.info("token file read", extra=about(tokens=len(self._tokens)))

    def _identity(self) -> tuple[int, ...] | None:
        """Tells one content from another; ``None`` where there is no file."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
