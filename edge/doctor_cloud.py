"""Checks of the cloud: reached, trusted, of our protocol and bundle, and how far away."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import grpc
import grpc.aio

from edge.cloud_channel import CloudEndpoint
from edge.doctor import Check, Finding, fail, ok, warn
from edge.doctor_network import Peer, check_name, check_port_open, check_tls
from edge.session_check import open_and_close
from shared.clock import monotonic
from shared.errors import (
    AuthenticationError,
    FingerprintMismatchError,
    ProtocolVersionError,
    TandemError,
)
from shared.messages import PROTOCOL_VERSION

_HEALTH = "/grpc.health.v1.Health/Check"
_ROUND_TRIPS = 9
_FAR_SECONDS = 0.3


def cloud_checks(endpoint: CloudEndpoint, fingerprint: str | None) -> list[Check]:
    """A chain; ``fingerprint`` is our bundle's, ``None`` where there is none to compare."""
    host, _, port = endpoint.address.rpartition(":")
    peer = Peer(
        "cloud",
        host.strip("[]"),
        int(port),
        "--cloud-ca",
        endpoint.ca,
        endpoint.certificate,
        endpoint.key,
        protocols=("h2",),
    )
    return [
        Check("cloud name", lambda: check_name(peer), 2.0),
        Check("cloud port", lambda: check_port_open(peer), 3.0),
        Check("cloud TLS", lambda: check_tls(peer), 5.0),
        Check("cloud session", lambda: check_session(endpoint, fingerprint), 4.0),
        Check("cloud round trip", lambda: check_round_trip(endpoint), 4.0),
    ]


async def check_session(endpoint: CloudEndpoint, fingerprint: str | None) -> list[Finding]:
    """Open a session, and close it."""
    error: TandemError | None = None
    try:
        await open_and_close(endpoint, fingerprint or "0" * 64)
    except TandemError as raised:
        error = raised
    except grpc.aio.AioRpcError as raised:
        if raised.code() not in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
        ):
            what = f"{raised.details() or 'the stream ended'} ({raised.code().name})"
            return [fail("cloud session", what, "is that port a Tandem cloud's?")]
        error = AuthenticationError(raised.details() or "refused")
    return judge_session(error, fingerprint, has_token=endpoint.token is not None)


def judge_session(
    error: TandemError | None, fingerprint: str | None, *, has_token: bool
) -> list[Finding]:
    """What the end of an attempt to open a session says of token, protocol and bundle."""
    if isinstance(error, AuthenticationError):
        advice = "set TANDEM_TOKEN to one that `tandem cloud token` printed there"
        return [fail("cloud token", str(error).partition(": set ")[0], advice)]
    token = ok("cloud token", "accepted" if has_token else "none is asked for")
    if isinstance(error, ProtocolVersionError):
        advice = "install the same release of Tandem on both sides"
        return [token, fail("cloud protocol", str(error), advice)]
    protocol = ok("cloud protocol", f"version {PROTOCOL_VERSION}, as ours")
    if isinstance(error, FingerprintMismatchError):
        if fingerprint is None:  # what was sent was none
            return [token, protocol]
        advice = "copy the bundle that the cloud serves to this device"
        return [token, protocol, fail("cloud bundle", str(error), advice)]
    if error is not None:
        advice = "it may be full or ending: try again, or read its log"
        return [token, protocol, fail("cloud session", str(error), advice)]
    return [token, protocol, ok("cloud bundle", "the same model as ours")]


async def check_round_trip(endpoint: CloudEndpoint) -> Finding:
    """The median of health checks on one connection."""
    took: list[float] = []
    async with endpoint.channel() as channel:
        check = channel.unary_unary(_HEALTH)  # bytes in, bytes out
        for _ in range(_ROUND_TRIPS + 1):
            began = monotonic()
            try:
                await check(b"")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # a round trip all the same
                    detail = f"{error.details()} ({error.code().name})"
                    return fail("cloud round trip", detail, "try again")
            took.append(monotonic() - began)
    return judge_round_trip(took[1:])  # the first made the connection


def judge_round_trip(seconds: Sequence[float]) -> Finding:
    """Of all that were measured."""
    middle = median(seconds)
    detail = f"{middle * 1000:.1f} ms (median of {len(seconds)}, up to {max(seconds) * 1000:.1f})"
    if middle > _FAR_SECONDS:
        return warn("cloud round trip", detail, "use auto mode, which asks a far cloud less")
    return ok("cloud round trip", detail)
