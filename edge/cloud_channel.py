"""Where the cloud is and how to reach it: address, TLS, token, deadlines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigurationError
from shared.transport import is_loopback, read_pem

_ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})$")
if TYPE_CHECKING:
    import grpc.aio


@dataclass(frozen=True)
class CloudEndpoint:
    """How the edge reaches its cloud.

    Attributes:
        address: ``HOST:PORT``.
        token: bearer token; sent over TLS, or in the clear to loopback alone.
        ca: PEM file of the authority that signed the cloud's certificate; turns TLS on.
        certificate, key: PEM files of the edge's own certificate, where the cloud asks for one.
        plaintext_token: send the token in the clear to other machines too.
        answer_seconds: how long to wait for a decision before the connection is given up.
        give_up_seconds: how long to go on reconnecting without a word from a cloud that was there.
        connect_seconds: the same for a cloud that has never answered.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    plaintext_token: bool = False
    answer_seconds: float = 15.0
    give_up_seconds: float = 30.0
    connect_seconds: float = 5.0

    def __post_init__(self) -> None:
        match = _ADDRESS.match(self.address)
        if not match or not 0 < int(match[2]) < 65536:
            raise ConfigurationError(f"{self.address!r} is not HOST:PORT")
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("a client certificate and its key come together")
        if self.certificate and not self.ca:
            raise ConfigurationError("a client certificate needs TLS: name the cloud's CA as well")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigurationError("the cloud token holds characters that no token has")
        exposed = self.token and not self.ca and not is_loopback(match[1].strip("[]"))
        if exposed and not self.plaintext_token:
            raise ConfigurationError(
                "the token would travel in the clear: name the cloud's CA (--cloud-ca), or say "
                "--plaintext-token on a network that you trust"
            )

    @property
    def on_this_machine(self) -> bool:
        """Whether the address is of the loopback interface."""
        return is_loopback(self.address.rpartition(":")[0].strip("[]"))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """gRPC metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self) -> grpc.aio.Channel:
        """A new channel; raise :class:`ConfigurationError` for certificates that do not load."""
        import grpc.aio  # noqa: PLC0415  (the command line knows endpoints without it)

        options = [
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # reconnecting is the session's business, with its own back-off
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if not self.ca:
            return grpc.aio.insecure_channel(self.address, options=options)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read_pem(self.ca),
            private_key=read_pem(self.key) if self.key else None,
            certificate_chain=read_pem(self.certificate) if self.certificate else None,
        )
        return grpc.aio.secure_channel(self.address, credentials, options=options)


class Channels:
    """Hands out the one channel to an endpoint, and a new one for a channel that broke.

    One that broke is closed when its last user leaves: closing it cancels all calls on it.
    """

    def __init__(self, endpoint: CloudEndpoint) -> None:
        self._endpoint = endpoint
        self._current: grpc.aio.Channel | None = None
        self._users: Counter[grpc.aio.Channel] = Counter()

    def current(self) -> grpc.aio.Channel:
        """The channel to use; it may not have connected yet."""
        channel = self._current
        if channel is None:
            channel = self._current = self._endpoint.channel()
        return channel

    @asynccontextmanager
    async def use(self) -> AsyncIterator[grpc.aio.Channel]:
        """The current channel, not closed within the block but by :meth:`close`."""
        channel = self.current()
        self._users[channel] += 1
        try:
            yield channel
        finally:
            self._users[channel] -= 1
            if self._users[channel] <= 0:
                del self._users[channel]
                if channel is not self._current:
                    await channel.close()

    def retire(self, broken: grpc.aio.Channel) -> None:
        """Whoever comes next gets another channel than ``broken``."""
        if broken is self._current:
            self._current = None

    async def close(self) -> None:
        """Close every channel; :meth:`current` would make another."""
        channels = {*self._users, *([self._current] if self._current is not None else [])}
        self._current = None
        self._users.clear()
        for channel in channels:
            await channel.close()
