"""``tandem doctor`` against real clouds, brokers and certificates."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud.auth import add_token
from cloud.server import CloudServer
from edge.cloud_channel import CloudEndpoint
from edge.doctor import Finding, Level, run_chain
from edge.doctor_broker import Broker, broker_checks, check_login
from edge.doctor_cloud import cloud_checks
from shared.errors import ConfigurationError
from tests.cloud_harness import settings_for, tiny_bundle
from tests.mqtt_broker import EDGE
from tests.mqtt_broker import Broker as MqttBroker

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL
FINGERPRINT = tiny_bundle().manifest.fingerprint
ALL_OF_CLOUD = ["name", "port", "TLS", "token", "protocol", "bundle", "round trip"]
DAY = datetime.timedelta(days=1)
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not here")


class Authority:
    """Signs certificates of any dates and names, and writes them as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        now = datetime.datetime.now(datetime.UTC)
        self.pem = folder / "ca.pem"
        signed = self._sign(self._name, self._key.public_key(), (now - DAY, now + DAY), "", True)
        self.pem.write_bytes(signed)

    def issue(self, name: str, begins: float = -1, ends: float = 90, host: str = "127.0.0.1") -> \
            tuple[Path, Path]:  # fmt: skip
        """``(certificate, key)``; days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        dates = (now + begins * DAY, now + ends * DAY)
        paths = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        paths[0].write_bytes(self._sign(subject, key.public_key(), dates, host, False))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        dates: tuple[datetime.datetime, datetime.datetime],
        host: str,
        ca: bool,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(dates[0])
            .not_valid_after(dates[1])
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if host:
            address = x509.IPAddress(ipaddress.ip_address(host))
            names = x509.SubjectAlternativeName([address])
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ours").mkdir()
    return Authority(tmp_path / "ours")


@asynccontextmanager
async def cloud(**settings: Any) -> AsyncIterator[CloudServer]:
    async with CloudServer(settings_for(tiny_bundle(), **settings)) as server:
        yield server


def tls(files: tuple[Path, Path]) -> dict[str, Path]:
    return {"tls_cert": files[0], "tls_key": files[1]}


async def look(address: str, fingerprint: str | None = FINGERPRINT, **fields: Any) -> list[Finding]:
    return await run_chain(cloud_checks(CloudEndpoint(address, **fields), fingerprint), 60.0)


def the_failure(findings: list[Finding]) -> Finding:
    """The one at the end; all before it are fine."""
    assert [f.level for f in findings[:-1]] == [OK] * (len(findings) - 1), findings
    assert findings[-1].level is FAIL, findings
    assert findings[-1].advice
    return findings[-1]


async def test_a_cloud_in_the_clear() -> None:
    async with cloud() as server:
        findings = await look(server.address)
        assert [f.check for f in findings] == [f"cloud {name}" for name in ALL_OF_CLOUD]
        assert {f.level for f in findings} == {OK}
        failure = the_failure(await look(server.address, "ab" * 32))
        assert (failure.check, "copy the bundle" in failure.advice) == ("cloud bundle", True)
        without = await look(server.address, None)
        assert "cloud bundle" not in [f.check for f in without], "there is none to compare"
        assert {f.level for f in without} == {OK}


async def test_tokens_and_a_certificate(authority: Authority, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "alice")
    files = authority.issue("server")
    async with cloud(tokens=tmp_path / "tokens", **tls(files)) as server:
        findings = await look(server.address, token=token, ca=authority.pem)
        assert {f.level for f in findings} == {OK}, findings
        details = {f.check: f.detail for f in findings}
        assert "127.0.0.1, valid for 89 days" in details["cloud TLS"]
        for wrong in (None, "tandem_wrong"):
            failure = the_failure(await look(server.address, token=wrong, ca=authority.pem))
            assert failure.check == "cloud token"
            assert token not in repr(findings)
        failure = the_failure(await look(server.address))
        assert "--cloud-ca" in failure.advice, "it speaks TLS, we do not"


@pytest.mark.parametrize(
    ("begins", "ends", "host", "level", "word"),
    [
        (-2, -1, "127.0.0.1", FAIL, "ended at"),
        (1, 9, "127.0.0.1", FAIL, "begins at"),
        (-1, 9, "192.0.2.1", FAIL, "is for 192.0.2.1, not 127.0.0.1"),
        (-1, 9, "127.0.0.1", WARN, "valid for 8 days"),
    ],
)
async def test_certificates_that_will_not_do(
    authority: Authority, begins: float, ends: float, host: str, level: Level, word: str
) -> None:
    async with cloud(**tls(authority.issue("server", begins, ends, host))) as server:
        findings = await look(server.address, ca=authority.pem)
    found = next(f for f in findings if f.check == "cloud TLS")
    assert found.level is level
    assert word in found.detail
    assert (findings[-1] is found) == (level is FAIL)


async def test_another_authority_no_tls_and_a_file_that_is_none(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    stranger = Authority(tmp_path / "theirs")
    async with cloud(**tls(authority.issue("server"))) as server:
        failure = the_failure(await look(server.address, ca=stranger.pem))
        assert "authority" in failure.advice
        failure = the_failure(await look(server.address, ca=tmp_path / "nowhere.pem"))
        assert "cannot be read" in failure.detail
    async with cloud() as server:
        failure = the_failure(await look(server.address, ca=authority.pem))
        assert "does not speak TLS" in failure.detail


async def test_a_cloud_that_wants_our_certificate(authority: Authority) -> None:
    ours = authority.issue("device")
    settings = tls(authority.issue("server")) | {"client_ca": authority.pem}
    async with cloud(**settings) as server:
        failure = the_failure(await look(server.address, ca=authority.pem))
        assert "--client-cert" in failure.advice
        findings = await look(server.address, ca=authority.pem, certificate=ours[0], key=ours[1])
        assert {f.level for f in findings} == {OK}, findings


async def test_nobody_there() -> None:
    failure = the_failure(await look(f"127.0.0.1:{free_port()}"))
    assert failure.check == "cloud port"
    failure = the_failure(await look("no-such-host.invalid:7420"))
    assert failure.check == "cloud name"
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    async with server:
        failure = the_failure(await look(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    assert failure.check == "cloud session"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[int]:
    """A broker that knows one user."""
    port = free_port()
    passwords = folder / "passwords"
    passwords.touch(mode=0o600)
    maker = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
    subprocess.run([maker, "-b", passwords, "device", "secret"], check=True, capture_output=True)
    shutil.chown(passwords, os.getuid(), os.getgid())
    config = folder / "mosquitto.conf"
    user = ["user root"] if os.getuid() == 0 else []
    text = [f"listener {port} 127.0.0.1", f"password_file {passwords}", *user, *lines]
    config.write_text("\n".join([*text, "allow_anonymous false", ""]))
    assert MOSQUITTO is not None
    broker = subprocess.Popen(
        [MOSQUITTO, "-c", config], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    )
    assert broker.stdout is not None
    try:
        said = ""
        while "running" not in said:
            line = broker.stdout.readline()
            assert line, said
            said += line
        yield port
    finally:
        broker.terminate()
        broker.wait(30)
        broker.stdout.close()


async def look_at_broker(url: str, password: str | None, ca: Path | None = None) -> list[Finding]:
    return await run_chain(broker_checks(Broker.parse(url, password, ca)), 60.0)


@needs_mosquitto
async def test_a_broker_lets_its_user_in_and_nobody_else(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as port:
        url = f"mqtt://device@127.0.0.1:{port}"
        findings = await look_at_broker(url, "secret")
        assert [f.level for f in findings] == [OK] * 4, findings
        for address, password in ((url, "wrong"), (f"mqtt://127.0.0.1:{port}", None)):
            failure = the_failure(await look_at_broker(address, password))
            assert failure.check == "broker login"
            assert "TANDEM_MQTT_PASSWORD" in failure.advice


@needs_mosquitto
async def test_a_broker_with_tls(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("broker")
    with mosquitto(tmp_path, f"certfile {certificate}", f"keyfile {key}") as port:
        url = f"mqtts://device@127.0.0.1:{port}"
        findings = await look_at_broker(url, "secret", authority.pem)
        assert [f.level for f in findings] == [OK] * 4, findings
        assert the_failure(await look_at_broker(url, "secret")).check == "broker TLS"


@needs_mosquitto
async def test_a_broker_that_wants_our_certificate() -> None:
    async with MqttBroker(tls=True, client_certificates=True) as broker:
        assert broker.authority is not None
        url, ca = f"mqtts://localhost:{broker.port}", broker.authority.ca
        failure = the_failure(await look_at_broker(url, None, ca))
        assert "--mqtt-cert" in failure.advice
        certificate, key = broker.authority.sign(EDGE)
        checks = broker_checks(Broker.parse(url, None, ca, certificate, key))
        # the certificate of the test's broker is for a few days
        findings = await run_chain(checks, 60.0)
        assert [f.level for f in findings] == [OK, OK, WARN, OK], findings
        assert findings[-1].detail == "let in by its certificate"


async def test_a_password_goes_to_no_other_machine_in_the_clear() -> None:
    """As the daemon has it; only who says so sends it."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))
        writer.close()

    elsewhere = other_address()
    server = await asyncio.start_server(listen, elsewhere, 0)
    async with server:
        url = f"mqtt://device@{elsewhere}:{server.sockets[0].getsockname()[1]}"
        finding = await check_login(Broker.parse(url, "hunter2"))
        assert finding.level is FAIL
        assert "in the clear" in finding.detail
        assert "--mqtt-ca" in finding.advice
        assert not heard
        await check_login(Broker.parse(url, "hunter2", insecure=True))
        assert b"hunter2" in heard[0]


def other_address() -> str:
    """One of this machine's that is not loopback's; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def test_a_broker_address_that_cannot_be() -> None:
    for url in ("broker:1883", "http://x", "mqtt://", "mqtt://a:secret@x", "mqtt://x:99999"):
        with pytest.raises(ConfigurationError) as raised:
            Broker.parse(url)
        assert "secret" not in str(raised.value)
    with pytest.raises(ConfigurationError):
        Broker.parse("mqtt://x", ca=Path("ca.pem"))
    with pytest.raises(ConfigurationError, match="together"):
        Broker.parse("mqtts://x", certificate=Path("device.pem"))
    assert Broker.parse("mqtts://x").port == 8883


def doctor(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shared.cli", "doctor", "--threads", "1"]
    command += ["--precision", "float32", "--port", str(free_port())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment | {"COLUMNS": "200", "TANDEM_BUNDLE": str(tiny_bundle().folder)},
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


async def test_the_command_says_it_as_a_table_and_as_json() -> None:
    async with cloud() as server:
        table = await asyncio.to_thread(doctor, "--cloud", server.address)
        assert "fail" not in table.stdout
        for name in ("processor", "memory", "test answer", "cloud round trip"):
            assert name in table.stdout
        done = await asyncio.to_thread(doctor, "--cloud", server.address, "--json")
    record = json.loads(done.stdout)
    assert record["ok"] is True
    levels = {finding["check"]: finding["level"] for finding in record["findings"]}
    assert levels["test answer"] == levels["files"] == levels["cloud bundle"] == "ok"
    assert all(f["advice"] for f in record["findings"] if f["level"] != "ok")


def test_the_command_fails_where_something_does(tmp_path: Path) -> None:
    done = doctor("--bundle", str(tmp_path), "--cloud", "localhost:1", expect=1)
    assert "tandem prepare" in done.stdout
    assert "cloud port" in done.stdout
    record = json.loads(doctor("--precision", "int4", "--json", expect=1).stdout)
    assert [f["check"] for f in record["findings"] if f["level"] == "fail"] == ["precisions"]
    assert record["ok"] is False
    assert "HOST:PORT" in doctor("--cloud", "nonsense", expect=2).stderr
    assert "--mqtt" in doctor("--mqtt-ca", "ca.pem", expect=2).stderr
