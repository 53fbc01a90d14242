"""The figures of fleets and capacities: PNG files drawn without a display."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulator.fleet.capacity import Capacity
from simulator.fleet.simulation import FleetRun

_DPI = 130
_TITLE_WIDTH = 68  # characters of it that fit the narrowest figure
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
    names: list[str] = []
    for group in run.groups:
        log = group.log
        if not log.tokens:
            continue
        each = np.sort(np.array(log.seconds) / np.array(log.tokens)) * 1e3
        axes.plot(each, (np.arange(len(each)) + 1) / len(each))
        names.append(_literal(group.name))
    axes.set(xlabel="time per token, ms", ylabel="share of answers", xscale="log", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if names:
        axes.legend(axes.lines, names, fontsize=8)
    return [_save(figure, folder, "time-per-token.png")]


def draw_capacities(found: Sequence[Capacity], title: str, folder: Path) -> list[str]:
    """Write the figures of a capacity question; their names."""
    own = [c for c in found if c.rtt_ms == found[0].rtt_ms]
    names = [
        _bars(
            own,
            {c.policy: (float(c.edges), _edges(c)) for c in own if c.edges},
            "edges per cloud",
            title,
            folder,
            "edges.png",
        ),
        _bars(
            own,
            {
                c.policy: (dollars, f"{dollars:,.2f}")
                for c in own
                if (dollars := c.dollars_per_million_tokens) is not None
            },
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
    bars: dict[str, tuple[float, str]],
    label: str,
    title: str,
    folder: Path,
    name: str,
) -> str:
    """A bar, and what is written on it, for each policy that has one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    policies = [c.policy for c in found]
    for place, policy in enumerate(policies):
        height, text = bars.get(policy, (0.0, "none"))
        if policy in bars:
            axes.bar(place, height, color=_COLOURS.get(policy, "#999999"))
        _write(axes, text, (place, height))
    axes.set_xticks(range(len(policies)), policies)
    axes.set(ylabel=label, xlim=(-0.6, len(policies) - 0.4), ylim=(0, None))
    _title(figure, title)
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
    for c in found:
        if c.limited:
            _write(axes, _edges(c), (c.rtt_ms, c.edges))
    axes.set(xlabel="round trip, ms", ylabel="edges per cloud", ylim=(0, None))
    _title(figure, title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, folder, "edges-against-round-trip.png")


def _edges(capacity: Capacity) -> str:
    return f"{'> ' if capacity.limited else ''}{capacity.edges:,}"


def _write(axes: Axes, text: str, at: tuple[float, float]) -> None:
    """Just above a point."""
    axes.annotate(
        text, at, (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8
    )


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(_literal(textwrap.fill(title, _TITLE_WIDTH)), fontsize=9)


def _literal(text: str) -> str:
    """A name that users chose: a dollar begins no formula."""
    return text.replace("$", r"\$")


def _save(figure: Figure, folder: Path, name: str) -> str:
    # without the time of drawing, so that the same run gives the same file
    figure.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
    return name
