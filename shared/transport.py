"""What both ends of a connection need: addresses, this machine or another, certificate files."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from shared.errors import ConfigurationError


def read_pem(path: Path) -> bytes:
    """Content of a PEM file; raise :class:`ConfigurationError` where it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in data:
        raise ConfigurationError(f"{path} is not a PEM file")
    return data


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or address, without brackets) is this machine and no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def joined(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets where they are needed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_and_port(text: str) -> tuple[str, int]:
    """The parts of ``HOST:PORT`` or ``:PORT``, which is of this machine alone.

    Raises:
        ValueError: it is no such text.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("an address reads HOST:PORT, or :PORT for this machine alone")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
