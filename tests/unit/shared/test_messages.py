"""Messages keep every field on the way over the wire, and nothing malformed gets past it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protos.tandem.v1 import collaboration_pb2 as pb
from shared import errors
from shared.messages import (
    MAX_ERROR_CHARACTERS,
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
    edge_message_from_proto,
    edge_message_to_proto,
    error_of,
    error_reply,
)
from shared.sampling import Sampling
from shared.tensor_codec import EncodedTensor, Encoding

OPEN = Open(
    PROTOCOL_VERSION,
    bytes(range(16)),
    "ab" * 32,
    Sampling(0.7, 0.95, 2**64 - 1),
    ContextKind.HIDDEN_STATES,
)
TENSOR = EncodedTensor(3, 64, Encoding.INT4, compressed=True, data=b"\x00\x01")


@pytest.mark.parametrize(
    "body",
    [
        OPEN,
        Context(7, TENSOR),
        Context(0, (1, 2, 2**32 - 1)),
        Escalate(9, burst=3),
        Truncate(0),
        Close(),
    ],
    ids=lambda body: type(body).__name__,
)
def test_what_the_edge_says_arrives(
    body: Open | Context | Escalate | Truncate | Close,
) -> None:
    message = EdgeMessage(2**64 - 1, body)
    data = edge_message_to_proto(message).SerializeToString()
    assert edge_message_from_bytes(data) == message


@pytest.mark.parametrize(
    "body",
    [
        Opened(4, 512, 1 << 22),
        Decision(5, 49_151, -0.25, 1_234),
        Closed(2**40, 2**33),
        ErrorReply(ErrorCode.CONTEXT_GAP, "a gap"),
    ],
    ids=lambda body: type(body).__name__,
)
def test_what_the_cloud_says_arrives(body: Opened | Decision | Closed | ErrorReply) -> None:
    message = CloudMessage(12, body)
    wire = pb.CloudMessage.FromString(cloud_message_to_proto(message).SerializeToString())
    assert cloud_message_from_proto(wire) == message


def test_sampling_arrives_to_the_last_bit() -> None:
    wire = edge_message_to_proto(EdgeMessage(1, OPEN))
    body = edge_message_from_proto(wire).body
    assert isinstance(body, Open)
    assert body.sampling.temperature == 0.7  # a float32 field would give 0.699999988


def changed_open(change: Callable[[pb.Open], object]) -> pb.EdgeMessage:
    wire = edge_message_to_proto(EdgeMessage(1, OPEN))
    change(wire.open)
    return wire


def context(tensor: pb.Tensor, position: int = 0) -> pb.EdgeMessage:
    return pb.EdgeMessage(position=position, context=pb.Context(hidden_states=tensor))


def a_tensor(**changes: int) -> pb.Tensor:
    fields = {
        "rows": 1,
        "columns": 64,
        "encoding": pb.TENSOR_ENCODING_FLOAT16,
        "compression": pb.COMPRESSION_NONE,
    }
    return pb.Tensor(**(fields | changes))  # type: ignore[arg-type]


TOO_FAR = MAX_POSITIONS + 1
BAD_EDGE_MESSAGES = {
    "no body": pb.EdgeMessage(step=1),
    "session id": changed_open(lambda o: setattr(o, "session_id", b"short")),
    "fingerprint": changed_open(lambda o: setattr(o, "bundle_fingerprint", b"\x00" * 31)),
    "no kind": changed_open(lambda o: setattr(o, "context_kind", 0)),
    "unknown kind": changed_open(lambda o: setattr(o, "context_kind", 9)),
    "temperature": changed_open(lambda o: setattr(o.sampling, "temperature", float("nan"))),
    "negative temperature": changed_open(lambda o: setattr(o.sampling, "temperature", -1.0)),
    "no top_p": changed_open(lambda o: o.ClearField("sampling")),
    "open with a position": pb.EdgeMessage(position=1, open=changed_open(lambda _: None).open),
    "close with a position": pb.EdgeMessage(position=1, close=pb.Close()),
    "position": pb.EdgeMessage(position=TOO_FAR, truncate=pb.Truncate()),
    "question at 0": pb.EdgeMessage(escalate=pb.Escalate()),
    "burst": pb.EdgeMessage(position=1, escalate=pb.Escalate(burst=TOO_FAR)),
    "no payload": pb.EdgeMessage(context=pb.Context()),
    "no ids": pb.EdgeMessage(context=pb.Context(token_ids=pb.TokenIds())),
    "end": pb.EdgeMessage(
        position=MAX_POSITIONS, context=pb.Context(token_ids=pb.TokenIds(ids=[1]))
    ),
    "no rows": context(a_tensor(rows=0)),
    "no columns": context(a_tensor(columns=0)),
    "columns": context(a_tensor(columns=1 << 17)),
    "rows": context(a_tensor(rows=TOO_FAR)),
    "no encoding": context(a_tensor(encoding=0)),
    "unknown encoding": context(a_tensor(encoding=77)),
    "no compression": context(a_tensor(compression=0)),
    "unknown compression": context(a_tensor(compression=5)),
    "end of rows": context(a_tensor(rows=2), position=MAX_POSITIONS - 1),
}


@pytest.mark.parametrize("wire", BAD_EDGE_MESSAGES.values(), ids=BAD_EDGE_MESSAGES.keys())
def test_an_edges_bad_field_is_refused(wire: pb.EdgeMessage) -> None:
    with pytest.raises(errors.InvalidMessageError):
        edge_message_from_bytes(wire.SerializeToString())


BAD_CLOUD_MESSAGES = {
    "no body": pb.CloudMessage(step=1),
    "held beyond the limit": pb.CloudMessage(position=9, opened=pb.Opened(max_positions=8)),
    "limit": pb.CloudMessage(opened=pb.Opened(max_positions=TOO_FAR)),
    "decision at 0": pb.CloudMessage(decision=pb.Decision()),
    "nan": pb.CloudMessage(position=1, decision=pb.Decision(logprob=float("nan"))),
    "infinite": pb.CloudMessage(position=1, decision=pb.Decision(logprob=float("-inf"))),
    "more than certain": pb.CloudMessage(position=1, decision=pb.Decision(logprob=0.5)),
    "closed with a position": pb.CloudMessage(position=1, closed=pb.Closed()),
    "error with a position": pb.CloudMessage(position=1, error=pb.Error()),
}


@pytest.mark.parametrize("wire", BAD_CLOUD_MESSAGES.values(), ids=BAD_CLOUD_MESSAGES.keys())
def test_a_clouds_bad_field_is_refused(wire: pb.CloudMessage) -> None:
    with pytest.raises(errors.InvalidMessageError):
        cloud_message_from_proto(wire)


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(errors.InvalidMessageError, match="EdgeMessage"):
        edge_message_from_bytes(b"\xff\xff\xff")


def test_another_version_is_named_before_its_fields_are_read() -> None:
    wire = pb.EdgeMessage(open=pb.Open(protocol_version=2, session_id=b"of another shape"[:3]))
    with pytest.raises(errors.ProtocolVersionError, match="version 2"):
        edge_message_from_proto(wire)


def test_an_unknown_error_code_still_ends_the_session() -> None:
    wire = pb.CloudMessage(error=pb.Error(code=99, message="new"))  # type: ignore[arg-type]
    assert cloud_message_from_proto(wire).body == ErrorReply(ErrorCode.INTERNAL, "new")


def test_a_long_error_is_cut() -> None:
    reply = error_reply(errors.ContextGapError("x" * 10_000))
    assert len(reply.message) == MAX_ERROR_CHARACTERS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidMessageError("a"), ErrorCode.INVALID_MESSAGE),
        (errors.ProtocolVersionError("b"), ErrorCode.UNSUPPORTED_VERSION),
        (errors.FingerprintMismatchError("c"), ErrorCode.FINGERPRINT_MISMATCH),
        (errors.ContextGapError("d"), ErrorCode.CONTEXT_GAP),
        (errors.BudgetExceededError("e"), ErrorCode.BUDGET_EXCEEDED),
        (errors.SessionTakenOverError("f"), ErrorCode.SESSION_TAKEN_OVER),
        (errors.CloudShuttingDownError("g"), ErrorCode.SHUTTING_DOWN),
        (errors.CloudInternalError("h"), ErrorCode.INTERNAL),
        (errors.AuthenticationError("i"), ErrorCode.UNAUTHENTICATED),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else "",
)
def test_errors_keep_their_type_and_text(error: errors.TandemError, code: ErrorCode) -> None:
    reply = error_reply(error)
    assert reply == ErrorReply(code, str(error))
    back = error_of(reply)
    assert (type(back), str(back)) == (type(error), str(error))


def test_every_code_has_an_error() -> None:
    for code in ErrorCode:
        assert error_reply(error_of(ErrorReply(code, "text"))).code is code


def test_a_codec_error_travels_as_a_bad_message() -> None:
    assert error_reply(errors.CodecError("bad")).code is ErrorCode.INVALID_MESSAGE


def test_an_error_without_a_code_tells_nothing_of_itself() -> None:
    reply = error_reply(errors.ConfigurationError("/secret/path"))
    assert reply.code is ErrorCode.INTERNAL
    assert "secret" not in reply.message
