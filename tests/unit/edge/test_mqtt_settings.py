"""What can be a broker's address, an edge's name, a password's way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edge.mqtt_connection import Backoff
from edge.mqtt_settings import BrokerSettings, MqttSettings, split_address
from shared.errors import ConfigurationError


def settings(**changes: Any) -> MqttSettings:
    return MqttSettings(**({"host": "broker.example", "edge_id": "kitchen"} | changes))


def test_topics_begin_with_prefix_and_name() -> None:
    assert settings().topic("kitchen", "status") == "tandem/kitchen/status"
    assert settings(prefix="home/ai").topic("+", "status") == "home/ai/+/status"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"host": ""}, "name or address"),
        ({"host": "a b"}, "name or address"),
        ({"host": "a..b"}, "name or address"),
        ({"host": "x" * 64}, "name or address"),
        ({"port": 0}, "not a port"),
        ({"port": 65536}, "not a port"),
        ({"edge_id": ""}, "cannot name an edge"),
        ({"edge_id": "Kitchen"}, "cannot name an edge"),
        ({"edge_id": "a/b"}, "cannot name an edge"),
        ({"edge_id": "+"}, "cannot name an edge"),
        ({"edge_id": "a\n"}, "cannot name an edge"),
        ({"edge_id": "x" * 65}, "cannot name an edge"),
        ({"prefix": ""}, "cannot begin topics"),
        ({"prefix": "a/+"}, "cannot begin topics"),
        ({"prefix": "a/#"}, "cannot begin topics"),
        ({"prefix": "$SYS"}, "cannot begin topics"),
        ({"prefix": "/a"}, "cannot begin topics"),
        ({"keep_alive_seconds": 0}, "keep-alive"),
        ({"telemetry_seconds": 0.0}, "telemetry"),
        ({"telemetry_seconds": float("nan")}, "telemetry"),
        ({"telemetry_seconds": float("inf")}, "telemetry"),
        ({"password": "x"}, "needs a user"),
        ({"user": "a", "password": ""}, "password is empty"),
        ({"user": "a\x00"}, "control characters"),
        ({"user": "a", "password": "secret"}, "in the clear"),
        ({"certificate": Path("a.pem")}, "come together"),
        ({"certificate": Path("a.pem"), "key": Path("a.key")}, "needs TLS"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "localhost"},
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"ca": Path("ca.pem")},
        {"insecure": True},
    ],
)
def test_a_password_goes_to_this_machine_over_tls_or_where_one_insists(
    changes: dict[str, Any],
) -> None:
    made = settings(user="a", password="secret", **changes)
    assert "secret" not in repr(made)


@pytest.mark.parametrize(
    ("address", "tls", "parts"),
    [
        ("localhost", False, ("localhost", 1883)),
        ("localhost", True, ("localhost", 8883)),
        ("broker.example:99", True, ("broker.example", 99)),
        ("[::1]:99", False, ("::1", 99)),
        ("[::1]", False, ("::1", 1883)),
    ],
)
def test_addresses(address: str, tls: bool, parts: tuple[str, int]) -> None:
    assert split_address(address, tls=tls) == parts
    host, port = parts
    assert split_address(BrokerSettings(host=host, port=port).address, tls=tls) == parts


@pytest.mark.parametrize("address", ["", ":1", "a:", "a:b", "a:1:2", "::1", "a b:1", "a:123456"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigurationError, match="not HOST:PORT"):
        split_address(address, tls=False)


def test_back_off_doubles_within_bounds_and_begins_anew() -> None:
    backoff = Backoff(1.0, 60.0, random.Random(7))
    waits = [backoff.next() for _ in range(200)]
    for attempt, wait in enumerate(waits):
        bound = min(60.0, 2.0**attempt)
        assert bound / 2 <= wait <= bound
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next() <= 1.0
    again = Backoff(1.0, 60.0, random.Random(7))
    assert [again.next() for _ in range(200)] == waits
