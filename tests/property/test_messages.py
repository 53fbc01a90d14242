"""Whatever a message holds, it arrives; whatever arrives, only a typed error comes of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import InvalidMessageError
from shared.messages import (
    MAX_COLUMNS,
    MAX_POSITIONS,
    PROTOCOL_VERSION,
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
from shared.tensor_codec import EncodedTensor, Encoding

UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, MAX_POSITIONS)
TENSORS = st.builds(
    EncodedTensor,
    st.integers(1, MAX_POSITIONS // 2),
    st.integers(1, MAX_COLUMNS),
    st.sampled_from(Encoding),
    st.booleans(),
    st.binary(max_size=64),
)
OPENS = st.builds(
    Open,
    st.just(PROTOCOL_VERSION),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.builds(
        Sampling,
        st.floats(0, 100),
        st.floats(0, 1, exclude_min=True),
        st.integers(0, MAX_SEED),
    ),
    st.sampled_from(ContextKind),
)
CONTEXTS = st.builds(
    Context,
    st.integers(0, MAX_POSITIONS // 2),
    TENSORS | st.lists(UINT32, min_size=1, max_size=50).map(tuple),
)
EDGE_BODIES = st.one_of(
    OPENS,
    CONTEXTS,
    st.builds(Escalate, st.integers(1, MAX_POSITIONS), POSITIONS),
    st.builds(Truncate, POSITIONS),
    st.just(Close()),
)
CLOUD_BODIES = st.one_of(
    st.tuples(POSITIONS, POSITIONS, UINT32).map(lambda t: Opened(min(t[:2]), max(t[:2]), t[2])),
    st.builds(
        Decision,
        st.integers(1, MAX_POSITIONS),
        UINT32,
        st.floats(max_value=0, allow_infinity=False, allow_nan=False),
        UINT32,
    ),
    st.builds(Closed, UINT64, UINT64),
    st.builds(ErrorReply, st.sampled_from(ErrorCode), st.text(max_size=100)),
)


@given(st.builds(EdgeMessage, UINT64, EDGE_BODIES))
def test_every_edge_message_arrives(message: EdgeMessage) -> None:
    assert edge_message_from_bytes(edge_message_to_proto(message).SerializeToString()) == message


@given(st.builds(CloudMessage, UINT64, CLOUD_BODIES))
def test_every_cloud_message_arrives(message: CloudMessage) -> None:
    data = cloud_message_to_proto(message).SerializeToString()
    assert cloud_message_from_proto(pb.CloudMessage.FromString(data)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    check(data)


@given(
    st.builds(EdgeMessage, UINT64, EDGE_BODIES),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 200),
)
def test_a_damaged_message_is_a_message_or_an_error(
    message: EdgeMessage, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(edge_message_to_proto(message).SerializeToString())
    for at, value in changes:
        if data:
            data[at % len(data)] = value
    check(bytes(data))
    check(bytes(data[: max(0, len(data) - cut)]))


@given(st.data())
def test_any_fields_are_a_message_or_an_error(data: st.DataObject) -> None:
    """Protobuf that is well formed, filled with anything at all."""
    wire = pb.EdgeMessage(step=data.draw(UINT64), position=data.draw(UINT32))
    fill(wire.open if data.draw(st.booleans()) else wire.context, data)
    check(wire.SerializeToString())


def fill(message: object, data: st.DataObject) -> None:
    """Set the scalar fields of a protobuf message, and of those inside it, to anything."""
    for descriptor in message.DESCRIPTOR.fields:  # type: ignore[attr-defined]
        if descriptor.message_type is not None:
            if data.draw(st.booleans()):
                inner = getattr(message, descriptor.name)
                inner.SetInParent()
                fill(inner, data)
        elif descriptor.is_repeated:
            getattr(message, descriptor.name).extend(data.draw(st.lists(UINT32, max_size=4)))
        elif descriptor.cpp_type == descriptor.CPPTYPE_DOUBLE:
            setattr(message, descriptor.name, data.draw(st.floats()))
        elif descriptor.cpp_type == descriptor.CPPTYPE_STRING:
            setattr(message, descriptor.name, data.draw(st.binary(max_size=40)))
        elif descriptor.cpp_type == descriptor.CPPTYPE_ENUM:
            setattr(message, descriptor.name, data.draw(st.integers(-(2**31), 2**31 - 1)))
        elif descriptor.cpp_type == descriptor.CPPTYPE_UINT64:
            setattr(message, descriptor.name, data.draw(UINT64))
        else:
            setattr(message, descriptor.name, data.draw(UINT32))


def check(data: bytes) -> None:
    """A message that is taken survives another round; one that is not raises the one error."""
    try:
        message = edge_message_from_bytes(data)
    except InvalidMessageError:
        return
    again = edge_message_from_bytes(edge_message_to_proto(message).SerializeToString())
    assert again == message
