"""Files that change while the cloud runs: tokens, and quotas."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from cloud.auth import Authenticator, add_token, read_token_file
from cloud.quotas import QuotaFile
from cloud.watched_file import CHECK_SECONDS, WatchedFile
from shared.clock import ManualClock
from shared.errors import AuthenticationError, ConfigurationError


class Box:
    """A token file with alice in it, on a clock that is turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens"
        self.alice = add_token(self.path, "alice")
        self.clock = ManualClock()
        self.reads = 0
        self.file = WatchedFile(self.path, self._read, "token file", clock=self.clock)
        self._authenticator = Authenticator(self.file.current)

    def _read(self, path: Path) -> list[tuple[str, str]]:
        self.reads += 1
        return read_token_file(path)

    def replace(self, text: str) -> None:
        """As an operator should: another file, renamed."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.path)

    def tenant(self, token: str) -> str | None:
        try:
            return self._authenticator.tenant([("authorization", f"Bearer {token}")], {})
        except AuthenticationError:
            return None


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def line(tenant: str, token: str) -> str:
    return f"{tenant}:{hashlib.sha256(token.encode()).hexdigest()}\n"


def test_a_change_is_seen_after_a_second_and_not_looked_for_before(box: Box) -> None:
    bob = add_token(box.path, "bob")
    assert box.tenant(bob) is None
    box.clock.advance(CHECK_SECONDS)
    assert (box.tenant(bob), box.tenant(box.alice)) == ("bob", "alice")


def test_a_removed_token_is_refused(box: Box) -> None:
    box.replace(line("bob", "b"))
    box.clock.advance(CHECK_SECONDS)
    assert (box.tenant("b"), box.tenant(box.alice)) == ("bob", None)


def test_a_file_of_the_same_size_and_time_is_another_one(box: Box) -> None:
    stat = box.path.stat()
    box.replace(line("alice", "another"))
    os.utime(box.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert box.path.stat().st_size == stat.st_size
    box.clock.advance(CHECK_SECONDS)
    assert (box.tenant("another"), box.tenant(box.alice)) == ("alice", None)


@pytest.mark.parametrize("text", ["", "alice", "bob:123\n", None])
def test_a_broken_file_leaves_the_tokens_and_is_logged_once(
    box: Box, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if text is None:
        box.path.unlink()
    else:
        box.replace(text)
    for _ in range(3):
        box.clock.advance(CHECK_SECONDS)
        assert box.tenant(box.alice) == "alice"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(box.path) in str(record.fields)  # type: ignore[attr-defined]
    box.replace(line("bob", "b"))
    box.clock.advance(CHECK_SECONDS)
    assert (box.tenant("b"), box.tenant(box.alice)) == ("bob", None)


def test_an_unchanged_file_is_not_read_again(box: Box) -> None:
    box.clock.advance(CHECK_SECONDS)
    assert box.tenant(box.alice) == "alice"
    assert box.reads == 1


def test_reload_does_not_wait(box: Box) -> None:
    bob = add_token(box.path, "bob")
    box.file.reload()
    assert box.tenant(bob) == "bob"


def test_a_file_that_is_broken_from_the_start_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        WatchedFile(tmp_path / "none", read_token_file, "token file")


def test_a_token_is_added_after_a_last_line_that_was_left_open(box: Box) -> None:
    box.path.write_text(line("carol", "c").rstrip())
    add_token(box.path, "bob")
    assert [tenant for tenant, _ in read_token_file(box.path)] == ["carol", "bob"]


def test_quotas_change_when_somebody_looks(tmp_path: Path) -> None:
    path, clock = tmp_path / "quotas.toml", ManualClock()
    path.write_text("[default]\nsessions = 2\n")
    file = QuotaFile(path, clock=clock)
    path.write_text("[default]\nsessions = 30\n")
    assert not file.look()  # not yet
    clock.advance(CHECK_SECONDS)
    assert file.of("alice").sessions == 2
    assert file.look()
    assert file.of("alice").sessions == 30
    path.write_text("[default")
    clock.advance(CHECK_SECONDS)
    assert not file.look()
    assert file.of("alice").sessions == 30
