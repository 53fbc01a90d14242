from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge.context_source import ContextCodec, HiddenStateSource, TokenSource
from shared.messages import ContextKind
from shared.tensor_codec import decode


class States:
    def __init__(self) -> None:
        self.values = np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32)

    def hidden_states(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        return self.values[start:stop]


@pytest.mark.parametrize(
    ("codec", "error"),
    [
        (ContextCodec.FLOAT32, 0.0),
        (ContextCodec.FP16, 0.002),
        (ContextCodec.INT8, 0.01),
        (ContextCodec.INT4, 0.12),
    ],
)
def test_hidden_states_arrive_within_the_codecs_error(codec: ContextCodec, error: float) -> None:
    states = States()
    payload = HiddenStateSource(states, 64, codec).payload(3, 9)
    arrived = decode(payload, max_rows=100, columns=64)
    assert np.sqrt(np.square(arrived - states.values[3:9]).mean()) <= error


def test_declared_size_covers_what_is_sent() -> None:
    for codec in ContextCodec:
        if codec is not ContextCodec.TOKENS:
            source = HiddenStateSource(States(), 64, codec)
            assert len(source.payload(0, 12).data) <= 12 * source.bytes_per_position + 32


def test_token_ids_are_read_as_the_text_grows() -> None:
    ids = [7, 8]
    source = TokenSource(ids)
    ids.append(9)
    assert source.kind is ContextKind.TOKEN_IDS
    assert source.payload(1, 3) == (8, 9)
