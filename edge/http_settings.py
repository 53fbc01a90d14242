"""What the daemon's HTTP side is told: who may ask, and how much."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from shared.errors import ConfigurationError

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+")


@dataclass(frozen=True)
class HttpSettings:
    """Settings of the HTTP API.

    Attributes:
        api_key: clients send it as ``Authorization: Bearer KEY`` for ``/v1`` and ``/tandem``.
        cors_origins: web origins (``https://example.org``) whose pages may ask; ``*`` is any.
            They are kept as browsers send them: small letters, no slash at the end.
        allowed_hosts: names besides loopback's that the Host header may carry; ``*`` is any.
        loopback: bound to loopback, so that the Host header is checked even if no name is allowed:
            a page elsewhere whose name suddenly resolves to 127.0.0.1 is then refused.
        max_body_bytes, max_headers, max_messages: the largest request.
        max_watchers: clients that may follow ``/tandem/events`` at once.
        body_seconds: time for a client to send its request's body.
        send_seconds: time for a client to take what is sent, before its answer is cancelled.
        keepalive_seconds: silence on a stream of events before a comment is sent.
    """

    api_key: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    loopback: bool = True
    max_body_bytes: int = 1 << 20
    max_headers: int = 64
    max_messages: int = 512
    max_watchers: int = 32
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    keepalive_seconds: float = 15.0

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                "the API key must be printable ASCII without spaces: it travels in a header"
            )
        origins = tuple(origin.lower().removesuffix("/") for origin in self.cors_origins)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigurationError(
                    f"{origin!r} among the CORS origins is none: https://example.org is"
                )
        object.__setattr__(self, "cors_origins", origins)
        for name in ("max_body_bytes", "max_headers", "max_messages", "max_watchers"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} {getattr(self, name)} is not at least 1")
        for name in ("body_seconds", "send_seconds", "keepalive_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} {getattr(self, name)} is not above 0")
