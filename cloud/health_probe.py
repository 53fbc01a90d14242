"""Ask a cloud whether it serves, over the standard gRPC health service, as containers do."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.errors import CloudUnavailableError, ConfigurationError
from shared.transport import read_pem


def check_health(
    address: str,
    *,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    seconds: float = 5.0,
) -> None:
    """Return if the cloud at ``address`` says SERVING.

    Args:
        address: ``HOST:PORT``.
        ca: PEM file of the authority that signed the cloud's certificate; turns TLS on.
        certificate, key: PEM files to show to a cloud that asks for a client certificate.
        seconds: how long to wait for the answer.

    Raises:
        CloudUnavailableError: no answer in time, or another one (a cloud that drains, say).
        ConfigurationError: a certificate without its key or without ``ca``, or no PEM file.
    """
    if (certificate is None) != (key is None):
        raise ConfigurationError("a client certificate and its key come together")
    if certificate and not ca:
        raise ConfigurationError("a client certificate needs TLS: name the cloud's CA as well")
    with _channel(address, ca, certificate, key) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise CloudUnavailableError(
                f"{address} does not answer ({error.code().name}: {error.details()}): check the "
                "address, and that both sides use TLS (--ca) or neither does"
            ) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise CloudUnavailableError(f"{address} says {name}")


def _channel(
    address: str, ca: Path | None, certificate: Path | None, key: Path | None
) -> grpc.Channel:
    if ca is None:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_pem(ca),
        private_key=read_pem(key) if key else None,
        certificate_chain=read_pem(certificate) if certificate else None,
    )
    return grpc.secure_channel(address, credentials)
