"""One connection to a broker, MQTT 5: typed errors, bounded waits, and no socket left behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.mqtt_settings import BrokerSettings
from shared.errors import AuthenticationError, TandemError

_ANSWER_SECONDS = 5.0  # for each of a broker's acknowledgements
_MOST_PACKET_BYTES = 64 * 1024  # what a broker may send; it drops what is larger
_NOT_AUTHORISED = {"Bad user name or password", "Not authorized", "Bad authentication method"}


class BrokerUnavailableError(TandemError):
    """The broker cannot be reached, or the connection to it was lost."""

    exit_code = 4


class Backoff:
    """Seconds to wait before the next attempt: doubled each time, bounded, with jitter."""

    def __init__(self, least: float, most: float, source: random.Random) -> None:
        assert 0 < least <= most
        self._least, self._most, self._random = least, most, source
        self._attempt = 0

    def next(self) -> float:
        """Between half of the bound and the bound, which doubles from ``least`` to ``most``."""
        bound = min(self._most, self._least * 2.0 ** min(self._attempt, 30))
        self._attempt += 1
        return self._random.uniform(0.5, 1.0) * bound

    def reset(self) -> None:
        """The next wait is the shortest again."""
        self._attempt = 0


@asynccontextmanager
async def connected(
    settings: BrokerSettings,
    *,
    identifier: str | None = None,
    will: aiomqtt.Will | None = None,
    queue: int = 64,
) -> AsyncIterator[aiomqtt.Client]:
    """A connection for the time of the block.

    Args:
        identifier: the client's, one of a kind; ``None`` lets the broker choose.
        queue: messages that may wait to be read; more are dropped.

    Raises:
        BrokerUnavailableError: it cannot be reached, or was lost within the block.
        AuthenticationError: user, password or certificate were refused, by either side.
        ConfigurationError: certificates that do not load.
    """
    context = await asyncio.to_thread(settings.tls_context)
    limits = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    limits.MaximumPacketSize = _MOST_PACKET_BYTES
    client = aiomqtt.Client(
        settings.host,
        settings.port,
        username=settings.user,
        password=settings.password,
        identifier=identifier or "",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=True,
        will=will,
        timeout=_ANSWER_SECONDS,
        keepalive=settings.keep_alive_seconds,
        max_queued_incoming_messages=queue,
        max_queued_outgoing_messages=queue,
        properties=limits,
        tls_context=context,
    )
    try:
        await _enter(client)
        yield client
        await client.__aexit__(None, None, None)
    except aiomqtt.MqttError as error:
        raise _typed(error, settings) from None
    finally:
        _drop(client)


async def subscribe(client: aiomqtt.Client, *topics: str, as_published: bool = False) -> None:
    """Subscribe; raise :class:`AuthenticationError` if the broker refuses.

    Args:
        as_published: messages are marked retained if they were sent so, not only where the broker
            had kept them.
    """
    options = SubscribeOptions(qos=1, retainAsPublished=as_published)
    granted = await client.subscribe([(topic, options) for topic in topics])
    if any(code.is_failure for code in granted if isinstance(code, ReasonCode)):
        raise AuthenticationError(f"the broker does not let this user read {', '.join(topics)}")


async def _enter(client: aiomqtt.Client) -> None:
    """Connect.  A thread does it, for a few seconds at most, and cannot be stopped: when cancelled,
    wait for it, or its socket would live on unowned."""
    entering = asyncio.create_task(client.__aenter__(), name="connect to broker")
    try:
        await asyncio.shield(entering)
    except asyncio.CancelledError:
        await asyncio.wait([entering])
        if not entering.cancelled():
            entering.exception()  # looked at: nobody else will
        raise


def _drop(client: aiomqtt.Client) -> None:
    """Close what is left: aiomqtt keeps the socket where a broker is silent or the block failed.
    Without a farewell the broker tells the last will, which is then the truth."""
    client._client._sock_close()
    ended = client._disconnected
    if ended.done() and not ended.cancelled():
        ended.exception()  # looked at: nobody else may have


def _typed(error: aiomqtt.MqttError, settings: BrokerSettings) -> TandemError:
    """The typed error for one of aiomqtt's."""
    where = f"the broker at {settings.address}"
    cause = error.__cause__ or error
    code = getattr(cause, "rc", None)
    if isinstance(code, ReasonCode):
        reason = code.getName()
        if reason in _NOT_AUTHORISED:
            mend = "check both" if settings.user else "it asks for a user and a password"
            return AuthenticationError(f"{where} refused user and password ({reason}): {mend}")
        why = "" if reason == "Unspecified error" else f": {reason}"
        return BrokerUnavailableError(f"the connection to {where} was lost{why}")
    text = str(cause)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return _untrusted(settings, text)
    if "alert" in text.lower() and "certificate" in text.lower():
        return AuthenticationError(
            f"{where} asks for a client certificate, or refused the one it got ({text})"
        )
    return BrokerUnavailableError(
        f"{where} cannot be reached ({text}): check the address, and that both sides use TLS (a CA "
        "is named) or neither does; one that asks for a client certificate may be silent too"
    )


def _untrusted(settings: BrokerSettings, text: str) -> AuthenticationError:
    return AuthenticationError(
        f"the certificate of the broker at {settings.address} is not one that the CA vouches for "
        f"({text.removeprefix('[SSL: CERTIFICATE_VERIFY_FAILED] ')}): check the CA and the name"
    )
