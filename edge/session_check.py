"""Whether the cloud takes sessions of ours: token, protocol and bundle."""

from __future__ import annotations

import asyncio
import logging
import secrets

import grpc
import grpc.aio

from edge.cloud_channel import CloudEndpoint
from protos.tandem.v1.collaboration_pb2_grpc import CollaborationStub
from shared.errors import FingerprintMismatchError, ProtocolVersionError, TandemError
from shared.messages import (
    PROTOCOL_VERSION,
    SESSION_ID_BYTES,
    Close,
    ContextKind,
    EdgeMessage,
    ErrorReply,
    Open,
    cloud_message_from_proto,
    edge_message_to_proto,
    error_of,
)
from shared.sampling import GREEDY

_PATIENCE_SECONDS = 20.0
_LOG = logging.getLogger("tandem.edge")
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


async def warn_if_refused(endpoint: CloudEndpoint, fingerprint: str) -> None:
    """Log what only the user can mend; whatever else is wrong, answers meet it themselves."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await open_and_close(endpoint, fingerprint)
    except TimeoutError:
        return
    except grpc.aio.AioRpcError as error:
        if error.code() in _REFUSED:
            _LOG.warning(f"the cloud at {endpoint.address} refuses us: {error.details()}")
    except (FingerprintMismatchError, ProtocolVersionError) as error:
        _LOG.warning(f"the cloud at {endpoint.address} cannot serve us: {error}")
    except TandemError as error:
        _LOG.info(f"the cloud at {endpoint.address} takes no session now: {error}")


async def open_and_close(endpoint: CloudEndpoint, fingerprint: str) -> None:
    """Open a session for the bundle of that fingerprint on a connection of its own, and close it.

    Raises:
        TandemError: as the cloud says it.
        grpc.aio.AioRpcError: the stream ended without an error message of ours.
    """
    try:
        await _open_and_close(endpoint, fingerprint)
    except grpc.aio.AioRpcError as error:
        # a refusal that meets our message on its way is told by gRPC as an error of its own
        if error.code() is not grpc.StatusCode.INTERNAL:
            raise
        await _open_and_close(endpoint, fingerprint)


async def _open_and_close(endpoint: CloudEndpoint, fingerprint: str) -> None:
    session = secrets.token_bytes(SESSION_ID_BYTES)
    opening = Open(PROTOCOL_VERSION, session, fingerprint, GREEDY, ContextKind.TOKEN_IDS)
    async with endpoint.channel() as channel:
        stub = CollaborationStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Session(metadata=(*endpoint.metadata, ("session_id", session.hex())))
        try:
            await call.write(edge_message_to_proto(EdgeMessage(1, opening)))
            reply = await call.read()
            if reply is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(
                    await call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(),
                    details=await call.details(),
                )  # fmt: skip
            body = cloud_message_from_proto(reply).body
            if isinstance(body, ErrorReply):
                raise error_of(body)
            await call.write(edge_message_to_proto(EdgeMessage(2, Close())))
            await call.read()
        finally:
            call.cancel()
