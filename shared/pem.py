"""Certificates and keys as files."""

from __future__ import annotations

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
