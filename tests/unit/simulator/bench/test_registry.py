"""Contenders by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.context_source import ContextCodec
from edge.generation import Mode
from shared.errors import ConfigurationError
from simulator.bench import registry, tandem_contenders
from simulator.bench.plan import BenchSettings
from simulator.bench.registry import (
    Bench,
    Family,
    Kind,
    load_contenders,
    parse_entrant,
    register,
)
from simulator.bench.tandem_contenders import engine_contender
from tests.edge_harness import edge_engine

DOCUMENTATION = Path(__file__).parents[4] / "docs" / "bench.md"
NAMES = tuple(load_contenders())


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
        ("warp-drive", "there are auto-cost, auto-latency, auto-quality, blocking@THRESHOLD"),
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


async def test_the_documentation_registers_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", dict(load_contenders()))
    text = DOCUMENTATION.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example, {**vars(tandem_contenders)})
    (new,) = set(registry._FAMILIES) - set(NAMES)
    settings = BenchSettings(8, ContextCodec.INT8, "float32", 1, 1, 0)
    async with edge_engine(None) as engine:
        family = parse_entrant(new).family
        async with family.open(Bench(engine, settings, None), None) as contender:
            assert isinstance(contender, tandem_contenders.EngineContender)
            assert contender._options.context is ContextCodec.INT8
