"""Configurations of fleets: what is refused, by which name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from edge.controller import Aim
from edge.plan import Plan
from shared.errors import ConfigurationError, LinkError
from simulator.fleet.config import FleetConfig, load_config, parse_config
from simulator.fleet.policies import PolicyName
from simulator.packet_trace import Trace, save_trace
from tests.fleet_harness import write_machines

EXAMPLES = sorted(Path(str(files("simulator.fleet") / "examples")).glob("*.toml"))


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    device, cloud = write_machines(tmp_path)
    return {"cloud": {"profile": cloud}, "edges": [{"device": device}]}


def parse(fields: dict[str, Any]) -> FleetConfig:
    return parse_config(fields, "test")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.edges
    for group in config.edges:
        group.make_link()


_VALUES: dict[str, Any] = {
    "threshold": 0.7, "window": 8, "burst": 2, "lookahead": 1, "codec": "tokens", "aim": "cost",
    "private": True, "target_agreement": 0.9, "cloud_token_price": 1.0,
}  # fmt: skip


def test_there_are_examples() -> None:
    assert {"home.toml", "policies.toml", "city.toml"} <= {path.name for path in EXAMPLES}


def test_defaults(fields: dict[str, Any]) -> None:
    config = parse(fields)
    assert config.duration_s == 3600.0
    assert config.edges[0].policy is PolicyName.AUTO
    assert config.edges[0].aim is Aim.LATENCY
    assert config.edges[0].label == "device, loopback, auto-latency"


@pytest.mark.parametrize(
    ("where", "key", "value", "named"),
    [
        ((), "durations", 1, "durations"),
        ((), "duration_s", -1, "duration_s"),
        ((), "duration_s", "long", "duration_s"),
        ((), "warmup_s", 3600, "warmup_s"),
        ((), "edges", [], "edges"),
        (("workload",), "think", 1, "workload.think"),
        (("workload",), "think_s", 0, "workload.think_s"),
        (("workload",), "diurnal", 1.5, "workload.diurnal"),
        (("cloud",), "replica", 1, "cloud.replica"),
        (("cloud",), "replicas", 0, "cloud.replicas"),
        (("edges", 0), "polcy", "auto", "edges.0.polcy"),
        (("edges", 0), "policy", "guess", "edges.0.policy"),
        (("edges", 0), "count", 0, "edges.0.count"),
        (("edges", 0), "threshold", 0.5, "threshold"),
        (("edges", 0), "link", "carrier-pigeon", "carrier-pigeon"),
        (("edges", 0), "device", "abacus", "abacus"),
        (("cloud",), "profile", "abacus", "abacus"),
        (("edges", 0), "trace_up", "/nowhere/at.all", "/nowhere/at.all"),
    ],
)
def test_what_is_wrong_is_named(
    fields: dict[str, Any], where: tuple[Any, ...], key: str, value: Any, named: str
) -> None:
    table: Any = fields
    for part in where:
        table = table.setdefault(part, {}) if isinstance(part, str) else table[part]
    table[key] = value
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        parse(fields)


@pytest.mark.parametrize(
    ("edges", "named"),
    [
        ({"policy": "blocking", "aim": "cost"}, "aim"),
        ({"policy": "cloud-only", "private": True}, "private"),
        ({"policy": "optimistic", "burst": 4, "codec": "fp16"}, "burst"),
        ({"private": True, "codec": "tokens"}, "token ids"),
        *(
            ({"policy": policy, key: value}, f"{policy} does not read {key}")
            for policy, keys in {
                "cloud-only": ("threshold", "window", "burst", "lookahead", "codec", "aim"),
                "standalone": ("window", "burst", "lookahead", "codec", "private"),
                "blocking": ("window", "target_agreement"),
                "verified": ("cloud_token_price",),
                "auto": ("threshold", "window", "burst", "lookahead"),
            }.items()
            for key in keys
            for value in [_VALUES[key]]
        ),
        ({"up_mbit": 5.0, "trace_up": "up.trace"}, "trace_up is a rate"),
        ({"down_mbit": 5.0, "trace_down": "down.trace"}, "trace_down is a rate"),
    ],
)
def test_policies_that_do_not_hold_together(
    fields: dict[str, Any], edges: dict[str, Any], named: str
) -> None:
    fields["edges"][0] |= edges
    with pytest.raises(ConfigurationError, match=named):
        parse(fields)


def test_two_groups_of_one_name(fields: dict[str, Any]) -> None:
    fields["edges"] *= 2
    with pytest.raises(ConfigurationError, match="two groups"):
        parse(fields)


def test_too_many_edges(fields: dict[str, Any]) -> None:
    group = fields["edges"][0]
    fields["edges"] = [group | {"name": str(n), "count": 600_000} for n in range(2)]
    with pytest.raises(ConfigurationError, match="1,000,000"):
        parse(fields)


def test_blocking_waits_at_once(fields: dict[str, Any]) -> None:
    fields["edges"][0] |= {"policy": "blocking", "threshold": 0.7}
    plan = parse(fields).edges[0].make_policy().plan
    assert plan == Plan(0.7, 0)


def test_link_keys_change_the_preset(fields: dict[str, Any], tmp_path: Path) -> None:
    trace = tmp_path / "phone.up"
    save_trace(Trace(name="phone", opportunities_ms=(1, 2, 3, 100)), trace)
    fields["edges"][0] |= {
        "link": "4g",
        "rtt_ms": 40,
        "down_mbit": 5,
        "loss": 0.01,
        "trace_up": str(trace),
    }
    link = parse(fields).edges[0].make_link()
    assert link.rtt_ms == 40.0
    assert link.up.trace is not None
    assert link.up.rate_mbit is None
    assert link.down.rate_mbit == 5.0
    assert link.up.loss == link.down.loss == 0.01


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_a_bad_preset_is_a_link_error(fields: dict[str, Any]) -> None:
    fields["edges"][0]["link"] = "nothing"
    with pytest.raises(LinkError, match="there are"):
        parse(fields)
