"""Tokens: made once, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from cloud.auth import DEFAULT_TENANT, Authenticator, add_token, read_token_file
from shared.errors import AuthenticationError, ConfigurationError

DIGEST = hashlib.sha256(b"secret").hexdigest()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", "test"), ("authorization", f"Bearer {token}"))


def test_a_token_names_its_tenant(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens = {tenant: add_token(path, tenant) for tenant in ("alice", "bob", "c.d-e_9")}
    tokens["alice again"] = add_token(path, "alice")
    authenticator = Authenticator(read_token_file(path))
    for tenant, token in tokens.items():
        assert authenticator.tenant(bearer(token), {}) == tenant.partition(" ")[0]
    assert len(set(tokens.values())) == 4


def test_the_file_holds_no_token_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = add_token(path, "alice")
    assert token not in path.read_text()
    assert path.read_text() == f"alice:{hashlib.sha256(token.encode()).hexdigest()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "secret"),),
        (("authorization", "Basic secret"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer secret2"),),
        (("authorization", f"Bearer {DIGEST}"),),
        (("x-authorization", "Bearer secret"),),
        (("authorization", b"Bearer \xff"),),
    ],
)
def test_anything_else_is_refused(metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    authenticator = Authenticator([("alice", DIGEST)])
    assert authenticator.tenant(bearer("secret"), {}) == "alice"
    with pytest.raises(AuthenticationError):
        authenticator.tenant(metadata, {})


def test_the_schemes_name_may_be_in_any_case() -> None:
    authenticator = Authenticator([("alice", DIGEST)])
    assert authenticator.tenant((("authorization", b"bEARER secret"),), {}) == "alice"


def test_without_tokens_the_certificate_names_the_tenant() -> None:
    authenticator = Authenticator()
    assert authenticator.tenant((), {}) == DEFAULT_TENANT
    assert authenticator.tenant(bearer("any"), {"x509_common_name": [b"edge-7"]}) == "edge-7"


def test_with_tokens_a_certificate_is_not_enough() -> None:
    with pytest.raises(AuthenticationError):
        Authenticator([("alice", DIGEST)]).tenant((), {"x509_common_name": [b"alice"]})


def test_comments_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n\n  alice:{DIGEST}  # her laptop\n")
    assert read_token_file(path) == [("alice", DIGEST)]


@pytest.mark.parametrize(
    "line",
    ["alice", "alice:", f":{DIGEST}", f"a b:{DIGEST}", f"alice:{DIGEST[:-1]}", "alice:secret"],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ok:{DIGEST}\n{line}\n")
    with pytest.raises(ConfigurationError, match=":2:"):
        read_token_file(path)


def test_an_empty_or_missing_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_token_file(path)
    path.write_text("# nobody yet\n")
    with pytest.raises(ConfigurationError, match="no token"):
        read_token_file(path)


@pytest.mark.parametrize("tenant", ["", "a:b", "a b", "-a", "a\n", "x" * 65])
def test_a_tenants_name_fits_on_its_line(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="tenant"):
        add_token(tmp_path / "tokens", tenant)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        add_token(tmp_path / "absent" / "tokens", "alice")
