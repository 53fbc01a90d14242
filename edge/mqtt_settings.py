"""Where the MQTT broker is and how to reach it, and what an edge is called there."""

from __future__ import annotations

import math
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigurationError
from shared.transport import is_loopback, read_pem

DEFAULT_PREFIX = "tandem"
EDGE_ID = re.compile(r"[a-z0-9_-]{1,64}")  # what a topic, an access list and a label can hold
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,7}")
_HOST = re.compile(
    r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63}){0,20}\.?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]{1,44}"
)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_PORT, _TLS_PORT = 1883, 8883


def split_address(address: str, *, tls: bool) -> tuple[str, int]:
    """Host (without brackets) and port of ``HOST`` or ``HOST:PORT``; the port is MQTT's own where
    none is named."""
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise ConfigurationError(f"{address!r} is not HOST:PORT")
    port = int(match["port"]) if match["port"] else _TLS_PORT if tls else _PORT
    return match["host"].strip("[]"), port


def check_edge_id(edge_id: str) -> str:
    """``edge_id``, if it is one; otherwise :class:`ConfigurationError`."""
    if not EDGE_ID.fullmatch(edge_id):
        raise ConfigurationError(
            f"{edge_id!r} cannot name an edge: 1 to 64 of a-z, 0-9, '_' and '-' can"
        )
    return edge_id


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """How a broker is reached.

    Attributes:
        user, password: the broker's account; sent over TLS, or in the clear to loopback alone.
        ca: PEM file of the authority that signed the broker's certificate; turns TLS on.
        certificate, key: PEM files of the client's own certificate, where the broker asks for one.
        insecure: send the password in the clear to other machines too.
        prefix: first level (or levels) of every topic.
        keep_alive_seconds: a broker that is silent for longer counts as gone.
    """

    host: str
    port: int = _PORT
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    prefix: str = DEFAULT_PREFIX
    keep_alive_seconds: int = 30

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ConfigurationError(f"{self.host!r} is not a broker's name or address")
        if not 0 < self.port < 65536:
            raise ConfigurationError(f"{self.port} is not a port")
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigurationError(
                f"{self.prefix!r} cannot begin topics: up to 8 levels of letters, digits, '_' and "
                "'-', with '/' between them, can"
            )
        if not 5 <= self.keep_alive_seconds <= 3600:
            raise ConfigurationError(
                f"keep-alive of {self.keep_alive_seconds} s: 5 to 3600 are possible"
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("a client certificate and its key come together")
        if self.certificate and not self.ca:
            raise ConfigurationError("a client certificate needs TLS: name the broker's CA as well")
        if self.password is not None and self.user is None:
            raise ConfigurationError("a password needs a user: name the broker's user as well")
        for name, value in (("user", self.user), ("password", self.password)):
            if value is not None and not (value.isprintable() and 0 < len(value) <= 1024):
                raise ConfigurationError(
                    f"the broker's {name} is empty, too long or holds control characters"
                )
        if self.password and not self.ca and not self.insecure and not is_loopback(self.host):
            raise ConfigurationError(
                "the broker's password would travel in the clear: name the broker's CA, or say "
                "'insecure' on a network that you trust"
            )

    @property
    def address(self) -> str:
        """``HOST:PORT``, as people read it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def topic(self, edge_id: str, kind: str) -> str:
        """Topic of an edge's ``kind`` of message; ``+`` as ``edge_id`` is every edge's."""
        return f"{self.prefix}/{edge_id}/{kind}"

    def tls_context(self) -> ssl.SSLContext | None:
        """A context made from the files as they are now; ``None`` without TLS.

        Raises:
            ConfigurationError: a file that cannot be read, or holds no certificate.
        """
        if self.ca is None:
            return None
        named = self.ca
        try:
            context = ssl.create_default_context(cadata=read_pem(self.ca).decode("ascii", "ignore"))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate and self.key:
                named = self.certificate
                read_pem(self.certificate)
                read_pem(self.key)
                context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError):
            raise ConfigurationError(
                f"{named} is no certificate that can be used, or its key is another's or encrypted"
            ) from None
        return context


@dataclass(frozen=True, kw_only=True)
class MqttSettings(BrokerSettings):
    """How an edge reports to a broker.

    Attributes:
        edge_id: its name in topics: 1 to 64 of a-z, 0-9, ``_`` and ``-``.
        telemetry_seconds: from one telemetry message to the next.
    """

    edge_id: str
    telemetry_seconds: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_edge_id(self.edge_id)
        if not (math.isfinite(self.telemetry_seconds) and 0.1 <= self.telemetry_seconds <= 86_400):
            raise ConfigurationError(
                f"telemetry every {self.telemetry_seconds:g} s: 0.1 to 86400 are possible"
            )
