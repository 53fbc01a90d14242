"""What both ends of a connection ask: is it this machine, and is that file a certificate?"""

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
