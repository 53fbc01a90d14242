"""Parsers and codec fed with any bytes: a typed value or a typed error, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import zstandard
from google.protobuf.message import DecodeError

from protos.tandem.v1 import collaboration_pb2 as pb
from shared.errors import CodecError, InvalidMessageError
from shared.messages import (
    PROTOCOL_VERSION,
    cloud_message_from_proto,
    cloud_message_to_proto,
    edge_message_from_bytes,
    edge_message_to_proto,
)
from shared.tensor_codec import EncodedTensor, Encoding, decode, encode
from tests.fuzz_harness import Entropy, run_rounds

COLUMNS, MAX_ROWS = 64, 32


def edge_proto(entropy: Entropy) -> pb.EdgeMessage:
    """A message whose fields hold together, but for what is wild in one of four."""
    wild = entropy.chance(4)
    wire = pb.EdgeMessage(step=entropy.uint(64))
    body = entropy.below(7)
    if wild or 0 < body < 6:
        wire.position = entropy.uint() if wild else 1 + entropy.below(200)
    match body:
        case 0:
            wire.open.protocol_version = entropy.uint() if wild else PROTOCOL_VERSION
            wire.open.session_id = entropy.take(entropy.below(20) if wild else 16)
            wire.open.bundle_fingerprint = entropy.take(entropy.below(40) if wild else 32)
            wire.open.context_kind = entropy.below(5) if wild else 1 + entropy.below(2)  # type: ignore[assignment]
            wire.open.sampling.temperature = entropy.double() if wild else 0.5
            wire.open.sampling.top_p = entropy.double() if wild else 1.0
            wire.open.sampling.seed = entropy.uint(64)
        case 1 | 2:
            count = entropy.below(6) + (not wild)
            wire.context.token_ids.ids.extend(entropy.uint() for _ in range(count))
        case 3:
            tensor = wire.context.hidden_states
            tensor.rows = entropy.uint() if wild else 1 + entropy.below(9)
            tensor.columns = entropy.uint() if wild else COLUMNS
            tensor.encoding = entropy.uint(31) if wild else 1 + entropy.below(4)  # type: ignore[assignment]
            tensor.compression = entropy.below(4) if wild else 1 + entropy.below(2)  # type: ignore[assignment]
            tensor.data = entropy.take(entropy.below(20))
        case 4:
            wire.escalate.burst = entropy.uint() if wild else entropy.below(9)
            wire.escalate.lookahead = entropy.uint() if wild else entropy.below(9)
            if entropy.chance(2):
                wire.escalate.guess = entropy.uint()
        case 5:
            wire.truncate.SetInParent()
        case _:
            wire.close.SetInParent()
    return wire


def cloud_proto(entropy: Entropy) -> pb.CloudMessage:
    """The same of the cloud's."""
    wild = entropy.chance(4)
    wire = pb.CloudMessage(step=entropy.uint(64))
    body = entropy.below(4)
    if wild or body < 2:
        wire.position = entropy.uint() if wild else 1 + entropy.below(200)
    match body:
        case 0:
            wire.opened.max_positions = entropy.uint() if wild else 512
            wire.opened.max_message_bytes = entropy.uint()
        case 1:
            wire.decision.token_id = entropy.uint()
            wire.decision.logprob = entropy.double() if wild else -entropy.below(99) / 8
            wire.decision.cloud_microseconds = entropy.uint()
        case 2:
            wire.closed.layer_positions = entropy.uint(64)
            wire.closed.compute_microseconds = entropy.uint(64)
        case _:
            wire.error.code = entropy.below(20)  # type: ignore[assignment]
            wire.error.message = "é" * entropy.uint(10)
    return wire


def spoilt_or_not(entropy: Entropy, original: bytes, other: bytes) -> bytes:
    """Some as they are, more of them spoilt, a few random."""
    match entropy.below(8):
        case 0 | 1:
            return original
        case 2:
            return entropy.take(entropy.below(40))
        case _:
            return entropy.spoil(original, other)


def tensor_of(entropy: Entropy) -> EncodedTensor:
    """Tensors that are right but for one thing."""
    rows = 1 + entropy.below(3)
    values = np.frombuffer(entropy.take(rows * 8), np.int8).astype(np.float32)
    values = np.resize(values, (rows, COLUMNS))
    right = encode(values, entropy.pick(list(Encoding)), compress=entropy.chance(2))
    match entropy.below(8):
        case 0:
            return right
        case 1:
            rows = entropy.uint() if entropy.chance(2) else entropy.below(MAX_ROWS + 4)
            return replace(right, rows=rows, columns=entropy.pick((COLUMNS, COLUMNS - 1, 0)))
        case 2:
            return replace(right, encoding=entropy.pick(list(Encoding)))
        case 3:
            return replace(right, compressed=not right.compressed)
        case 4:
            size = entropy.pick((rows * COLUMNS * 4, rows * COLUMNS * 2, rows * 68, 1 << 20))
            frame = zstandard.ZstdCompressor(write_content_size=entropy.chance(2))
            data = entropy.spoil(frame.compress(entropy.take(1) * size))
            return replace(right, compressed=True, data=data)
        case _:
            return replace(right, data=entropy.spoil(right.data))


def test_edge_messages() -> None:
    run_rounds(parse_edge_messages, at_least=5000)


def parse_edge_messages(entropy: Entropy) -> int:
    count, other = 0, b""
    while entropy:
        original = edge_proto(entropy).SerializeToString()
        data, other = spoilt_or_not(entropy, original, other), original
        count += 1
        try:
            message = edge_message_from_bytes(data)
        except InvalidMessageError:
            continue
        again = edge_message_to_proto(message).SerializeToString()
        assert edge_message_from_bytes(again) == message
    return count


def test_cloud_messages() -> None:
    run_rounds(parse_cloud_messages, at_least=5000)


def parse_cloud_messages(entropy: Entropy) -> int:
    count, other = 0, b""
    while entropy:
        original = cloud_proto(entropy).SerializeToString()
        data, other = spoilt_or_not(entropy, original, other), original
        count += 1
        try:
            message = cloud_message_from_proto(pb.CloudMessage.FromString(data))
        except (InvalidMessageError, DecodeError):  # gRPC itself meets the latter
            continue
        assert cloud_message_from_proto(cloud_message_to_proto(message)) == message
    return count


def test_tensors() -> None:
    run_rounds(decode_tensors, at_least=5000)


def decode_tensors(entropy: Entropy) -> int:
    count = 0
    while entropy:
        tensor = tensor_of(entropy)
        count += 1
        try:
            values = decode(tensor, max_rows=MAX_ROWS, columns=COLUMNS)
        except CodecError:
            continue
        assert values.shape == (tensor.rows, COLUMNS)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    return count
