"""The figures of fleets and capacities: PNG files drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from simulator.fleet.capacity import Capacity
from simulator.fleet.simulation import FleetRun

_DPI = 130
_COLOURS = {
    "cloud-only": "#555555",
    "auto-latency": "#1f77b4",
    "auto-cost": "#2ca02c",
    "auto-quality": "#08306b",
    "blocking": "#d62728",
    "optimistic": "#17becf",
    "verified": "#9467bd",
}


def draw_fleet(run: FleetRun, folder: Path) -> list[str]:
    """Write the figures of one run; their names."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for group in run.groups:
        log = group.log
        if not log.tokens:
            continue
        each = np.sort(np.array(log.seconds) / np.array(log.tokens)) * 1e3
        axes.plot(each, (np.arange(len(each)) + 1) / len(each), label=group.name)
    axes.set(xlabel="time per token, ms", ylabel="share of answers", xscale="log", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    return [_save(figure, folder, "time-per-token.png")]


def draw_capacities(found: Sequence[Capacity], title: str, folder: Path) -> list[str]:
    """Write the figures of a capacity question; their names."""
    own = [c for c in found if c.rtt_ms == found[0].rtt_ms]
    names = [
        _bars(own, [float(c.edges) for c in own], "edges per cloud", title, folder, "edges.png"),
        _bars(
            own,
            [c.dollars_per_million_tokens or 0.0 for c in own],
            "US dollars per million tokens",
            title,
            folder,
            "cost.png",
        ),
    ]
    if len({c.rtt_ms for c in found}) > 1:
        names.append(_against_round_trip(found, title, folder))
    return names


def _bars(
    found: Sequence[Capacity],
    heights: Sequence[float],
    label: str,
    title: str,
    folder: Path,
    name: str,
) -> str:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    policies = [c.policy for c in found]
    bars = axes.bar(policies, heights, color=[_COLOURS.get(p, "#999999") for p in policies])
    axes.bar_label(bars, labels=[f"{height:,.3g}" for height in heights], fontsize=8)
    axes.set(ylabel=label)
    axes.set_title(title, fontsize=9)
    return _save(figure, folder, name)


def _against_round_trip(found: Sequence[Capacity], title: str, folder: Path) -> str:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for policy in dict.fromkeys(c.policy for c in found):
        points = sorted((c.rtt_ms, c.edges) for c in found if c.policy == policy)
        axes.plot(
            [rtt for rtt, _ in points],
            [edges for _, edges in points],
            marker="o",
            label=policy,
            color=_COLOURS.get(policy, "#999999"),
        )
    axes.set(xlabel="round trip, ms", ylabel="edges per cloud", ylim=(0, None))
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, folder, "edges-against-round-trip.png")


def _save(figure: Figure, folder: Path, name: str) -> str:
    # without the time of drawing, so that the same run gives the same file
    figure.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
    return name
