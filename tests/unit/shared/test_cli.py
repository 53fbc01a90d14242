"""Which extra a command is told to install."""

from __future__ import annotations

import pytest

from shared.cli import _extra_with


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("grpc", "edge", "edge"),
        ("grpc", "cloud", "cloud"),
        ("numba", "cloud", "cloud"),
        ("grpc_health", "demo", "simulator"),
        ("matplotlib", "bench", "simulator"),
        ("gguf", "prepare", "prepare"),
        ("simpy", "simulate", "simulator"),
        ("ray", "cloud", "ray"),
        ("left_pad", "cloud", None),
    ],
)
def test_the_extra_is_the_one_that_the_command_needs(
    package: str, command: str, extra: str | None
) -> None:
    assert _extra_with(package, [command, "serve"]) == extra


def test_without_a_command_it_is_the_first_that_brings_the_package() -> None:
    assert _extra_with("grpc", []) == "edge"
