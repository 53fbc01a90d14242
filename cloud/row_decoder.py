"""Context as arrays, checked against the model and unpacked beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidMessageError
from shared.messages import MAX_ROWS, ContextKind
from shared.model_bundle import Architecture
from shared.tensor_codec import EncodedTensor, decode

# few, so that whoever sends much does not take the cores from the model
_THREADS = 2
# a handful of rows costs the event loop less than the way to a thread and back
_VALUES_AT_ONCE = 1 << 13


class RowDecoder:
    """A ``with`` block that owns the threads that hidden states are unpacked in."""

    def __init__(self, arch: Architecture) -> None:
        self._arch = arch
        self._threads = ThreadPoolExecutor(_THREADS, "decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def rows(
        self, kind: ContextKind, payload: EncodedTensor | tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """What a session of ``kind`` is sent: hidden states ``[n, hidden]`` float32 or token ids
        ``[n]`` int32.

        Raises:
            InvalidMessageError: they are of the other kind or do not fit the model (CodecError for
                hidden states that cannot be decoded).
        """
        if isinstance(payload, EncodedTensor):
            if kind is not ContextKind.HIDDEN_STATES:
                raise InvalidMessageError("hidden states in a session of token ids")
            unpack = partial(decode, payload, max_rows=MAX_ROWS, columns=self._arch.hidden_size)
            if payload.rows * payload.columns <= _VALUES_AT_ONCE:
                return unpack()
            return await asyncio.get_running_loop().run_in_executor(self._threads, unpack)
        if kind is not ContextKind.TOKEN_IDS:
            raise InvalidMessageError("token ids in a session of hidden states")
        if max(payload) >= self._arch.vocabulary_size:
            raise InvalidMessageError(
                f"a token id is not in the vocabulary of {self._arch.vocabulary_size}"
            )
        return np.array(payload, np.int32)
