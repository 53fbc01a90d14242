"""The decoder of context: what fits the model, and where it is unpacked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from cloud import row_decoder
from cloud.row_decoder import RowDecoder
from prepare.tiny_model import TINY_ARCHITECTURE as ARCH
from shared import tensor_codec
from shared.errors import CodecError, InvalidMessageError
from shared.messages import MAX_ROWS, ContextKind
from shared.tensor_codec import EncodedTensor, Encoding, encode

HIDDEN, IDS = ContextKind.HIDDEN_STATES, ContextKind.TOKEN_IDS
AT_ONCE = row_decoder._VALUES_AT_ONCE // ARCH.hidden_size  # rows


@pytest.fixture
def decoder() -> Iterator[RowDecoder]:
    with RowDecoder(ARCH) as decoder:
        yield decoder


def states(rows: int) -> EncodedTensor:
    values = np.arange(rows * ARCH.hidden_size, dtype=np.float32).reshape(rows, -1)
    return encode(values, Encoding.FLOAT32, compress=True)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Who unpacked, call by call."""
    seen: list[threading.Thread] = []
    decode = tensor_codec.decode

    def watched(*args: object, **options: object) -> object:
        seen.append(threading.current_thread())
        return decode(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(row_decoder, "decode", watched)
    return seen


@pytest.mark.parametrize("rows", [AT_ONCE + 1, MAX_ROWS])
async def test_many_rows_are_unpacked_beside_the_event_loop(
    decoder: RowDecoder, threads: list[threading.Thread], rows: int
) -> None:
    found = await decoder.rows(HIDDEN, states(rows))
    assert found.shape == (rows, ARCH.hidden_size)
    assert found[-1, -1] == rows * ARCH.hidden_size - 1
    assert [thread.name.partition("_")[0] for thread in threads] == ["decode"]


async def test_a_handful_of_rows_is_unpacked_at_once(
    decoder: RowDecoder, threads: list[threading.Thread]
) -> None:
    await decoder.rows(HIDDEN, states(AT_ONCE))
    assert threads == [threading.current_thread()]


async def test_the_event_loop_goes_on_while_rows_are_unpacked(
    decoder: RowDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacking that ends only when the event loop lets it: on the loop itself it never would."""
    let_go = threading.Event()
    decode = tensor_codec.decode

    def held_up(*args: object, **options: object) -> object:
        assert let_go.wait(60)
        return decode(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(row_decoder, "decode", held_up)
    unpacking = asyncio.create_task(decoder.rows(HIDDEN, states(MAX_ROWS)))
    await asyncio.sleep(0)
    assert (await decoder.rows(IDS, (1, 2))).tolist() == [1, 2]  # others are served meanwhile
    assert not unpacking.done()
    let_go.set()
    assert len(await unpacking) == MAX_ROWS


async def test_more_rows_than_a_message_may_have_are_refused_before_they_are_unpacked(
    decoder: RowDecoder,
) -> None:
    rows = MAX_ROWS + 1
    bomb = EncodedTensor(rows, ARCH.hidden_size, Encoding.FLOAT32, True, b"not looked at")
    with pytest.raises(CodecError, match=str(rows)):
        await decoder.rows(HIDDEN, bomb)


@pytest.mark.parametrize(
    ("kind", "payload", "named"),
    [
        (IDS, states(1), "hidden states in a session of token ids"),
        (HIDDEN, (1, 2), "token ids in a session of hidden states"),
        (IDS, (1, ARCH.vocabulary_size), f"vocabulary of {ARCH.vocabulary_size}"),
        (HIDDEN, EncodedTensor(1, 3, Encoding.FLOAT32, False, bytes(12)), "3"),
    ],
    ids=["states", "ids", "vocabulary", "columns"],
)
async def test_what_does_not_fit_the_session_or_the_model_is_refused(
    decoder: RowDecoder,
    kind: ContextKind,
    payload: EncodedTensor | tuple[int, ...],
    named: str,
) -> None:
    with pytest.raises(InvalidMessageError, match=named):
        await decoder.rows(kind, payload)
