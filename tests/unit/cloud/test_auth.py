"""Tokens, their file, and the names in certificates."""

from __future__ import annotations

import hmac
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from cloud.auth import DEFAULT_TENANT, Authenticator, Metadata, add_token, read_token_file
from shared.errors import AuthenticationError, ConfigurationError


def bearer(token: str) -> Metadata:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


def test_a_token_tells_its_tenant(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    alice, bob, second = (add_token(path, name) for name in ("alice", "bob", "alice"))
    authenticator = Authenticator(read_token_file(path))
    for token, tenant in ((alice, "alice"), (bob, "bob"), (second, "alice")):
        assert authenticator.tenant(bearer(token), {}) == tenant
    assert authenticator.tenant([("authorization", f"bearer {bob}".encode())], {}) == "bob"


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        bearer("tandem_wrong"),
        bearer(""),
        [("authorization", "Basic abc")],
        [("authorization", "token-alone")],
        [("authorization", b"Bearer \xff\xfe")],
    ],
)
def test_anything_else_is_refused(tmp_path: Path, metadata: Metadata) -> None:
    add_token(tmp_path / "tokens", "alice")
    authenticator = Authenticator(read_token_file(tmp_path / "tokens"))
    with pytest.raises(AuthenticationError):
        authenticator.tenant(metadata, {"x509_common_name": [b"alice"]})


@pytest.mark.parametrize("right", [0, 1, None])
def test_every_token_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: int | None
) -> None:
    tokens = [add_token(tmp_path / "tokens", name) for name in ("alice", "bob", "carol")]
    known = read_token_file(tmp_path / "tokens")
    compared: list[str] = []
    compare = hmac.compare_digest

    def watched(given: str, other: str) -> bool:
        compared.append(other)
        return compare(given, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    token = "tandem_wrong" if right is None else tokens[right]
    with nullcontext() if right is not None else pytest.raises(AuthenticationError):
        Authenticator(known).tenant(bearer(token), {})
    assert compared == [digest for _, digest in known]


def test_the_hash_in_the_file_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = add_token(path, "alice")
    assert token not in path.read_text()
    ((_, digest),) = read_token_file(path)
    with pytest.raises(AuthenticationError):
        Authenticator([("alice", digest)]).tenant(bearer(digest), {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_tokens_the_certificate_names_the_tenant() -> None:
    authenticator = Authenticator()
    assert authenticator.tenant([], {}) == DEFAULT_TENANT
    assert authenticator.tenant([], {"x509_common_name": [b"alice"]}) == "alice"


def test_comments_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# made by hand\n\nalice:{'a' * 64}  # laptop\n")
    assert read_token_file(path) == [("alice", "a" * 64)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no token"),
        ("# nothing\n", "no token"),
        (f"alice:{'a' * 64}\nalice {'b' * 64}\n", ":2:"),
        (f"alice:{'a' * 63}\n", ":1:"),
        (f"alice:{'A' * 64}\n", ":1:"),
        (f"../etc:{'a' * 64}\n", ":1:"),
        ("\ufffd", ":1:"),
    ],
)
def test_a_bad_token_file_says_where(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigurationError, match=named):
        read_token_file(path)


def test_an_unreadable_token_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_token_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_token_file(tmp_path / "binary")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        add_token(tmp_path / "none" / "tokens", "alice")


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "a/b", "-a", "a" * 65, "a\n"])
def test_a_bad_tenant_is_refused(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="tenant"):
        add_token(tmp_path / "tokens", tenant)
    assert not (tmp_path / "tokens").exists()
