"""Certificates of a client, checked before anything is sent with them."""

from __future__ import annotations

import ssl
from pathlib import Path

from shared.errors import ConfigurationError
from shared.transport import read_pem


def client_context(
    ca: Path, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """How a client trusts those that ``ca`` signed, and shows its own certificate where it has one.

    Raises:
        ConfigurationError: a file that cannot be read, holds no certificate, or is encrypted; a key
            that belongs to another certificate.
    """
    named = ca
    try:
        context = ssl.create_default_context(cadata=read_pem(ca).decode("ascii", "ignore"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate and key:
            named = certificate
            read_pem(certificate)
            read_pem(key)
            context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        raise ConfigurationError(
            f"{named} is no certificate that can be used, or its key is another's or encrypted"
        ) from None
    return context
