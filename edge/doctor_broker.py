"""Checks of the MQTT broker: reached, trusted, and it lets this device in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edge.doctor import Check, Finding, fail, ok
from edge.doctor_network import Peer, check_name, check_port_open, check_tls
from shared.errors import ConfigurationError

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_LOGIN_SECONDS = 3.0


@dataclass(frozen=True)
class Broker:
    """``mqtt://[USER@]HOST[:PORT]``, or ``mqtts`` with TLS (by the system's authorities, unless
    ``ca`` names another)."""

    host: str
    port: int
    encrypted: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None

    @classmethod
    def parse(cls, url: str, password: str | None = None, ca: Path | None = None) -> Broker:
        """From ``--mqtt``; raises :class:`ConfigurationError`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            port, parts = None, urlsplit("")
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigurationError("--mqtt is not mqtt://[USER@]HOST[:PORT], or mqtts:// for TLS")
        if parts.password is not None:
            raise ConfigurationError(
                "a password in --mqtt is for all to see: set TANDEM_MQTT_PASSWORD"
            )
        if ca is not None and parts.scheme != "mqtts":
            raise ConfigurationError("--mqtt-ca is for TLS: --mqtt mqtts://...")
        user = unquote(parts.username) if parts.username else None
        encrypted = parts.scheme == "mqtts"
        return cls(parts.hostname, port or _PORTS[parts.scheme], encrypted, user, password, ca)


def broker_checks(broker: Broker) -> list[Check]:
    """A chain."""
    peer = Peer(
        "broker",
        broker.host,
        broker.port,
        "--mqtt-ca" if broker.encrypted else "--mqtt mqtts://... --mqtt-ca",
        broker.ca,
        system_ca=broker.encrypted,
        certificate_advice="it wants a certificate of this device's, where Tandem logs in by name",
    )
    return [
        Check("broker name", lambda: check_name(peer), 2.0),
        Check("broker port", lambda: check_port_open(peer), 3.0),
        Check("broker TLS", lambda: check_tls(peer), 5.0),
        Check("broker login", lambda: check_login(broker), _LOGIN_SECONDS + 0.5),
    ]


async def check_login(broker: Broker) -> Finding:
    """Connect as the daemon would, and leave."""
    try:
        import aiomqtt  # noqa: PLC0415  (only where a broker is named)
    except ModuleNotFoundError:
        return fail("broker login", "aiomqtt is missing", "pip install aiomqtt")
    context = None
    if broker.encrypted:
        context = ssl.create_default_context(cafile=str(broker.ca) if broker.ca else None)
    who = f"as {broker.user}" if broker.user else "without a name"
    try:
        async with aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.user,
            password=broker.password,
            tls_context=context,
            timeout=_LOGIN_SECONDS,
        ):
            return ok("broker login", f"let in {who}")
    except aiomqtt.MqttError as error:
        advice = "check the user in --mqtt and TANDEM_MQTT_PASSWORD"
        return fail("broker login", f"refused {who}: {error}", advice)
