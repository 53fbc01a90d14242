"""docker/make-certificates, read back with a library of its own and by gRPC's handshake."""

from __future__ import annotations

import ipaddress
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SCRIPT = Path(__file__).parents[3] / "docker/make-certificates"
OWNER = ["--owner", f"{os.getuid()}:{os.getgid()}"] if os.getuid() == 0 else []
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")


def make(*arguments: str, expect: int = 0) -> str:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "secrets"
    make("--out", str(out), *OWNER, "cloud.example", "192.0.2.7")
    return out


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names_in(path: Path) -> tuple[list[str], list[object]]:
    """DNS names and IP addresses."""
    found = load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName), [*found.get_values_for_type(x509.IPAddress)]


def test_all_files_are_for_their_owner_alone(made: Path) -> None:
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert files == {
        "ca/ca.pem", "ca/ca.key",
        "cloud/ca.pem", "cloud/cloud.pem", "cloud/cloud.key",
        "broker/ca.pem", "broker/broker.pem", "broker/broker.key",
        "edge/ca.pem", "edge/client.pem", "edge/client.key",
        "grafana/password",
    }  # fmt: skip
    for path in made.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["cloud", "broker"])
def test_server_certificates_hold_every_name(made: Path, name: str) -> None:
    certificate = load(made / name / f"{name}.pem")
    certificate.verify_directly_issued_by(load(made / name / "ca.pem"))
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("192.0.2.7")]
    assert names_in(made / name / f"{name}.pem") == (
        [name, "localhost", "cloud.example"],
        addresses,
    )
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_nothing_is_overwritten(made: Path) -> None:
    before = (made / "ca/ca.key").read_bytes()
    assert "is there already; nothing was changed" in make("--out", str(made), expect=1)
    assert (made / "ca/ca.key").read_bytes() == before


def test_a_further_client_is_of_the_same_authority(made: Path) -> None:
    make("--client", "kitchen", "--out", str(made), *OWNER)
    certificate = load(made / "clients/kitchen/client.pem")
    certificate.verify_directly_issued_by(load(made / "ca/ca.pem"))
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "kitchen"
    assert "is there already" in make("--client", "kitchen", "--out", str(made), expect=1)


def test_renewing_keeps_the_authority_the_names_and_what_else_is_there(tmp_path: Path) -> None:
    out = tmp_path / "secrets"
    make("--out", str(out), *OWNER, "cloud.example", "192.0.2.7", "2001:db8::7")
    (out / "cloud/tokens.txt").write_text("alice:0\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    names = names_in(out / "cloud/cloud.pem")
    make("--renew", "--out", str(out), *OWNER, "--days", "30")
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {"cloud.pem", "cloud.key", "broker.pem", "broker.key", "client.pem",
                       "client.key"}  # fmt: skip
    renewed = load(out / "cloud/cloud.pem")
    renewed.verify_directly_issued_by(load(out / "ca/ca.pem"))
    assert (renewed.not_valid_after_utc - renewed.not_valid_before_utc).days == 30
    assert names_in(out / "cloud/cloud.pem") == names
    assert stat.S_IMODE((out / "cloud/cloud.key").stat().st_mode) == 0o600
    make("--renew", "--out", str(out), *OWNER, "other.example")
    assert names_in(out / "broker/broker.pem")[0] == ["broker", "localhost", "other.example"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a b"], "neither a DNS name nor an IP address"),
        (["x\nDNS:evil"], "neither a DNS name nor an IP address"),
        (["--days", "soon"], "not a number of days"),
        (["--wrong"], "there is no option --wrong"),
        (["--client"], "needs a value"),
        (["--client", "kitchen"], "make everything first"),
        (["--renew"], "make everything first"),
        (["--renew", "--client", "kitchen"], "do not go together"),
    ],
)
def test_mistakes_leave_nothing_behind(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    out = tmp_path / "secrets"
    assert complaint in make("--out", str(out), *arguments, expect=1)
    assert not out.exists()


def test_the_containers_owner_is_told(tmp_path: Path) -> None:
    said = make("--out", str(tmp_path / "secrets"), *OWNER)
    owner = (tmp_path / "secrets/cloud/cloud.key").stat()
    assert f"TANDEM_UID={owner.st_uid}\nTANDEM_GID={owner.st_gid}\n" in said
