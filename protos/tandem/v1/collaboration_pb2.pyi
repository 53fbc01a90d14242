from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ContextKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_KIND_UNSPECIFIED: _ClassVar[ContextKind]
    CONTEXT_KIND_HIDDEN_STATES: _ClassVar[ContextKind]
    CONTEXT_KIND_TOKEN_IDS: _ClassVar[ContextKind]

class TensorEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_ENCODING_UNSPECIFIED: _ClassVar[TensorEncoding]
    TENSOR_ENCODING_FLOAT32: _ClassVar[TensorEncoding]
    TENSOR_ENCODING_FLOAT16: _ClassVar[TensorEncoding]
    TENSOR_ENCODING_INT8: _ClassVar[TensorEncoding]
    TENSOR_ENCODING_INT4: _ClassVar[TensorEncoding]

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPRESSION_UNSPECIFIED: _ClassVar[Compression]
    COMPRESSION_NONE: _ClassVar[Compression]
    COMPRESSION_ZSTD: _ClassVar[Compression]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_MESSAGE: _ClassVar[ErrorCode]
    ERROR_CODE_UNSUPPORTED_VERSION: _ClassVar[ErrorCode]
    ERROR_CODE_FINGERPRINT_MISMATCH: _ClassVar[ErrorCode]
    ERROR_CODE_CONTEXT_GAP: _ClassVar[ErrorCode]
    ERROR_CODE_BUDGET_EXCEEDED: _ClassVar[ErrorCode]
    ERROR_CODE_SESSION_TAKEN_OVER: _ClassVar[ErrorCode]
    ERROR_CODE_SHUTTING_DOWN: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
CONTEXT_KIND_UNSPECIFIED: ContextKind
CONTEXT_KIND_HIDDEN_STATES: ContextKind
CONTEXT_KIND_TOKEN_IDS: ContextKind
TENSOR_ENCODING_UNSPECIFIED: TensorEncoding
TENSOR_ENCODING_FLOAT32: TensorEncoding
TENSOR_ENCODING_FLOAT16: TensorEncoding
TENSOR_ENCODING_INT8: TensorEncoding
TENSOR_ENCODING_INT4: TensorEncoding
COMPRESSION_UNSPECIFIED: Compression
COMPRESSION_NONE: Compression
COMPRESSION_ZSTD: Compression
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INVALID_MESSAGE: ErrorCode
ERROR_CODE_UNSUPPORTED_VERSION: ErrorCode
ERROR_CODE_FINGERPRINT_MISMATCH: ErrorCode
ERROR_CODE_CONTEXT_GAP: ErrorCode
ERROR_CODE_BUDGET_EXCEEDED: ErrorCode
ERROR_CODE_SESSION_TAKEN_OVER: ErrorCode
ERROR_CODE_SHUTTING_DOWN: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode

class EdgeMessage(_message.Message):
    __slots__ = ("step", "position", "open", "context", "escalate", "truncate", "close")
    STEP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ESCALATE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    step: int
    position: int
    open: Open
    context: Context
    escalate: Escalate
    truncate: Truncate
    close: Close
    def __init__(self, step: _Optional[int] = ..., position: _Optional[int] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., escalate: _Optional[_Union[Escalate, _Mapping]] = ..., truncate: _Optional[_Union[Truncate, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol_version", "session_id", "bundle_fingerprint", "sampling", "context_kind")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_KIND_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session_id: bytes
    bundle_fingerprint: bytes
    sampling: Sampling
    context_kind: ContextKind
    def __init__(self, protocol_version: _Optional[int] = ..., session_id: _Optional[bytes] = ..., bundle_fingerprint: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., context_kind: _Optional[_Union[ContextKind, str]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("hidden_states", "token_ids")
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    hidden_states: Tensor
    token_ids: TokenIds
    def __init__(self, hidden_states: _Optional[_Union[Tensor, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("rows", "columns", "encoding", "compression", "data")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    encoding: TensorEncoding
    compression: Compression
    data: bytes
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., encoding: _Optional[_Union[TensorEncoding, str]] = ..., compression: _Optional[_Union[Compression, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Escalate(_message.Message):
    __slots__ = ("burst",)
    BURST_FIELD_NUMBER: _ClassVar[int]
    burst: int
    def __init__(self, burst: _Optional[int] = ...) -> None: ...

class Truncate(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloudMessage(_message.Message):
    __slots__ = ("step", "position", "opened", "decision", "closed", "error")
    STEP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step: int
    position: int
    opened: Opened
    decision: Decision
    closed: Closed
    error: Error
    def __init__(self, step: _Optional[int] = ..., position: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("max_positions", "max_message_bytes")
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_positions: int
    max_message_bytes: int
    def __init__(self, max_positions: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("token_id", "logprob", "cloud_microseconds")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    CLOUD_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    cloud_microseconds: int
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., cloud_microseconds: _Optional[int] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("layer_positions", "compute_microseconds")
    LAYER_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    layer_positions: int
    compute_microseconds: int
    def __init__(self, layer_positions: _Optional[int] = ..., compute_microseconds: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ...) -> None: ...
