"""A command on a terminal of its own, as a person sees it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

WAIT_SECONDS = 120.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class PtyProcess:
    """``with`` block around ``python arguments...``; Ctrl-C typed here is a signal there."""

    def __init__(self, arguments: Sequence[str], **environment: str) -> None:
        self._arguments = [sys.executable, *arguments]
        plain: Mapping[str, str] = os.environ | {"TERM": "xterm-256color", "INPUTRC": "/dev/null"}
        self._environment = {
            name: value for name, value in plain.items() if name not in ("NO_COLOR", "FORCE_COLOR")
        } | environment
        self.raw = ""

    def __enter__(self) -> Self:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self._process = subprocess.Popen(
            self._arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=self._environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(theirs)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """All that was shown, without colours."""
        return _ESCAPES.sub("", self.raw)

    def type(self, keys: str) -> None:
        """Press keys: ``\\r`` is Enter, ``\\x03`` Ctrl-C, ``\\x04`` Ctrl-D."""
        os.write(self._ours, keys.encode())

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C where the command waits for keys.

        Python misses a signal between its last look and readline's ``select`` (until another key
        comes), which no hand is quick enough for and a test is: the kernel says when it waits.
        """
        waits_in = Path(f"/proc/{self._process.pid}/wchan")
        deadline = time.monotonic() + WAIT_SECONDS
        while not re.search("poll|select", waits_in.read_text()):
            assert time.monotonic() < deadline, "it never waits for keys"
            time.sleep(0.01)
        self.type("\x03")

    def see(self, pattern: str, *, colours: bool = False) -> str:
        """Read on until ``pattern`` is in what was shown since the last sight (escape sequences
        left out, but for ``colours``); return that."""
        seen = ""
        deadline = time.monotonic() + WAIT_SECONDS
        while not re.search(pattern, seen if colours else _ESCAPES.sub("", seen)):
            piece = self._read(deadline)
            assert piece, f"{pattern!r} never came: {self.text}"
            seen += piece
        return _ESCAPES.sub("", seen)

    async def sees(self, pattern: str, *, colours: bool = False) -> str:
        """:meth:`see`, while the event loop goes on."""
        return await asyncio.to_thread(self.see, pattern, colours=colours)

    def end(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(WAIT_SECONDS)

    def _read(self, deadline: float) -> str:
        """What comes next; nothing where the other side has closed."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"silent for {WAIT_SECONDS} s after: {self.text}"
        try:
            piece = os.read(self._ours, 1 << 16).decode(errors="replace")
        except OSError:  # Linux says so when the last process has closed its side
            piece = ""
        self.raw += piece
        return piece
