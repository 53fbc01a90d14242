"""A run's summary as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from simulator.bench.markdown import table

_WORK = (
    "edges",
    "policy",
    "agreement",
    "questions a token",
    "discarded",
    "alone",
    "bytes up",
    "bytes down",
    "edge ms",
    "edge J",
)
_CLOUD = (
    "replicas",
    "utilisation",
    "busiest",
    "sessions a pass",
    "rows a pass",
    "queue p50 ms",
    "p95 ms",
)


def digits(value: float, count: int = 3) -> str:
    """So many digits of it, without an exponent."""
    return f"{Decimal(f'{value:.{count}g}'):,f}"


def milliseconds(seconds: float | None) -> str:
    """Three digits of it."""
    if seconds is None:
        return "-"
    return digits(seconds * 1e3) if seconds < 1 else f"{seconds:,.2f} s"


def dollars(value: float | None) -> str:
    """To the cent; less than a dollar with three digits, where they say more."""
    if value is None:
        return "-"
    cents = f"{value:,.2f}"
    return f"${cents if value >= 1 else max(cents, digits(value), key=len)}"


def fleet_report(summary: dict[str, Any], plots: Sequence[str] = ()) -> str:
    """The report of one fleet; ``plots`` are files beside it."""
    cloud, cost, energy = summary["cloud"], summary["cost"], summary["energy"]
    per_million = cost["dollars_per_million_tokens"]
    parts = [
        f"# {summary['name']}",
        f"{summary['edges']:,} edges for {summary['simulated_seconds']:,.0f} simulated seconds, "
        f"seed {summary['seed']}: {summary['answers']:,} answers, {summary['tokens']:,} tokens, "
        f"{summary['tokens_per_second']:,.1f} a second. Answers recorded from "
        f"{summary['bundle']} ({summary['prompts']}).",
        "## Latency\n\nMilliseconds unless marked s; per token: an answer's time over its tokens, "
        "percentiles over answers.",
        table(
            ["edges", "answers", "mean a token", "p50", "p95", "p99", "first token p50", "p95"],
            [
                *(
                    _latency_row(group["name"], group["answers"], group)
                    for group in summary["groups"]
                ),
                _latency_row("all", summary["answers"], summary["all"]),
            ],
        ),
        "## What the edges did\n\nPer token.",
        table(
            _WORK,
            [_work_row(group) for group in summary["groups"] if group["per_token"]],
        ),
        "## The cloud",
        table(
            _CLOUD,
            [_cloud_row(cloud)],
        ),
        f"Cost: {dollars(cost['dollars'])} for {cost['replica_hours']:,.2f} replica hours at "
        f"{dollars(cost['price_per_replica_hour'])} an hour ({cost['price_source']}), "
        f"**{dollars(per_million)} a million tokens**.",
        f"Energy: edges {energy['edge_joules']:,.0f} J beyond idling, cloud "
        f"{energy['cloud_joules']:,.0f} J, {_number(energy['joules_per_token'])} J a token "
        "together.",
        "## Assumptions",
        "\n".join(f"- {line}" for line in [*summary["assumptions"], *_sources(summary)]),
    ]
    parts += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


def _sources(summary: dict[str, Any]) -> list[str]:
    energy = summary["energy"]
    devices = {g["device"]: g["device_source"] for g in summary["groups"]}
    lines = [f"Device {name}: {source}" for name, source in devices.items()]
    lines.append(f"Cloud {summary['cloud']['profile']}: {summary['cloud']['source']}")
    for name, source in energy["device_power_sources"].items():
        lines.append(f"Watts of {name}: {source}")
    lines.append(f"Watts of the cloud: {energy['cloud_power_source']}")
    return lines


def _latency_row(name: str, answers: int, part: dict[str, Any]) -> list[str]:
    token, first = part["seconds_per_token"] or {}, part["first_token_seconds"] or {}
    figures = [*(token.get(key) for key in ("mean", "p50", "p95", "p99"))]
    figures += [first.get(key) for key in ("p50", "p95")]
    return [name, f"{answers:,}", *(milliseconds(figure) for figure in figures)]


def _work_row(group: dict[str, Any]) -> list[str]:
    each = group["per_token"]
    return [
        group["name"],
        group["policy"],
        f"{group['agreement']:.3f}",
        f"{each['questions']:.2f}",
        f"{each['discarded']:.2f}",
        f"{each['alone']:.2f}",
        f"{each['bytes_up']:,.0f}",
        f"{each['bytes_down']:,.0f}",
        f"{each['edge_seconds'] * 1e3:.2f}",
        _number(group["edge_joules_per_token"]),
    ]


def _cloud_row(cloud: dict[str, Any]) -> list[str]:
    use, queue = cloud["utilisation"], cloud["queue_seconds"] or {}
    return [
        str(cloud["replicas"]),
        f"{use['mean']:.1%}",
        f"{use['most']:.1%}",
        _number(cloud["sessions_per_pass"]),
        _number(cloud["rows_per_pass"]),
        milliseconds(queue.get("p50")),
        milliseconds(queue.get("p95")),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else digits(value)
