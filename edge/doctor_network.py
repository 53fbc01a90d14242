"""What the checks of cloud and broker share: names, connections, certificates."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.doctor import Finding, fail, in_thread, ok, warn
from shared.errors import ConfigurationError
from shared.transport import read_pem

_SOCKET_SECONDS = 2.5
_EXPIRES_SOON_SECONDS = 14 * 86400
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which ssl does not name
_EXPIRED, _NOT_YET_VALID, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64


@dataclass(frozen=True)
class Peer:
    """Whom to reach, and by which TLS; without ``ca`` (and ``system_ca``) in the clear.

    ``name`` begins the findings' names; ``ca_option`` is what the user names an authority with.
    """

    name: str
    host: str
    port: int
    ca_option: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    system_ca: bool = False
    protocols: tuple[str, ...] = ()
    certificate_advice: str = "give this device's own certificate: --client-cert and --client-key"

    @property
    def encrypted(self) -> bool:
        """Whether TLS is wanted."""
        return self.ca is not None or self.system_ca


async def check_name(peer: Peer) -> Finding:
    """DNS."""
    check = f"{peer.name} name"
    try:
        found = await in_thread(
            lambda: socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
        )
    except OSError as error:
        advice = "check the spelling, and this machine's network and DNS server"
        return fail(check, f"{peer.host}: {error.strerror or error}", advice)
    return ok(check, f"{peer.host} is {', '.join(dict.fromkeys(str(x[4][0]) for x in found))}")


async def check_port_open(peer: Peer) -> Finding:
    """TCP."""
    return await in_thread(_connect_plainly, peer)


async def check_tls(peer: Peer) -> Finding:
    """The handshake that Tandem will make, the certificate's dates and names, and whether a
    certificate of ours is asked for; without TLS, whether the other side wants it."""
    return await in_thread(_greet_encrypted if peer.encrypted else _expect_plain, peer)


def _connect_plainly(peer: Peer) -> Finding:
    check = f"{peer.name} port"
    began = time.monotonic()
    try:
        with socket.create_connection((peer.host, peer.port), _SOCKET_SECONDS):
            took = time.monotonic() - began
    except TimeoutError:
        advice = "a firewall may drop it; is the address right, and reachable from here?"
        return fail(check, f"{peer.port} does not answer", advice)
    except OSError as error:
        advice = f"is the {peer.name} running there, and listening for other machines (--host)?"
        return fail(check, f"{peer.port}: {error.strerror or error}", advice)
    return ok(check, f"{peer.port} is open ({took * 1000:.1f} ms)")


def _expect_plain(peer: Peer) -> Finding:
    """Fail where the other side speaks TLS though no authority was named."""
    check = f"{peer.name} TLS"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether it answers
    with contextlib.suppress(OSError), _handshake(peer, context, 1.0):
        return fail(check, "it speaks TLS", f"name its authority: {peer.ca_option} ca.pem")
    return ok(check, "none: everything travels in the clear")


def _greet_encrypted(peer: Peer) -> Finding:
    check = f"{peer.name} TLS"
    try:
        context = _context(peer)
    except (ConfigurationError, OSError) as error:
        return fail(check, str(error), f"check {peer.ca_option}, certificate and key")
    try:
        with _handshake(peer, context) as connection:
            seen: Mapping[str, Any] = connection.getpeercert() or {}
            refused = _refusal(connection)
    except ssl.SSLCertVerificationError as error:
        return judge_refused_certificate(
            peer, error.verify_code, error.verify_message, _look_anyway(peer), time.time()
        )
    except OSError as error:
        return _broken_handshake(peer, error)
    if refused:
        return fail(check, f"it refuses this device ({refused})", peer.certificate_advice)
    return judge_certificate(peer, seen, time.time())


def _broken_handshake(peer: Peer, error: OSError) -> Finding:
    check = f"{peer.name} TLS"
    if isinstance(error, ssl.SSLError):
        if "WRONG_VERSION" in str(error) or "RECORD_LAYER" in str(error):
            advice = f"leave {peer.ca_option} out, or turn TLS on there"
            return fail(check, "it does not speak TLS", advice)
        return fail(check, str(error.reason or error), "do both sides want the same TLS?")
    advice = "does it speak TLS on this port?"
    return fail(check, f"the handshake broke off: {error.strerror or error}", advice)


def _context(peer: Peer) -> ssl.SSLContext:
    if peer.ca is not None:
        read_pem(peer.ca)  # says what is wrong better than OpenSSL does
    context = ssl.create_default_context(cafile=str(peer.ca) if peer.ca else None)
    if peer.certificate is not None and peer.key is not None:
        read_pem(peer.certificate), read_pem(peer.key)
        context.load_cert_chain(peer.certificate, peer.key)
    if peer.protocols:
        context.set_alpn_protocols(list(peer.protocols))
    return context


@contextlib.contextmanager
def _handshake(peer: Peer, context: ssl.SSLContext, seconds: float = _SOCKET_SECONDS) -> Any:
    with (
        socket.create_connection((peer.host, peer.port), seconds) as plain,
        context.wrap_socket(plain, server_hostname=peer.host) as connection,
    ):
        yield connection


def _refusal(connection: ssl.SSLSocket) -> str:
    """TLS 1.3 tells only after the handshake that a client's certificate is missing or wrong.
    Who has nothing to say meanwhile (a broker) has not refused."""
    connection.settimeout(0.5)
    try:
        closed = not connection.recv(1)
    except TimeoutError:
        closed = False
    except ssl.SSLError as error:
        return str(error.reason or error).lower().replace("_", " ")
    except OSError:
        closed = True
    return "it closes the connection after the handshake" if closed else ""


def _look_anyway(peer: Peer) -> Mapping[str, Any]:
    """The certificate of a peer that was refused for its dates or its name; nothing where its
    authority is another."""
    context = _context(peer)
    context.check_hostname = False
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
    try:
        with _handshake(peer, context, 1.0) as connection:
            return connection.getpeercert() or {}
    except (OSError, ValueError):
        return {}


def judge_certificate(peer: Peer, certificate: Mapping[str, Any], now: float) -> Finding:
    """One that was accepted (as ``SSLSocket.getpeercert`` shows it)."""
    check = f"{peer.name} TLS"
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((ends - now) // 86400)
    detail = f"certificate for {names_of(certificate)}, valid for {days} days more"
    if ends - now < _EXPIRES_SOON_SECONDS:
        return warn(check, detail, "renew it soon: nothing will connect afterwards")
    return ok(check, detail)


def judge_refused_certificate(
    peer: Peer, code: int, message: str, certificate: Mapping[str, Any], now: float
) -> Finding:
    """One that was refused; ``code`` is OpenSSL's, ``certificate`` what could be seen of it."""
    check = f"{peer.name} TLS"
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if code == _EXPIRED:
        ended = certificate.get("notAfter", "earlier")
        detail = f"the certificate ended at {ended}, and this clock says {shown}"
        return fail(check, detail, "renew the certificate there, or set this clock right")
    if code == _NOT_YET_VALID:
        begins = certificate.get("notBefore", "later")
        detail = f"the certificate begins at {begins}, and this clock says {shown}"
        return fail(check, detail, "set this clock right (timedatectl set-ntp true), or wait")
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        detail = f"the certificate is for {names_of(certificate)}, not {peer.host}"
        return fail(check, detail, "use a name that it has, or have one made for this name")
    advice = f"{peer.ca_option} must name the authority that signed it"
    return fail(check, f"the certificate is refused: {message}", advice)


def names_of(certificate: Mapping[str, Any]) -> str:
    """Names and addresses that a certificate is for."""
    names: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    return ", ".join(name for _, name in names) or "no name"
