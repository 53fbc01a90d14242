"""What the commands write and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from simulator.bench.markdown import table
from simulator.fleet.capacity import Capacity, Scenario
from simulator.fleet.profiles import load_cloud, load_device
from simulator.fleet.recordings import Recording
from simulator.fleet.report import digits, dollars, fleet_report, milliseconds
from simulator.fleet.simulation import FleetRun
from simulator.fleet.summary import ASSUMPTIONS, to_json

# a capacity tells of no energy
_CAPACITY_ASSUMPTIONS = [line for line in ASSUMPTIONS if not line.startswith("Energy")]
_LINK_CHANGES = {
    "rtt_ms": "round trip {:g} ms",
    "up_mbit": "{:g} Mbit/s up",
    "down_mbit": "{:g} Mbit/s down",
}


def write_fleet(run: FleetRun, summary: dict[str, Any], folder: Path) -> list[Path]:
    """``fleet.json``, ``fleet.md`` and figures in ``folder``."""
    from simulator.fleet.plots import draw_fleet  # noqa: PLC0415  (matplotlib takes a second)

    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_fleet(run, folder)
    (folder / "fleet.json").write_text(to_json(summary), encoding="utf-8")
    (folder / "fleet.md").write_text(fleet_report(summary, plots), encoding="utf-8")
    return [folder / name for name in ("fleet.json", "fleet.md", *plots)]


def fleet_table(summary: dict[str, Any]) -> Table:
    """The groups, for a terminal."""
    shown = _table(f"{summary['name']}: {summary['answers']:,} answers")
    shown.add_column("edges")
    for head in ("ms a token", "p95", "first token p50", "agreement", "questions", "bytes up"):
        shown.add_column(head, justify="right")
    for group in summary["groups"]:
        token, first = group["seconds_per_token"] or {}, group["first_token_seconds"] or {}
        each = group["per_token"] or {}
        shown.add_row(
            Text(group["name"]),
            milliseconds(token.get("mean")),
            milliseconds(token.get("p95")),
            milliseconds(first.get("p50")),
            "-" if group["agreement"] is None else f"{group['agreement']:.3f}",
            "-" if not each else f"{each['questions']:.2f}",
            "-" if not each else f"{each['bytes_up']:,.0f}",
        )
    return shown


def fleet_line(summary: dict[str, Any]) -> str:
    """Cloud, cost and energy in a line."""
    cloud, cost, energy = summary["cloud"], summary["cost"], summary["energy"]
    per_million, joules = cost["dollars_per_million_tokens"], energy["joules_per_token"]
    words = [
        f"cloud {cloud['replicas']} × {cloud['profile']}, {cloud['utilisation']['mean']:.0%} busy"
    ]
    if per_million is not None:
        words.append(f"${per_million:,.2f} a million tokens")
        words.append(f"{digits(joules, 2)} J a token (estimate: see the report)")
    return "; ".join(words)


_HEADS = ("policy", "rtt ms", "edges", "ms reached", "tokens/s", "busy", "$/M tokens", "agreement")


def capacity_rows(found: Sequence[Capacity]) -> list[list[str]]:
    """A row for each, as :data:`_HEADS` has it."""
    return [
        [
            c.policy,
            f"{c.rtt_ms:g}",
            f"{'> ' if c.limited else ''}{c.edges:,}",
            milliseconds(c.measured_seconds) if c.measured_seconds < float("inf") else "-",
            f"{c.tokens_per_second:,.1f}" if c.edges else "-",
            f"{c.utilisation:.0%}" if c.edges else "-",
            "-" if c.dollars_per_million_tokens is None else f"{c.dollars_per_million_tokens:,.2f}",
            "-" if c.agreement is None else f"{c.agreement:.3f}",
        ]
        for c in found
    ]


def capacity_table(found: Sequence[Capacity], scenario: Scenario) -> Table:
    """For a terminal."""
    shown = _table(capacity_title(scenario))  # 80 columns are enough
    for head in _HEADS:
        first = head == "policy"
        shown.add_column(head, justify="left" if first else "right", no_wrap=first)
    for row in capacity_rows(found):
        shown.add_row(*row)
    return shown


def capacity_title(scenario: Scenario) -> str:
    """What was asked, in a line."""
    edges, cloud = scenario.edges, scenario.cloud
    return (
        f"{cloud.get('replicas', 1)} × {cloud['profile']}, {edges['device']} on {_link(edges)}, "
        f"a question every {scenario.think_seconds:g} s: {scenario.target}"
    )


def capacity_sources(scenario: Scenario, recording: Recording) -> dict[str, Any]:
    """What the answer rests on: device, cloud with the price used, recording."""
    device, cloud = load_device(scenario.edges["device"]), load_cloud(scenario.cloud["profile"])
    price, price_source = cloud.price_per_hour, cloud.price_source
    if scenario.cloud.get("price_per_hour") is not None:
        price, price_source = float(scenario.cloud["price_per_hour"]), "named in the question"
    return {
        "cloud": {
            "name": cloud.name,
            "measured": cloud.measured,
            "source": cloud.source,
            "price_per_hour": price,
            "price_source": price_source,
        },
        "device": {"name": device.name, "measured": device.measured, "source": device.source},
        "recording": {"bundle": recording.model.bundle, "prompts": recording.model.prompts},
    }


def capacity_line(scenario: Scenario, recording: Recording) -> str:
    """What the answer rests on, in a line."""
    told = capacity_sources(scenario, recording)
    cloud, device, recorded = told["cloud"], told["device"], told["recording"]
    return (
        f"cloud {_profile(cloud)}, {dollars(cloud['price_per_hour'])} an hour; device "
        f"{_profile(device)}; answers of {recorded['bundle']} ({recorded['prompts']}); "
        "--out and --json give the sources"
    )


def capacity_json(found: Sequence[Capacity], scenario: Scenario, recording: Recording) -> str:
    """All figures, byte for byte the same for the same question and seed."""
    fields = {
        "target": str(scenario.target),
        "edges": scenario.edges,
        "cloud": scenario.cloud,
        "workload": scenario.workload,
        "seed": scenario.seed,
        "sources": capacity_sources(scenario, recording),
        "capacities": [asdict(c) for c in found],
        "assumptions": _CAPACITY_ASSUMPTIONS,
    }
    return json.dumps(_plain(fields), indent=2) + "\n"


def write_capacities(
    found: Sequence[Capacity], scenario: Scenario, recording: Recording, folder: Path
) -> list[Path]:
    """``capacity.json``, ``capacity.md`` and figures in ``folder``."""
    from simulator.fleet.plots import draw_capacities  # noqa: PLC0415  (matplotlib)

    folder.mkdir(parents=True, exist_ok=True)
    title = capacity_title(scenario)
    plots = draw_capacities(found, title, folder)
    (folder / "capacity.json").write_text(
        capacity_json(found, scenario, recording), encoding="utf-8"
    )
    parts = [
        f"# {title}",
        table(_HEADS, capacity_rows(found)),
        "\n".join(
            f"- {line}" for line in [*_CAPACITY_ASSUMPTIONS, *_source_lines(scenario, recording)]
        ),
        *(f"![{name}]({name})" for name in plots),
    ]
    (folder / "capacity.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [folder / name for name in ("capacity.json", "capacity.md", *plots)]


def _table(title: str) -> Table:
    """Names are no markup: they stand as they are."""
    return Table(title=Text(title, style="table.title"), box=None, pad_edge=False)


def _link(edges: dict[str, Any]) -> str:
    changes = [form.format(edges[key]) for key, form in _LINK_CHANGES.items() if key in edges]
    name = edges.get("link", "loopback")
    return f"{name} ({', '.join(changes)})" if changes else str(name)


def _profile(told: dict[str, Any]) -> str:
    return f"{told['name']} ({'measured' if told['measured'] else 'derived'})"


def _source_lines(scenario: Scenario, recording: Recording) -> list[str]:
    told = capacity_sources(scenario, recording)
    cloud, device, recorded = told["cloud"], told["device"], told["recording"]
    return [
        f"Device {_profile(device)}: {device['source']}",
        f"Cloud {_profile(cloud)}: {cloud['source']}",
        f"Price: {dollars(cloud['price_per_hour'])} for a replica's hour ({cloud['price_source']})",
        f"Answers recorded from {recorded['bundle']} ({recorded['prompts']})",
    ]


def _plain(value: Any) -> Any:
    """JSON's types alone: floats to six digits, infinity as nothing."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
