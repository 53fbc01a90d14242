"""What the commands write and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from simulator.bench.markdown import table
from simulator.fleet.capacity import Capacity, Scenario
from simulator.fleet.report import fleet_report, milliseconds
from simulator.fleet.simulation import FleetRun
from simulator.fleet.summary import ASSUMPTIONS, to_json


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
    title = f"{summary['name']}: {summary['answers']:,} answers"
    shown = Table(title=title, box=None, pad_edge=False)
    shown.add_column("edges")
    for head in ("ms a token", "p95", "first token", "agreement", "questions", "bytes up"):
        shown.add_column(head, justify="right")
    for group in summary["groups"]:
        token, first = group["seconds_per_token"] or {}, group["first_token_seconds"] or {}
        each = group["per_token"] or {}
        shown.add_row(
            group["name"],
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
        words.append(f"{joules:.2g} J a token (estimate: see the report)")
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
    shown = Table(title=capacity_title(scenario), box=None, pad_edge=False)  # 80 columns are enough
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
        f"{cloud.get('replicas', 1)} × {cloud['profile']}, {edges['device']} on "
        f"{edges.get('link', 'loopback')}, a question every {scenario.think_seconds:g} s: "
        f"{scenario.target}"
    )


def capacity_json(found: Sequence[Capacity], scenario: Scenario) -> str:
    """All figures, byte for byte the same for the same question and seed."""
    fields = {
        "target": str(scenario.target),
        "edges": scenario.edges,
        "cloud": scenario.cloud,
        "workload": scenario.workload,
        "seed": scenario.seed,
        "capacities": [asdict(c) for c in found],
        "assumptions": list(ASSUMPTIONS),
    }
    return json.dumps(_plain(fields), indent=2) + "\n"


def write_capacities(found: Sequence[Capacity], scenario: Scenario, folder: Path) -> list[Path]:
    """``capacity.json``, ``capacity.md`` and figures in ``folder``."""
    from simulator.fleet.plots import draw_capacities  # noqa: PLC0415  (matplotlib)

    folder.mkdir(parents=True, exist_ok=True)
    title = capacity_title(scenario)
    plots = draw_capacities(found, title, folder)
    (folder / "capacity.json").write_text(capacity_json(found, scenario), encoding="utf-8")
    parts = [
        f"# {title}",
        table(_HEADS, capacity_rows(found)),
        "\n".join(f"- {line}" for line in ASSUMPTIONS),
        *(f"![{name}]({name})" for name in plots),
    ]
    (folder / "capacity.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [folder / name for name in ("capacity.json", "capacity.md", *plots)]


def _plain(value: Any) -> Any:
    """JSON's types alone: floats to six digits, infinity as nothing."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
