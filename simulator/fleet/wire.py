"""How many bytes messages take on the wire: those of real messages, with the framing that the edge
counts."""

from __future__ import annotations

from dataclasses import dataclass

from edge.cloud_session import FRAMING_BYTES
from edge.context_source import ContextCodec
from shared.messages import (
    PROTOCOL_VERSION,
    SESSION_ID_BYTES,
    Ahead,
    Close,
    Closed,
    CloudMessage,
    Context,
    ContextKind,
    Decision,
    EdgeMessage,
    Escalate,
    Open,
    Opened,
    Truncate,
    cloud_message_to_proto,
    edge_message_to_proto,
)
from shared.sampling import GREEDY
from simulator.fleet.recordings import ModelFacts

# in the middle of a usual answer: fields are varints, and grow with what they hold
_STEP, _POSITION, _TOKEN, _MICROSECONDS, _LOOKAHEAD = 200, 300, 20_000, 50_000, 16
_STORE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class WireSizes:
    """Bytes of each kind of message, and of a position of context by codec."""

    open: int
    opened: int
    question: int
    truncate: int
    decision: int
    ahead: int
    close: int
    closed: int
    context_message: int
    context: dict[ContextCodec, float]

    @classmethod
    def of(cls, model: ModelFacts) -> WireSizes:
        """The sizes for a recorded model."""
        decision = Decision(_POSITION, _TOKEN, -0.5, _MICROSECONDS)
        return cls(
            open=_up(
                Open(
                    PROTOCOL_VERSION,
                    bytes(SESSION_ID_BYTES),
                    model.fingerprint,
                    GREEDY,
                    ContextKind.TOKEN_IDS,
                )
            ),
            opened=_down(Opened(0, 8192, 1 << 20, 64, bytes(_STORE_ID_BYTES))),
            question=_up(Escalate(_POSITION, 0, _TOKEN, _LOOKAHEAD)),
            truncate=_up(Truncate(_POSITION)),
            decision=_down(decision),
            ahead=_down(Ahead(decision, _POSITION)),
            close=_up(Close()),
            closed=_down(Closed(100_000, 5_000_000)),
            context_message=_up(Context(_POSITION, (_TOKEN,))) - 3,
            context={codec: model.context_bytes(codec) for codec in ContextCodec},
        )


def _up(body: Open | Context | Escalate | Truncate | Close) -> int:
    return edge_message_to_proto(EdgeMessage(_STEP, body)).ByteSize() + FRAMING_BYTES


def _down(body: Opened | Decision | Ahead | Closed) -> int:
    return cloud_message_to_proto(CloudMessage(_STEP, body)).ByteSize() + FRAMING_BYTES
