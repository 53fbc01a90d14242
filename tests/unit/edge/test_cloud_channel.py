from __future__ import annotations

from pathlib import Path

import pytest

from edge.cloud_channel import CloudEndpoint
from shared.errors import ConfigurationError


@pytest.mark.parametrize("address", ["cloud", "cloud:", ":1", "cloud:99999", "a b:1", "cloud:0x1"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        CloudEndpoint(address)


@pytest.mark.parametrize("address", ["127.0.0.1:7070", "localhost:1", "[::1]:7070"])
def test_a_token_may_travel_in_the_clear_on_loopback(address: str) -> None:
    assert CloudEndpoint(address, "t0ken").metadata == (("authorization", "Bearer t0ken"),)


def test_a_token_does_not_leave_the_machine_in_the_clear_unless_told_to() -> None:
    with pytest.raises(ConfigurationError, match="in the clear"):
        CloudEndpoint("cloud.example:7070", "t0ken")
    CloudEndpoint("cloud.example:7070", "t0ken", plaintext_token=True)


@pytest.mark.parametrize("address", ["127.attacker.example:1", "localhost.example:1", "10.0.0.1:1"])
def test_a_name_that_looks_like_loopback_is_not(address: str) -> None:
    with pytest.raises(ConfigurationError, match="in the clear"):
        CloudEndpoint(address, "t0ken")


def test_a_token_is_not_shown() -> None:
    assert "t0ken" not in repr(CloudEndpoint("localhost:1", "t0ken"))


def test_a_token_with_a_line_break_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="characters"):
        CloudEndpoint("localhost:7070", "t0ken\r\nx: y")


def test_a_certificate_needs_its_key_and_tls(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="come together"):
        CloudEndpoint("localhost:1", certificate=tmp_path / "a.pem")
    with pytest.raises(ConfigurationError, match="CA"):
        CloudEndpoint("localhost:1", certificate=tmp_path / "a.pem", key=tmp_path / "b.pem")


async def test_certificates_that_do_not_load_are_named(tmp_path: Path) -> None:
    missing, junk = tmp_path / "missing.pem", tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        CloudEndpoint("localhost:1", ca=missing).channel()
    with pytest.raises(ConfigurationError, match=r"junk\.pem is not a PEM"):
        CloudEndpoint("localhost:1", ca=junk).channel()
