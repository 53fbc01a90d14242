"""Messages on the wire: what is refused, and by what name (round trips: tests/property)."""

from __future__ import annotations

import math
from typing import Any

import pytest

from protos.tandem.v1 import collaboration_pb2 as pb
from shared import errors
from shared.errors import (
    AuthenticationError,
    BudgetExceededError,
    CloudInternalError,
    CloudShuttingDownError,
    CodecError,
    ConfigurationError,
    ContextGapError,
    FingerprintMismatchError,
    InvalidMessageError,
    NoRoomError,
    ProtocolVersionError,
    SessionTakenOverError,
    TandemError,
)
from shared.messages import (
    MAX_ERROR_CHARACTERS,
    MAX_POSITIONS,
    PROTOCOL_VERSION,
    CloudMessage,
    Context,
    EdgeMessage,
    ErrorCode,
    ErrorReply,
    cloud_message_from_proto,
    edge_message_from_bytes,
    edge_message_from_proto,
    edge_message_to_proto,
    error_of,
    error_reply,
)
from shared.tensor_codec import EncodedTensor, Encoding


def opening(**changes: Any) -> pb.EdgeMessage:
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "session_id": b"s" * 16,
        "bundle_fingerprint": b"f" * 32,
        "sampling": pb.Sampling(temperature=0.7, top_p=0.9, seed=3),
        "context_kind": pb.CONTEXT_KIND_TOKEN_IDS,
    }
    return pb.EdgeMessage(step=1, open=pb.Open(**(fields | changes)))


def tensor(**changes: Any) -> pb.EdgeMessage:
    fields: dict[str, Any] = {
        "rows": 1,
        "columns": 2,
        "encoding": pb.TENSOR_ENCODING_FLOAT32,
        "compression": pb.COMPRESSION_NONE,
        "data": b"12345678",
    }
    return pb.EdgeMessage(context=pb.Context(hidden_states=pb.Tensor(**(fields | changes))))


def ids(position: int, *token_ids: int) -> pb.EdgeMessage:
    return pb.EdgeMessage(
        position=position, context=pb.Context(token_ids=pb.TokenIds(ids=token_ids))
    )


@pytest.mark.parametrize("right", [opening(), tensor(), ids(0, 1)])
def test_what_the_refusals_below_start_from_is_accepted(right: pb.EdgeMessage) -> None:
    assert edge_message_to_proto(edge_message_from_proto(right)) == right


@pytest.mark.parametrize(
    ("wire", "named"),
    [
        (pb.EdgeMessage(), "without a body"),
        (opening(session_id=b"s" * 15), "session_id has 15"),
        (opening(session_id=b"s" * 17), "session_id has 17"),
        (opening(bundle_fingerprint=b""), "fingerprint has 0"),
        (opening(sampling=pb.Sampling(temperature=-1, top_p=1)), "temperature"),
        (opening(sampling=pb.Sampling(temperature=math.nan, top_p=1)), "temperature"),
        (opening(sampling=pb.Sampling(temperature=math.inf, top_p=1)), "temperature"),
        (opening(sampling=pb.Sampling(top_p=0)), "top_p"),
        (opening(sampling=pb.Sampling(top_p=math.nan)), "top_p"),
        (opening(context_kind=pb.CONTEXT_KIND_UNSPECIFIED), "kind 0"),
        (opening(context_kind=7), "kind 7"),
        (pb.EdgeMessage(position=1, open=opening().open), "position 1"),
        (pb.EdgeMessage(position=1, close=pb.Close()), "position 1"),
        (pb.EdgeMessage(context=pb.Context()), "without a payload"),
        (ids(0), "without token ids"),
        (ids(MAX_POSITIONS + 1, 1), "position"),
        (ids(MAX_POSITIONS, 1), "end of the context"),
        (pb.EdgeMessage(escalate=pb.Escalate()), "position 0"),
        (pb.EdgeMessage(position=1, escalate=pb.Escalate(burst=MAX_POSITIONS + 1)), "burst"),
        (pb.EdgeMessage(position=1, escalate=pb.Escalate(lookahead=65)), "lookahead"),
        (pb.EdgeMessage(position=1, escalate=pb.Escalate(lookahead=1, burst=1)), "not both"),
        (pb.EdgeMessage(position=2**32 - 1, truncate=pb.Truncate()), "position"),
    ],
)
def test_a_bad_field_is_refused_by_name(wire: pb.EdgeMessage, named: str) -> None:
    with pytest.raises(InvalidMessageError, match=named):
        edge_message_from_proto(wire)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 0},
        {"rows": MAX_POSITIONS + 1},
        {"columns": 0},
        {"columns": (1 << 16) + 1},
        {"encoding": 0},
        {"encoding": 9},
        {"compression": 0},
        {"compression": 9},
    ],
)
def test_a_bad_tensor_is_a_codec_error(changes: dict[str, int]) -> None:
    with pytest.raises(CodecError):
        edge_message_from_proto(tensor(**changes))


def test_another_version_is_told_before_its_fields_are_read() -> None:
    with pytest.raises(ProtocolVersionError, match="is not supported"):
        edge_message_from_proto(
            opening(protocol_version=PROTOCOL_VERSION + 1, session_id=b"longer in a later one")
        )


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", opening().SerializeToString()[:-1]])
def test_bytes_that_are_no_protobuf_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessageError, match="not an EdgeMessage"):
        edge_message_from_bytes(data)


def test_fields_of_a_later_release_are_ignored() -> None:
    later = ids(3, 1).SerializeToString() + b"\xfa\x01\x03new"  # field 31
    assert edge_message_from_bytes(later) == EdgeMessage(0, Context(3, (1,)))


def test_context_counts_its_positions() -> None:
    assert Context(5, (1, 2, 3)).count == 3
    assert Context(5, EncodedTensor(7, 2, Encoding.FLOAT16, False, b"")).count == 7


@pytest.mark.parametrize(
    ("wire", "named"),
    [
        (pb.CloudMessage(), "without a body"),
        (pb.CloudMessage(position=5, opened=pb.Opened(max_positions=4)), "held 5"),
        (pb.CloudMessage(opened=pb.Opened(max_positions=2**32 - 1)), "max_positions"),
        (pb.CloudMessage(opened=pb.Opened(max_positions=4)), "without credits"),
        (pb.CloudMessage(opened=pb.Opened(credits=1, store_id=bytes(15))), "15 bytes"),
        (pb.CloudMessage(decision=pb.Decision(logprob=-1)), "position 0"),
        (pb.CloudMessage(position=1, decision=pb.Decision(logprob=math.nan)), "logprob"),
        (pb.CloudMessage(position=1, decision=pb.Decision(logprob=-math.inf)), "logprob"),
        (pb.CloudMessage(position=1, decision=pb.Decision(logprob=0.5)), "logprob"),
        (pb.CloudMessage(ahead=pb.Ahead(decision=pb.Decision(logprob=-1))), "position 0"),
        (pb.CloudMessage(position=1, ahead=pb.Ahead(decision=pb.Decision(logprob=2))), "logprob"),
        (pb.CloudMessage(position=1, ahead=pb.Ahead(base=2)), "base"),
        (pb.CloudMessage(position=1, closed=pb.Closed()), "position 1"),
        (pb.CloudMessage(position=1, error=pb.Error()), "position 1"),
    ],
)
def test_a_bad_answer_is_refused_by_name(wire: pb.CloudMessage, named: str) -> None:
    with pytest.raises(InvalidMessageError, match=named):
        cloud_message_from_proto(wire)


def test_an_unknown_error_still_ends_the_session() -> None:
    wire = pb.CloudMessage(step=4, error=pb.Error(code=99, message="x" * 9999))  # type: ignore[arg-type]
    wanted = ErrorReply(ErrorCode.INTERNAL, "x" * MAX_ERROR_CHARACTERS)
    assert cloud_message_from_proto(wire) == CloudMessage(4, wanted)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidMessageError, ErrorCode.INVALID_MESSAGE),
        (ProtocolVersionError, ErrorCode.UNSUPPORTED_VERSION),
        (FingerprintMismatchError, ErrorCode.FINGERPRINT_MISMATCH),
        (ContextGapError, ErrorCode.CONTEXT_GAP),
        (BudgetExceededError, ErrorCode.BUDGET_EXCEEDED),
        (NoRoomError, ErrorCode.NO_ROOM),
        (SessionTakenOverError, ErrorCode.SESSION_TAKEN_OVER),
        (CloudShuttingDownError, ErrorCode.SHUTTING_DOWN),
        (CloudInternalError, ErrorCode.INTERNAL),
        (AuthenticationError, ErrorCode.UNAUTHENTICATED),
    ],
)
def test_errors_cross_the_wire(error: type[TandemError], code: ErrorCode) -> None:
    reply = error_reply(error("why"))
    assert reply == ErrorReply(code, "why")
    assert type(error_of(reply)) is error
    assert str(error_of(reply)) == "why"


def test_every_code_has_its_error() -> None:
    assert {type(error_of(ErrorReply(code, ""))).__name__ for code in ErrorCode} <= set(
        vars(errors)
    )


def test_an_error_without_a_code_tells_nothing_of_itself() -> None:
    reply = error_reply(ConfigurationError("a path of ours"))
    assert reply.code is ErrorCode.INTERNAL
    assert "path" not in reply.message
    assert type(error_of(error_reply(CodecError("bad")))) is InvalidMessageError
