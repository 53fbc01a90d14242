"""Messages: what is sent arrives, and no bytes at all raise anything but InvalidMessageError."""

from __future__ import annotations

import contextlib

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import InvalidMessageError
from shared.messages import (
    MAX_COLUMNS,
    MAX_ERROR_CHARACTERS,
    MAX_LOOKAHEAD,
    MAX_POSITIONS,
    PROTOCOL_VERSION,
    Ahead,
    Close,
    Closed,
    CloudMessage,
    Context,
    ContextKind,
    Decision,
    EdgeMessage,
    ErrorCode,
    ErrorReply,
    Escalate,
    Open,
    Opened,
    Truncate,
    cloud_message_from_proto,
    cloud_message_to_proto,
    edge_message_from_bytes,
    edge_message_to_proto,
)
from shared.sampling import MAX_SEED, Sampling
from shared.tensor_codec import EncodedTensor, Encoding, decode

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
positions = st.integers(0, MAX_POSITIONS)
starts = st.integers(0, MAX_POSITIONS // 2)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, MAX_SEED),
)
tensors = st.builds(
    EncodedTensor,
    rows=st.integers(1, MAX_POSITIONS // 2),
    columns=st.integers(1, MAX_COLUMNS),
    encoding=st.sampled_from(Encoding),
    compressed=st.booleans(),
    data=st.binary(max_size=64),
)
edge_bodies = st.one_of(
    st.builds(
        Open,
        protocol_version=st.just(PROTOCOL_VERSION),
        session_id=st.binary(min_size=16, max_size=16),
        bundle_fingerprint=st.binary(min_size=32, max_size=32).map(bytes.hex),
        sampling=samplings,
        context_kind=st.sampled_from(ContextKind),
    ),
    st.builds(Context, starts, tensors),
    st.builds(Context, starts, st.lists(uint32, min_size=1, max_size=9).map(tuple)),
    st.builds(Escalate, st.integers(1, MAX_POSITIONS), positions, st.none() | uint32),
    st.builds(
        Escalate,
        st.integers(1, MAX_POSITIONS),
        guess=st.none() | uint32,
        lookahead=st.integers(0, MAX_LOOKAHEAD),
    ),
    st.builds(Truncate, positions),
    st.builds(Close),
)
edge_messages = st.builds(EdgeMessage, uint64, edge_bodies)
decisions = st.builds(
    Decision,
    st.integers(1, MAX_POSITIONS),
    uint32,
    st.floats(max_value=0, allow_infinity=False, allow_nan=False),
    uint32,
)
store_ids = st.one_of(st.just(b""), st.binary(min_size=16, max_size=16))
cloud_bodies = st.one_of(
    positions.flatmap(
        lambda limit: st.builds(
            Opened,
            st.integers(0, limit),
            st.just(limit),
            uint32,
            st.integers(1, 2**32 - 1),
            store_ids,
        )
    ),
    decisions,
    decisions.flatmap(lambda said: st.builds(Ahead, st.just(said), st.integers(0, said.position))),
    st.builds(Closed, uint64, uint64),
    st.builds(ErrorReply, st.sampled_from(ErrorCode), st.text(max_size=MAX_ERROR_CHARACTERS)),
)
cloud_messages = st.builds(CloudMessage, uint64, cloud_bodies)


@given(edge_messages)
@settings(deadline=None)
def test_an_edges_message_arrives_as_it_was_sent(message: EdgeMessage) -> None:
    data = edge_message_to_proto(message).SerializeToString()
    assert edge_message_from_bytes(data) == message


@given(cloud_messages)
@settings(deadline=None)
def test_a_clouds_message_arrives_as_it_was_sent(message: CloudMessage) -> None:
    data = cloud_message_to_proto(message).SerializeToString()
    assert cloud_message_from_proto(pb.CloudMessage.FromString(data)) == message


def read_as_the_cloud_does(data: bytes) -> None:
    """Parse, and decode what a tensor claims to hold, as a model of 64 columns would."""
    with contextlib.suppress(InvalidMessageError):
        body = edge_message_from_bytes(data).body
        if isinstance(body, Context) and isinstance(body.payload, EncodedTensor):
            values = decode(body.payload, max_rows=512, columns=64)
            assert np.isfinite(values).all()


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_are_at_worst_an_invalid_message(data: bytes) -> None:
    read_as_the_cloud_does(data)


@given(edge_messages, st.data())
@settings(deadline=None)
def test_a_mutated_message_is_at_worst_an_invalid_message(
    message: EdgeMessage, data: st.DataObject
) -> None:
    read_as_the_cloud_does(_mutated(edge_message_to_proto(message).SerializeToString(), data))


@given(cloud_messages, st.data())
@settings(deadline=None)
def test_a_mutated_answer_is_at_worst_an_invalid_message(
    message: CloudMessage, data: st.DataObject
) -> None:
    mutated = _mutated(cloud_message_to_proto(message).SerializeToString(), data)
    with contextlib.suppress(InvalidMessageError, DecodeError):  # gRPC itself meets the latter
        cloud_message_from_proto(pb.CloudMessage.FromString(mutated))


# every field of an Open at random, most of it out of range
@given(
    st.builds(
        pb.Open,
        protocol_version=st.integers(0, 3),
        session_id=st.binary(max_size=20),
        bundle_fingerprint=st.binary(max_size=40),
        sampling=st.builds(pb.Sampling, temperature=st.floats(), top_p=st.floats(), seed=uint64),
        context_kind=st.integers(-1, 5),
    )
)
@settings(deadline=None)
def test_an_open_of_random_fields_is_at_worst_an_invalid_message(opening: pb.Open) -> None:
    read_as_the_cloud_does(pb.EdgeMessage(step=1, open=opening).SerializeToString())


def _mutated(original: bytes, data: st.DataObject) -> bytes:
    """Some bytes replaced, put in or taken out."""
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        kept = at + data.draw(st.integers(0, 2))
        mutated[at:kept] = data.draw(st.binary(max_size=2))
    return bytes(mutated)
