"""What edge and cloud say to each other: typed dataclasses, and their protobuf form on the wire.

Whatever arrives is checked field by field here; beyond this module no message is malformed, though
it may still not fit the session (a gap, a wrong bundle) or the model (columns, token ids).
Position p is the index of a token; the decision at p follows context 0 .. p-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from google.protobuf.message import DecodeError

from protos.tandem.v1 import collaboration_pb2 as pb
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
from shared.sampling import Sampling
from shared.tensor_codec import EncodedTensor, Encoding

PROTOCOL_VERSION = 3
SESSION_ID_BYTES = 16
STORE_ID_BYTES = 16
FINGERPRINT_BYTES = 32
MAX_POSITIONS = 1 << 22
MAX_COLUMNS = 1 << 16
MAX_ERROR_CHARACTERS = 500
MAX_LOOKAHEAD = 64
MAX_ROWS = 1024  # of context in one message


class ContextKind(Enum):
    """What the edge sends as context."""

    HIDDEN_STATES = pb.CONTEXT_KIND_HIDDEN_STATES
    TOKEN_IDS = pb.CONTEXT_KIND_TOKEN_IDS


class ErrorCode(Enum):
    """Why a session ended, in the wire's words."""

    INVALID_MESSAGE = pb.ERROR_CODE_INVALID_MESSAGE
    UNSUPPORTED_VERSION = pb.ERROR_CODE_UNSUPPORTED_VERSION
    FINGERPRINT_MISMATCH = pb.ERROR_CODE_FINGERPRINT_MISMATCH
    CONTEXT_GAP = pb.ERROR_CODE_CONTEXT_GAP
    BUDGET_EXCEEDED = pb.ERROR_CODE_BUDGET_EXCEEDED
    SESSION_TAKEN_OVER = pb.ERROR_CODE_SESSION_TAKEN_OVER
    SHUTTING_DOWN = pb.ERROR_CODE_SHUTTING_DOWN
    INTERNAL = pb.ERROR_CODE_INTERNAL
    UNAUTHENTICATED = pb.ERROR_CODE_UNAUTHENTICATED
    NO_ROOM = pb.ERROR_CODE_NO_ROOM


@dataclass(frozen=True)
class Open:
    """Opens a session or takes it up again.

    ``session_id``: 16 bytes; ``bundle_fingerprint``: 64 lower-case hexadecimal digits.
    """

    protocol_version: int
    session_id: bytes
    bundle_fingerprint: str
    sampling: Sampling
    context_kind: ContextKind


@dataclass(frozen=True)
class Context:
    """Hidden states ``[rows, hidden]`` or token ids from ``position`` on; never empty, and of
    ``MAX_ROWS`` at most (what decodes hidden states sees to those)."""

    position: int
    payload: EncodedTensor | tuple[int, ...]

    @property
    def count(self) -> int:
        """Positions that the payload covers."""
        return self.payload.rows if isinstance(self.payload, EncodedTensor) else len(self.payload)


@dataclass(frozen=True)
class Escalate:
    """Asks for the token at ``position`` (1 or more).

    ``guess`` is what the edge goes on from meanwhile.  Up to ``burst`` tokens follow a decision
    that differs from it, or that had none to differ from.  Up to ``lookahead`` positions beyond the
    edge's context the cloud may go on by itself while nobody asks.
    """

    position: int
    burst: int = 0
    guess: int | None = None
    lookahead: int = 0


@dataclass(frozen=True)
class Truncate:
    """Forgets context and decisions from ``position`` on."""

    position: int


@dataclass(frozen=True)
class Close:
    """Ends the session."""


@dataclass(frozen=True)
class EdgeMessage:
    """What the edge sends; ``step`` is repeated by the answer."""

    step: int
    body: Open | Context | Escalate | Truncate | Close


@dataclass(frozen=True)
class Opened:
    """The cloud holds context 0 .. ``held_positions``-1, in the store of that name; its limits for
    this session.

    ``credits`` (1 or more): escalations that may be unanswered at once.
    """

    held_positions: int
    max_positions: int
    max_message_bytes: int
    credits: int
    store_id: bytes = b""


@dataclass(frozen=True)
class Decision:
    """The token at ``position``, its natural log-probability, and the cloud's time in µs."""

    position: int
    token_id: int
    logprob: float
    cloud_microseconds: int


@dataclass(frozen=True)
class Ahead:
    """A decision that nobody asked for yet, on the edge's text before ``base`` and the cloud's own
    words from there on."""

    decision: Decision
    base: int


@dataclass(frozen=True)
class Closed:
    """What the session cost: positions computed, summed over layers, and compute time in µs."""

    layer_positions: int
    compute_microseconds: int


@dataclass(frozen=True)
class ErrorReply:
    """The session ends with this."""

    code: ErrorCode
    message: str


@dataclass(frozen=True)
class CloudMessage:
    """What the cloud sends; ``step`` is that of the edge's message it answers."""

    step: int
    body: Opened | Decision | Ahead | Closed | ErrorReply


# ---- edge to cloud -------------------------------------------------------------------------------


def edge_message_to_proto(message: EdgeMessage) -> pb.EdgeMessage:
    """The protobuf form of ``message``."""
    body = message.body
    wire = pb.EdgeMessage(step=message.step)
    match body:
        case Open():
            wire.open.protocol_version = body.protocol_version
            wire.open.session_id = body.session_id
            wire.open.bundle_fingerprint = bytes.fromhex(body.bundle_fingerprint)
            wire.open.sampling.temperature = body.sampling.temperature
            wire.open.sampling.top_p = body.sampling.top_p
            wire.open.sampling.seed = body.sampling.seed
            wire.open.context_kind = body.context_kind.value
        case Context(position, EncodedTensor() as tensor):
            wire.position = position
            wire.context.hidden_states.CopyFrom(_tensor_to_proto(tensor))
        case Context(position, tuple() as ids):
            wire.position = position
            wire.context.token_ids.ids.extend(ids)
        case Escalate(position, burst, guess, lookahead):
            wire.position = position
            wire.escalate.burst = burst
            wire.escalate.lookahead = lookahead
            if guess is not None:
                wire.escalate.guess = guess
        case Truncate(position):
            wire.position = position
            wire.truncate.SetInParent()
        case Close():
            wire.close.SetInParent()
    return wire


def edge_message_from_proto(wire: pb.EdgeMessage) -> EdgeMessage:
    """The typed form of ``wire``.

    Raises:
        InvalidMessageError: a field is missing or out of its range (ProtocolVersionError for an
            Open of another version, CodecError for a tensor's declaration).
    """
    position = _at_most(wire.position, MAX_POSITIONS, "position")
    body: Open | Context | Escalate | Truncate | Close
    match wire.WhichOneof("body"):
        case "open":
            _unused(position)
            body = _open_from_proto(wire.open)
        case "context":
            body = Context(position, _payload_from_proto(wire.context))
            _at_most(position + body.count, MAX_POSITIONS, "end of the context")
        case "escalate":
            if position < 1:
                raise InvalidMessageError("position 0 has no context to decide it from")
            burst = _at_most(wire.escalate.burst, MAX_POSITIONS, "burst")
            escalate = wire.escalate
            guess = escalate.guess if escalate.HasField("guess") else None
            lookahead = _at_most(escalate.lookahead, MAX_LOOKAHEAD, "lookahead")
            if burst and lookahead:
                raise InvalidMessageError("a question has a burst or a lookahead, not both")
            body = Escalate(position, burst, guess, lookahead)
        case "truncate":
            body = Truncate(position)
        case "close":
            _unused(position)
            body = Close()
        case _:
            raise InvalidMessageError("a message without a body")
    return EdgeMessage(wire.step, body)


def edge_message_from_bytes(data: bytes) -> EdgeMessage:
    """The typed form of serialized protobuf; raises like :func:`edge_message_from_proto`, and for
    bytes that are not protobuf."""
    try:
        wire = pb.EdgeMessage.FromString(data)
    except DecodeError:
        raise InvalidMessageError("bytes that are not an EdgeMessage") from None
    return edge_message_from_proto(wire)


def _open_from_proto(wire: pb.Open) -> Open:
    if wire.protocol_version != PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"protocol version {wire.protocol_version} is not supported, {PROTOCOL_VERSION} is: "
            "install the same release of Tandem on both sides"
        )
    if len(wire.session_id) != SESSION_ID_BYTES:
        raise InvalidMessageError(f"session_id has {len(wire.session_id)} bytes, not 16")
    if len(wire.bundle_fingerprint) != FINGERPRINT_BYTES:
        raise InvalidMessageError(f"fingerprint has {len(wire.bundle_fingerprint)} bytes, not 32")
    try:
        sampling = Sampling(wire.sampling.temperature, wire.sampling.top_p, wire.sampling.seed)
    except ConfigurationError as error:
        raise InvalidMessageError(f"sampling: {error}") from None
    try:
        kind = ContextKind(wire.context_kind)
    except ValueError:
        raise InvalidMessageError(f"context kind {wire.context_kind} is unknown") from None
    return Open(
        wire.protocol_version, wire.session_id, wire.bundle_fingerprint.hex(), sampling, kind
    )


def _payload_from_proto(wire: pb.Context) -> EncodedTensor | tuple[int, ...]:
    match wire.WhichOneof("payload"):
        case "hidden_states":
            return _tensor_from_proto(wire.hidden_states)
        case "token_ids":
            ids = wire.token_ids.ids
            if not ids:
                raise InvalidMessageError("context without token ids")
            _at_most(len(ids), MAX_ROWS, "number of token ids in a message")
            return tuple(ids)
        case _:
            raise InvalidMessageError("context without a payload")


_ENCODING_TO_WIRE = {
    Encoding.FLOAT32: pb.TENSOR_ENCODING_FLOAT32,
    Encoding.FLOAT16: pb.TENSOR_ENCODING_FLOAT16,
    Encoding.INT8: pb.TENSOR_ENCODING_INT8,
    Encoding.INT4: pb.TENSOR_ENCODING_INT4,
}
_ENCODING_FROM_WIRE = {wire: encoding for encoding, wire in _ENCODING_TO_WIRE.items()}


def _tensor_to_proto(tensor: EncodedTensor) -> pb.Tensor:
    return pb.Tensor(
        rows=tensor.rows,
        columns=tensor.columns,
        encoding=_ENCODING_TO_WIRE[tensor.encoding],
        compression=pb.COMPRESSION_ZSTD if tensor.compressed else pb.COMPRESSION_NONE,
        data=tensor.data,
    )


def _tensor_from_proto(wire: pb.Tensor) -> EncodedTensor:
    encoding = _ENCODING_FROM_WIRE.get(wire.encoding)
    if encoding is None:
        raise CodecError(f"tensor encoding {wire.encoding} is unknown")
    if wire.compression not in (pb.COMPRESSION_NONE, pb.COMPRESSION_ZSTD):
        raise CodecError(f"compression {wire.compression} is unknown")
    if not (1 <= wire.rows <= MAX_POSITIONS and 1 <= wire.columns <= MAX_COLUMNS):
        raise CodecError(f"a tensor of {wire.rows} x {wire.columns} is out of range")
    compressed = wire.compression == pb.COMPRESSION_ZSTD
    return EncodedTensor(wire.rows, wire.columns, encoding, compressed, wire.data)


# ---- cloud to edge -------------------------------------------------------------------------------


def cloud_message_to_proto(message: CloudMessage) -> pb.CloudMessage:
    """The protobuf form of ``message``."""
    body = message.body
    wire = pb.CloudMessage(step=message.step)
    match body:
        case Opened():
            wire.position = body.held_positions
            wire.opened.max_positions = body.max_positions
            wire.opened.max_message_bytes = body.max_message_bytes
            wire.opened.credits = body.credits
            wire.opened.store_id = body.store_id
        case Decision():
            wire.position = body.position
            wire.decision.CopyFrom(_decision_to_proto(body))
        case Ahead(decision, base):
            wire.position = decision.position
            wire.ahead.decision.CopyFrom(_decision_to_proto(decision))
            wire.ahead.base = base
        case Closed():
            wire.closed.layer_positions = body.layer_positions
            wire.closed.compute_microseconds = body.compute_microseconds
        case ErrorReply():
            wire.error.code = body.code.value
            wire.error.message = body.message
    return wire


def cloud_message_from_proto(wire: pb.CloudMessage) -> CloudMessage:
    """The typed form of ``wire``; raises :class:`InvalidMessageError` for a field that is missing
    or out of its range."""
    position = _at_most(wire.position, MAX_POSITIONS, "position")
    body: Opened | Decision | Ahead | Closed | ErrorReply
    match wire.WhichOneof("body"):
        case "opened":
            opened = wire.opened
            limit = _at_most(opened.max_positions, MAX_POSITIONS, "max_positions")
            held = _at_most(position, limit, "held")
            if not opened.credits:
                raise InvalidMessageError("a session without credits: it could ask nothing")
            if len(opened.store_id) not in (0, STORE_ID_BYTES):
                raise InvalidMessageError(f"a store id of {len(opened.store_id)} bytes")
            body = Opened(held, limit, opened.max_message_bytes, opened.credits, opened.store_id)
        case "decision":
            body = _decision_from_proto(position, wire.decision)
        case "ahead":
            decision = _decision_from_proto(position, wire.ahead.decision)
            body = Ahead(decision, _at_most(wire.ahead.base, position, "base"))
        case "closed":
            _unused(position)
            body = Closed(wire.closed.layer_positions, wire.closed.compute_microseconds)
        case "error":
            _unused(position)
            try:
                code = ErrorCode(wire.error.code)
            except ValueError:
                code = ErrorCode.INTERNAL  # a newer cloud's code still ends the session
            body = ErrorReply(code, wire.error.message[:MAX_ERROR_CHARACTERS])
        case _:
            raise InvalidMessageError("a message without a body")
    return CloudMessage(wire.step, body)


def _decision_to_proto(decision: Decision) -> pb.Decision:
    return pb.Decision(
        token_id=decision.token_id,
        logprob=decision.logprob,
        cloud_microseconds=decision.cloud_microseconds,
    )


def _decision_from_proto(position: int, wire: pb.Decision) -> Decision:
    if position < 1:
        raise InvalidMessageError("a decision at position 0")
    if not math.isfinite(wire.logprob) or wire.logprob > 1e-3:
        raise InvalidMessageError(f"logprob {wire.logprob} is no log-probability")
    return Decision(position, wire.token_id, wire.logprob, wire.cloud_microseconds)


def _at_most(value: int, limit: int, name: str) -> int:
    if value > limit:
        raise InvalidMessageError(f"{name} {value} is beyond {limit}")
    return value


def _unused(position: int) -> None:
    if position:
        raise InvalidMessageError(f"position {position} in a message that has none")


# ---- errors --------------------------------------------------------------------------------------

# the first class that an error is an instance of names its code, so subclasses come first
_ERROR_CODES: tuple[tuple[type[TandemError], ErrorCode], ...] = (
    (ProtocolVersionError, ErrorCode.UNSUPPORTED_VERSION),
    (InvalidMessageError, ErrorCode.INVALID_MESSAGE),
    (FingerprintMismatchError, ErrorCode.FINGERPRINT_MISMATCH),
    (ContextGapError, ErrorCode.CONTEXT_GAP),
    (NoRoomError, ErrorCode.NO_ROOM),
    (BudgetExceededError, ErrorCode.BUDGET_EXCEEDED),
    (SessionTakenOverError, ErrorCode.SESSION_TAKEN_OVER),
    (CloudShuttingDownError, ErrorCode.SHUTTING_DOWN),
    (AuthenticationError, ErrorCode.UNAUTHENTICATED),
    (CloudInternalError, ErrorCode.INTERNAL),
)
_ERROR_TYPES = {code: kind for kind, code in _ERROR_CODES}


def error_reply(error: TandemError) -> ErrorReply:
    """``error`` as the wire says it; one that has no code of its own tells nothing of itself."""
    for kind, code in _ERROR_CODES:
        if isinstance(error, kind):
            return ErrorReply(code, str(error)[:MAX_ERROR_CHARACTERS])
    return ErrorReply(ErrorCode.INTERNAL, "the cloud failed; its log says why")


def error_of(reply: ErrorReply) -> TandemError:
    """The typed error that ``reply`` stands for (a CodecError arrives as its base)."""
    return _ERROR_TYPES[reply.code](reply.message)
