"""A real Mosquitto on loopback, with the compose stack's access list, and ears on its topics."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiomqtt
import pytest

from edge.mqtt_connection import connected
from edge.mqtt_settings import BrokerSettings, MqttSettings
from tests.certificates import Authority
from tests.cloud_harness import WAIT_SECONDS

ACCESS_LIST = Path(__file__).parents[1] / "docker/mosquitto/devices.acl"
EDGE = "kitchen"
USERS = (EDGE, "hall", "monitor", "operator")
_SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
_MOSQUITTO = shutil.which("mosquitto", path=_SEARCH)
_PASSWD = shutil.which("mosquitto_passwd", path=_SEARCH)
needs_mosquitto = pytest.mark.skipif(
    not (_MOSQUITTO and _PASSWD) and not os.environ.get("CI"),
    reason="mosquitto is not here (Debian: apt-get install mosquitto)",
)


def password_of(user: str) -> str:
    return f"secret of {user}"


class Broker:
    """Mosquitto on a port of its own; ``async with`` gives it once it listens.

    Args:
        tls: with certificates of ``authority``.
        client_certificates: asks for them, and takes the user from them instead of a password.
        lawless: whoever comes may say anything anywhere.
    """

    def __init__(
        self, *, tls: bool = False, client_certificates: bool = False, lawless: bool = False
    ) -> None:
        assert _MOSQUITTO, "mosquitto is not here (Debian: apt-get install mosquitto)"
        assert _PASSWD, "mosquitto_passwd is not here (Debian: apt-get install mosquitto)"
        self._own = tempfile.TemporaryDirectory(prefix="tandem-broker-")
        folder = Path(self._own.name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.authority = Authority(folder / "tls") if tls else None
        self._folder, self._lawless = folder, lawless
        self._client_certificates = client_certificates
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def _configuration(self) -> str:
        lines = [
            f"listener {self.port} 127.0.0.1",
            "persistence false",
            "log_dest stderr",
            "log_type all",
            f"allow_anonymous {'true' if self._lawless else 'false'}",
        ]
        if os.getuid() == 0:
            lines.append("user root")  # otherwise it could not read files of this test
        if not self._lawless:
            lines.append(f"acl_file {ACCESS_LIST}")
        if not self._lawless and not self._client_certificates:
            lines.append(f"password_file {self._folder / 'passwords'}")
        if self.authority is not None:
            certificate, key = self.authority.sign("broker")
            lines += [f"certfile {certificate}", f"keyfile {key}"]
            if self._client_certificates:
                lines += [
                    f"cafile {self.authority.ca}",
                    "require_certificate true",
                    "use_identity_as_username true",
                ]
        return "\n".join(lines) + "\n"

    async def __aenter__(self) -> Self:
        assert _PASSWD
        passwords = self._folder / "passwords"
        passwords.touch(0o600)
        for user in USERS:
            made = await asyncio.create_subprocess_exec(
                _PASSWD, "-b", passwords, user, password_of(user)
            )
            assert await made.wait() == 0
        (self._folder / "mosquitto.conf").write_text(self._configuration())
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()
        self._own.cleanup()

    async def start(self) -> None:
        """Start it, or start it again on the same port; nothing it kept is left."""
        assert _MOSQUITTO
        process = self._process = await asyncio.create_subprocess_exec(
            _MOSQUITTO, "-c", self._folder / "mosquitto.conf", stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        said = b""
        async with asyncio.timeout(WAIT_SECONDS):
            while b"running" not in (line := await process.stderr.readline()):
                said += line
                assert line, said.decode()
        self._reading = asyncio.create_task(_discard(process.stderr))

    async def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it without a word to anybody, as a power cut would."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(how)
        await self._process.wait()
        assert self._reading is not None
        await self._reading

    def freeze(self) -> None:
        """It keeps its connections and says nothing more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def settings(self, user: str, **changes: Any) -> BrokerSettings:
        """How ``user`` connects."""
        return BrokerSettings(**(self._plain(user) | changes))

    def edge_settings(self, edge_id: str = EDGE, **changes: Any) -> MqttSettings:
        """How an edge connects, telling telemetry often."""
        plain = self._plain(edge_id) | {"edge_id": edge_id, "telemetry_seconds": 0.1}
        return MqttSettings(**(plain | changes))

    def _plain(self, user: str) -> dict[str, Any]:
        plain: dict[str, Any] = {"host": "localhost", "port": self.port}
        if not self._lawless and not self._client_certificates:
            plain |= {"user": user, "password": password_of(user)}
        if self.authority is not None:
            plain["ca"] = self.authority.ca
        return plain

    @asynccontextmanager
    async def ears(self, user: str = "monitor", *topics: str) -> AsyncIterator[Ears]:
        """Hears ``topics`` (all of Tandem's) as ``user``."""
        async with connected(self.settings(user), queue=10_000) as client:
            for topic in topics or ("tandem/#",):
                await client.subscribe(topic, 1)
            yield Ears(client)


class Ears:
    """What comes on the topics, waited for in order."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client

    async def hear(
        self, kind: str, accept: Callable[[dict[str, Any]], bool] = lambda _value: True
    ) -> tuple[dict[str, Any], aiomqtt.Message]:
        """The next message of that kind that is accepted; others are passed over."""
        async with asyncio.timeout(WAIT_SECONDS):
            async for message in self.client.messages:
                if not str(message.topic).endswith(f"/{kind}"):
                    continue
                value = json.loads(message.payload)
                if accept(value):
                    return value, message
        raise AssertionError("messages end with an error alone")

    async def say(self, topic: str, payload: bytes | dict[str, Any], **options: Any) -> None:
        """Publish; the broker has it when this returns."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.client.publish(topic, data, 1, **options)

    async def command(self, payload: bytes | dict[str, Any], edge: str = EDGE) -> dict[str, Any]:
        """Send a command and return the next acknowledgement."""
        await self.say(f"tandem/{edge}/command", payload)
        return (await self.hear("acknowledgement"))[0]


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass
