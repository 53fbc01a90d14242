"""What the cloud has decided in one session, by position, in memory that is counted."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import numpy as np

from shared.sampling import Choice

_ENTRY = np.dtype([("token_id", np.int32), ("logprob", np.float64)])
_NONE = (-1, np.nan)
ENTRY_BYTES = _ENTRY.itemsize


class Decisions(MutableMapping[int, Choice]):
    """Choices for positions from 1 to ``capacity``, which grows with the context before them."""

    def __init__(self) -> None:
        self._entries = np.empty(0, _ENTRY)

    @property
    def capacity(self) -> int:
        """Positions that there is memory for."""
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._entries.nbytes

    def grow(self, capacity: int) -> None:
        """Have memory for so many positions."""
        if capacity > len(self._entries):
            grown = np.full(capacity, np.array(_NONE, _ENTRY))
            grown[: len(self._entries)] = self._entries
            self._entries = grown

    def cut(self, position: int) -> None:
        """Forget what was decided behind ``position``; its memory stays."""
        self._entries[position:] = _NONE

    def clear(self) -> None:
        """Forget all and give the memory back."""
        self._entries = np.empty(0, _ENTRY)

    def __getitem__(self, position: int) -> Choice:
        if not 1 <= position <= len(self._entries):
            raise KeyError(position)
        token_id, logprob = self._entries[position - 1].item()
        if token_id < 0:
            raise KeyError(position)
        return Choice(token_id, logprob)

    def __setitem__(self, position: int, choice: Choice) -> None:
        assert 1 <= position <= len(self._entries), "a decision without its context"
        self._entries[position - 1] = (choice.token_id, choice.logprob)

    def __delitem__(self, position: int) -> None:
        self[position]  # a KeyError where there is none
        self._entries[position - 1] = _NONE

    def __iter__(self) -> Iterator[int]:
        return (int(index) + 1 for index in np.flatnonzero(self._entries["token_id"] >= 0))

    def __len__(self) -> int:
        return int(np.count_nonzero(self._entries["token_id"] >= 0))
