"""How a long run of positions is cut into batches."""

from __future__ import annotations

from collections.abc import Iterator


def chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` in pieces of ``size`` at most.

    None is a lone position, unless it is all there is or ``size`` is below 3: one row runs through
    other kernels than several, whose rows come out the same whatever their number.
    """
    while start < stop:
        length = min(size, stop - start)
        if stop - start == length + 1 and length > 2:
            length -= 1
        yield start, start + length
        start += length
