"""What the fuzz tests share: choices read from bytes that hypothesis draws (and shrinks), in rounds
of known seeds.

A few thousand cases run with every other test.  ``TANDEM_FUZZ_CASES`` asks for more (``make
fuzz``), and ``TANDEM_FUZZ_SEED`` begins with the round that a failure has named.
"""

from __future__ import annotations

import math
import os
import secrets
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")
EXAMPLES_A_ROUND = 10
ENTROPY_BYTES = 4000
PROGRESS_SECONDS = 10.0

# where varints, lengths, wire types and signs change
_TELLING = (0, 1, 0x7F, 0x80, 0xFF, 0x08, 0x0A, 0x12, 0x1A, 0x22, 0x2A)
_FLOATS = (0.0, -0.0, 1.0, 0.7, -1.0, 5e-324, 1e308, math.inf, -math.inf, math.nan)


class Entropy:
    """Choices made from bytes, one after the other; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """So many bytes."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1."""
        return int.from_bytes(self.take(1 if limit <= 256 else 4), "big") % limit

    def pick(self, values: Sequence[T]) -> T:
        """One of ``values``."""
        return values[self.below(len(values))]

    def chance(self, one_in: int) -> bool:
        """Once in so many times."""
        return self.below(one_in) == one_in - 1

    def uint(self, bits: int = 32) -> int:
        """Mostly small, or near the end of the range, or any."""
        match self.below(4):
            case 0:
                return (1 << self.below(bits + 1)) - 1
            case 1:
                return int.from_bytes(self.take(8), "big") % (1 << bits)
            case _:
                return self.below(64)

    def double(self) -> float:
        """Telling values, or any."""
        if self.chance(3):
            return float(struct.unpack("<d", self.take(8))[0])
        return self.pick(_FLOATS)

    def spoil(self, original: bytes, other: bytes = b"") -> bytes:
        """Bytes replaced, put in, taken out, doubled, cut off, or joined with ``other``'s."""
        data = bytearray(original)
        for _ in range(1 + self.below(3)):
            at = self.below(len(data) + 1)
            stop = at + self.pick((1, 1, 2, 4, 16))
            match self.pick("rrrbidtjx"):
                case "r":
                    data[at : at + 1] = bytes([self.pick(_TELLING)])
                case "b":
                    data[at : at + 1] = self.take(1)
                case "i":
                    data[at:at] = self.take(self.below(8))
                case "d":
                    del data[at:stop]
                case "t":
                    data[at:at] = data[at:stop]
                case "j":
                    data[at:] = other[at:]
                case _:
                    del data[at:]
        return bytes(data)


def run_rounds(check: Callable[[Entropy], int], *, at_least: int, shrink: bool = True) -> int:
    """Call ``check``, which returns how many cases it made of what it was given, until there were
    ``at_least`` (or as many as the environment asks for); the number of cases.  Without ``shrink``
    the first failure ends the test as it is."""
    goal = int(os.environ.get("TANDEM_FUZZ_CASES", at_least))
    first = int(os.environ.get("TANDEM_FUZZ_SEED", secrets.randbits(32)))
    began = shown = time.monotonic()
    done = rounds = 0
    while done < goal:
        try:
            done += _run_round(check, first + rounds, shrink)
        except BaseException as error:
            error.add_note(f"once more: TANDEM_FUZZ_SEED={first + rounds}")
            raise
        rounds += 1
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS or done >= goal:
            shown = now
            text = f"{done:,} of {goal:,} cases in {now - began:.1f} s, {rounds} rounds"
            print(f"{check.__name__}: {text}", file=sys.stderr, flush=True)
    return done


def _run_round(check: Callable[[Entropy], int], round_seed: int, shrink: bool) -> int:
    done = 0

    @seed(round_seed)
    @settings(
        max_examples=EXAMPLES_A_ROUND,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    @given(st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES))
    def every(data: bytes) -> None:
        nonlocal done
        done += check(Entropy(data))

    every()
    return done
