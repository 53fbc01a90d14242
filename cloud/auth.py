"""Who is calling: bearer tokens per tenant, or the name in a client certificate.

The token file holds one ``tenant:sha256`` a line (hexadecimal, ``#`` starts a comment), so a copy
of it opens nothing.  Tokens are 256 random bits; a plain SHA-256 of such is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cloud.metrics import CloudMetrics
from shared.errors import AuthenticationError, ConfigurationError
from shared.messages import ErrorCode

DEFAULT_TENANT = "default"
_TENANT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DIGEST = re.compile(r"^[0-9a-f]{64}\Z")

Metadata = Iterable[tuple[str, str | bytes]]
Tokens = Sequence[tuple[str, str]]


class Authenticator:
    """Tells a caller's tenant.

    Args:
        tokens: ``(tenant, SHA-256 in hexadecimal)``, several a tenant if need be, or what gives
            them at the moment; ``None`` asks for no token, and the tenant is the certificate's
            common name, or ``default``.
    """

    def __init__(self, tokens: Tokens | Callable[[], Tokens] | None = None) -> None:
        self._tokens = tokens

    def tenant(self, metadata: Metadata, certificate: Mapping[str, Sequence[bytes]]) -> str:
        """The tenant that ``metadata`` proves (or, without tokens, the ``certificate`` that gRPC's
        ``auth_context()`` shows); raise :class:`AuthenticationError`."""
        if self._tokens is None:
            names = certificate.get("x509_common_name", ())
            return names[0].decode("utf-8", "replace") if names else DEFAULT_TENANT
        digest = hashlib.sha256(_bearer_token(metadata)).hexdigest()
        found = None
        tokens = self._tokens() if callable(self._tokens) else self._tokens
        for tenant, known in tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, known):
                found = tenant
        if found is None:
            raise AuthenticationError(
                "the token is not one of this cloud's: set TANDEM_TOKEN to one that `tandem cloud "
                "token` printed there"
            )
        return found


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls of ``method`` without a valid token before anything of them is read."""

    def __init__(self, authenticator: Authenticator, method: str, metrics: CloudMetrics) -> None:
        self._authenticator, self._method, self._metrics = authenticator, method, metrics

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Pass the call on, or answer UNAUTHENTICATED."""
        if handler_call_details.method == self._method:
            try:
                self._authenticator.tenant(handler_call_details.invocation_metadata, {})
            except AuthenticationError as error:
                self._metrics.errors.labels(ErrorCode.UNAUTHENTICATED.name).inc()
                return _refusal(str(error))
        return await continuation(handler_call_details)


def _refusal(details: str) -> Any:
    async def refuse(_requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, details)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _bearer_token(metadata: Metadata) -> bytes:
    for key, value in metadata:
        if key == "authorization":
            text = value if isinstance(value, bytes) else value.encode()
            scheme, _, token = text.partition(b" ")
            if scheme.lower() == b"bearer" and token:
                return token
    raise AuthenticationError(
        "this cloud asks for a bearer token: set TANDEM_TOKEN to one that `tandem cloud token` "
        "printed there"
    )


def read_token_file(path: Path) -> list[tuple[str, str]]:
    """``(tenant, digest)`` of each line; raise :class:`ConfigurationError` that names a bad one."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the token file {path} cannot be read: {error}") from None
    tokens = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        tenant, _, digest = text.partition(":")
        if not (_TENANT.match(tenant) and _DIGEST.match(digest)):
            raise ConfigurationError(f"{path}:{number}: a line reads TENANT:SHA256")
        tokens.append((tenant, digest))
    if not tokens:
        raise ConfigurationError(f"{path} holds no token: run `tandem cloud token`")
    return tokens


def add_token(path: Path, tenant: str) -> str:
    """Make a token for ``tenant``, append its hash to ``path`` and return the token itself."""
    if not _TENANT.match(tenant):
        raise ConfigurationError(
            f"tenant {tenant!r}: letters, digits, dot, dash and underscore, 64 at most"
        )
    token = f"tandem_{secrets.token_urlsafe(32)}"
    line = f"{tenant}:{hashlib.sha256(token.encode()).hexdigest()}\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END):  # an editor may have left the last line open
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else f"\n{line}"
            file.write(line.encode())  # in one piece: a cloud that runs may read it just now
    except OSError as error:
        raise ConfigurationError(f"the token file {path} cannot be written: {error}") from None
    return token
