"""Giving back memory that loading and long prompts leave behind.  Linux with glibc; elsewhere
nothing."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_ONE_AT_A_TIME = threading.Lock()
_SMAPS = Path("/proc/self/smaps")


def release_after_load(weights: Path) -> None:
    """Drop what a session that was made from ``weights`` does not read any more.

    The kernels have packed copies of their matrices.  What is left of the file's mapping are
    constants that ONNX Runtime keeps though nothing reads them (the scales, which are packed too),
    and a page that is read after all comes back from the file.  The session must be alive, so that
    its mappings stay where they are.
    """
    with _ONE_AT_A_TIME:
        try:
            libc = ctypes.CDLL("libc.so.6")
            for start, stop in list(_clean_mappings(weights.resolve())):
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)
        except (OSError, AttributeError):  # another system, or another C library
            pass
        release_freed()


def release_freed() -> None:
    """Give back the heap's freed pages, which glibc would keep (a millisecond or two)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _clean_mappings(path: Path) -> Iterator[tuple[int, int]]:
    """Address ranges of this process that map ``path`` and were never written to."""
    start = stop = 0
    for line in _SMAPS.read_text().splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):  # "<start>-<stop> <flags> <offset> <device> <inode> <path>"
            fields = rest.split(maxsplit=4)
            ours = len(fields) == 5 and fields[4] == str(path)
            start, stop = (int(part, 16) for part in key.split("-")) if ours else (0, 0)
        elif key == "Anonymous:" and stop and rest.split()[0] == "0":
            yield start, stop
