"""Checks of the MQTT broker: reached, trusted, and it lets this device in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edge.doctor import Check, Finding, fail, ok
from edge.doctor_network import Peer, check_name, check_port_open, check_tls
from edge.mqtt_settings import BrokerSettings
from shared.errors import ConfigurationError, TandemError

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_LOGIN_SECONDS = 5.5


@dataclass(frozen=True)
class Broker:
    """``mqtt://[USER@]HOST[:PORT]``, or ``mqtts`` with TLS (by the system's authorities, unless
    ``ca`` names another); the rest as the daemon has it."""

    host: str
    port: int
    encrypted: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    @classmethod
    def parse(
        cls,
        url: str,
        password: str | None = None,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        insecure: bool = False,
    ) -> Broker:
        """From ``--mqtt`` and its like; raises :class:`ConfigurationError`."""
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
        if (ca or certificate or key) and parts.scheme != "mqtts":
            raise ConfigurationError(
                "--mqtt-ca, --mqtt-cert and --mqtt-key are for TLS: --mqtt mqtts://..."
            )
        if (certificate is None) != (key is None):
            raise ConfigurationError("--mqtt-cert and --mqtt-key come together")
        user = unquote(parts.username) if parts.username else None
        encrypted = parts.scheme == "mqtts"
        port = port or _PORTS[parts.scheme]
        return cls(parts.hostname, port, encrypted, user, password, ca, certificate, key, insecure)

    def settings(self) -> BrokerSettings:
        """As the daemon would have them; raises :class:`ConfigurationError` where it would."""
        ca = self.ca
        if self.encrypted and ca is None:
            system = ssl.get_default_verify_paths().cafile
            if system is None:
                raise ConfigurationError(
                    "this system has no file of authorities: name one by --mqtt-ca"
                )
            ca = Path(system)
        return BrokerSettings(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            ca=ca,
            certificate=self.certificate,
            key=self.key,
            insecure=self.insecure,
        )


def broker_checks(broker: Broker) -> list[Check]:
    """A chain."""
    peer = Peer(
        "broker",
        broker.host,
        broker.port,
        "--mqtt-ca" if broker.encrypted else "--mqtt mqtts://... --mqtt-ca",
        broker.ca,
        broker.certificate,
        broker.key,
        system_ca=broker.encrypted,
        certificate_advice="give this device's own certificate: --mqtt-cert and --mqtt-key",
    )
    return [
        Check("broker name", lambda: check_name(peer), 2.0),
        Check("broker port", lambda: check_port_open(peer), 3.0),
        Check("broker TLS", lambda: check_tls(peer), 5.0),
        Check("broker login", lambda: check_login(broker), _LOGIN_SECONDS),
    ]


async def check_login(broker: Broker) -> Finding:
    """Connect as the daemon would, and leave."""
    from edge.mqtt_connection import connected  # noqa: PLC0415  (only where a broker is named)

    check = "broker login"
    try:
        settings = broker.settings()
    except ConfigurationError as error:
        advice = "--mqtt mqtts://USER@HOST with --mqtt-ca; --mqtt-plaintext-password does without"
        return fail(check, str(error), advice)
    who = f"as {broker.user}" if broker.user else "without a name"
    who = "by its certificate" if broker.certificate and not broker.user else who
    try:
        async with connected(settings):
            return ok(check, f"let in {who}")
    except TandemError as error:
        advice = "check the user in --mqtt and TANDEM_MQTT_PASSWORD, or --mqtt-cert and --mqtt-key"
        return fail(check, f"refused {who}: {error}", advice)
