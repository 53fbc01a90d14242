"""What the edge sends the cloud as context: hidden states at the cut, or token ids."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shared.messages import ContextKind
from shared.tensor_codec import EncodedTensor, Encoding, encode, encoded_size

_MESSAGE_ID_BYTES = 5  # a token id as a protobuf varint, at the most


class ContextCodec(Enum):
    """How context travels; the 8- and 4-bit codes are compressed with Zstandard as well."""

    FLOAT32 = "float32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    TOKENS = "tokens"


_ENCODINGS = {
    ContextCodec.FLOAT32: Encoding.FLOAT32,
    ContextCodec.FP16: Encoding.FLOAT16,
    ContextCodec.INT8: Encoding.INT8,
    ContextCodec.INT4: Encoding.INT4,
}
_COMPRESSED = (ContextCodec.INT8, ContextCodec.INT4)


class HoldsHiddenStates(Protocol):
    """A generation's state on the edge (:class:`edge.exit_model.ModelState`)."""

    def hidden_states(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """``[stop - start, hidden]`` at the cut."""
        ...


class HiddenStateSource:
    """Hidden states at the cut; the cloud never sees the words, though it could guess at them."""

    kind = ContextKind.HIDDEN_STATES
    patient = False

    def __init__(self, state: HoldsHiddenStates, hidden_size: int, codec: ContextCodec) -> None:
        self._state = state
        self._encoding = _ENCODINGS[codec]
        self._compress = codec in _COMPRESSED
        self.bytes_per_position = encoded_size(1, hidden_size, self._encoding)

    def payload(self, start: int, stop: int) -> EncodedTensor:
        """Encoded ``[stop - start, hidden]``."""
        states = self._state.hidden_states(start, stop)
        return encode(states, self._encoding, compress=self._compress)


class TokenSource:
    """Token ids: a few bytes each; the cloud computes the lower layers, and sees the words."""

    kind = ContextKind.TOKEN_IDS
    patient = True
    bytes_per_position = _MESSAGE_ID_BYTES

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def payload(self, start: int, stop: int) -> tuple[int, ...]:
        """The ids themselves."""
        return tuple(self._token_ids[start:stop])
