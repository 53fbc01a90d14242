"""The figures: PNG files drawn without a display.

Colour says who: blues are Tandem's, greys and browns what it competes with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge.timeline import Upload, Wait
from simulator.bench.links import BenchLink
from simulator.bench.plan import Task
from simulator.bench.registry import Kind
from simulator.bench.results import Results, StoredTimeline

_PALETTE = {
    Kind.OURS: ("#1f77b4", "#17becf", "#08306b", "#6baed6", "#2ca02c", "#98df8a"),
    Kind.BASELINE: ("#555555", "#d62728", "#999999"),
    Kind.OUTSIDE: ("#8c564b", "#e377c2", "#bcbd22"),
}
_MARKERS = {Kind.OURS: "o", Kind.BASELINE: "s", Kind.OUTSIDE: "^"}
_DPI = 130


def draw_all(results: Results, folder: Path) -> dict[str, Path]:
    """Write what the results allow into ``folder``; file by name of the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "time-against-round-trip": time_against_round_trip(results),
        "time-split": time_split(results),
        "bytes": bytes_per_token(results),
        "frontier": frontier(results),
        "timeline": timeline(*results.timeline) if results.timeline else None,
    }
    paths = {}
    for name, figure in figures.items():
        if figure is not None:
            paths[name] = folder / f"{name}.png"
            figure.savefig(paths[name], dpi=_DPI, bbox_inches="tight")
    return paths


def time_against_round_trip(results: Results) -> Figure | None:
    """Seconds per token, one panel for each rate of the grid."""
    rates = sorted({link.rate_mbit for link in results.links if link.rate_mbit is not None})
    if not rates:
        return None
    figure = Figure(figsize=(4.2 * len(rates), 3.8))
    axes: list[Axes] = list(figure.subplots(1, len(rates), sharey=True, squeeze=False)[0])
    for axis, rate in zip(axes, rates, strict=True):
        cells = sorted(
            (link for link in results.links if link.rate_mbit == rate), key=lambda c: c.rtt_ms or 0
        )
        for name, style in _styles(results).items():
            points = [
                (cell.rtt_ms, 1e3 * row.seconds_per_token)
                for cell in cells
                if (row := results.row(name, cell.name))
            ]
            axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set_title(f"{rate:g} Mbit/s")
        axis.set_xlabel("round trip, ms")
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("milliseconds per token")
    _legend_below(figure, axes[0])
    return figure


def time_split(results: Results) -> Figure:
    """Where a token's time goes on the link in the middle."""
    link = results.middle
    rows = [row for e in results.entrants if (row := results.row(e.name, link.name))]
    figure = Figure(figsize=(7.5, 0.5 * len(rows) + 1.6))
    axis = figure.subplots()
    left = [0.0] * len(rows)
    for part, colour in (("edge", "#1f77b4"), ("cloud", "#ff7f0e"), ("link", "#bbbbbb")):
        widths = [1e3 * row.per_token(getattr(row.split, part)) for row in rows]
        axis.barh(range(len(rows)), widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(rows)), [row.contender for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds per token (cloud and link are the edge's stall)")
    axis.set_title(f"where the time goes: {link.name}")
    axis.legend(loc="best")
    return figure


def bytes_per_token(results: Results) -> Figure | None:
    """Bytes each way, for whoever uses the network."""
    link = results.middle
    rows = [
        row
        for e in results.entrants
        if e.family.uses_cloud and (row := results.row(e.name, link.name))
    ]
    if not rows:
        return None
    figure = Figure(figsize=(7.5, 0.6 * len(rows) + 1.6))
    axis = figure.subplots()
    places = range(len(rows))
    up = [max(0.5, row.per_token(row.uploaded)) for row in rows]
    down = [max(0.5, row.per_token(row.downloaded)) for row in rows]
    axis.barh([p - 0.2 for p in places], up, 0.38, color="#1f77b4", label="up")
    axis.barh([p + 0.2 for p in places], down, 0.38, color="#ff7f0e", label="down")
    axis.set_yticks(list(places), [row.contender for row in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("bytes per token")
    axis.legend(loc="best")
    axis.grid(alpha=0.3, axis="x")
    return figure


def frontier(results: Results) -> Figure:
    """Quality against what it costs: tokens asked of the cloud, and time per token."""
    link = results.middle
    figure = Figure(figsize=(9.5, 3.8))
    left, right = figure.subplots(1, 2, sharey=True)
    for name, style in _styles(results).items():
        row, quality = results.row(name, link.name), results.quality.get(name)
        if row is None or quality is None:
            continue
        point = style | {"linestyle": "none", "label": name}
        left.plot([100 * row.request_rate], [100 * quality.agreement], **point)
        right.plot([1e3 * row.seconds_per_token], [100 * quality.agreement], **point)
    left.set_xlabel("tokens asked of the cloud, %")
    right.set_xlabel(f"milliseconds per token ({link.name})")
    right.set_xscale("log")
    left.set_ylabel("agreement with the full model, %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    _legend_below(figure, left)
    return figure


def timeline(task: Task, stored: StoredTimeline) -> Figure:
    """One answer as it happened: edge, upload, cloud, stall.

    The edge's clock knows when it worked and waited.  An upload is drawn as the link carries it
    (its bytes at the link's rate, one after the other, then the propagation); where the link is a
    trace, as the moment it left.  The cloud's part of a wait is drawn in the middle of what is left
    of it once the uploads have arrived: where exactly, no clock can tell.
    """
    events, began = stored.events, stored.began
    sent = uploads(events.uploads, task.link)
    end = max([*(e.stop for e in events.work), *(e.stop for e in events.waits), began])
    figure = Figure(figsize=(11, 2.9))
    axis = figure.subplots()
    lanes: list[tuple[str, list[tuple[float, float]], str]] = [
        ("edge", [(e.start, e.stop) for e in events.work], "#1f77b4"),
        ("upload", sent, "#9467bd"),
        ("cloud", [cloud_part(wait, sent) for wait in events.waits], "#ff7f0e"),
        ("stall", [(e.start, e.stop) for e in events.waits], "#d62728"),
    ]
    for place, (_, spans, colour) in enumerate(lanes):
        bars = [(start - began, max(stop - start, (end - began) / 2000)) for start, stop in spans]
        axis.broken_barh(bars, (place - 0.38, 0.76), facecolors=colour)
    axis.set_yticks(range(len(lanes)), [name for name, _, _ in lanes])
    axis.invert_yaxis()
    axis.set_xlim(0, (end - began) * 1.01)
    axis.set_xlabel("seconds from the start of the answer")
    axis.set_title(f"one answer of {task.entrant.name} on {task.link.name}")
    axis.grid(alpha=0.3, axis="x")
    return figure


def uploads(events: Sequence[Upload], link: BenchLink) -> list[tuple[float, float]]:
    """From when a message left the edge to when the link has brought it, by rate and delay."""
    way = link.spec.up
    spans, free = [], 0.0
    for event in events:
        free = max(free, event.time) + 8e-6 * event.size / (way.rate_mbit or float("inf"))
        arrived = free + way.delay_ms / 1e3 if way.trace is None else event.time
        spans.append((event.time, arrived))
    return spans


def cloud_part(wait: Wait, sent: list[tuple[float, float]]) -> tuple[float, float]:
    """The cloud's seconds within a wait, after every upload that arrives during it."""
    start, stop, seconds = wait.start, wait.stop, wait.cloud_seconds
    arrivals = [arrived for _, arrived in sent if start < arrived <= stop - seconds]
    start = max([start, *arrivals])
    rest = max(0.0, stop - start - seconds) / 2
    return start + rest, stop - rest


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each contender."""
    used: dict[Kind, int] = {}
    styles = {}
    for entrant in results.entrants:
        kind = entrant.family.kind
        colours = _PALETTE[kind]
        colour = colours[used.get(kind, 0) % len(colours)]
        used[kind] = used.get(kind, 0) + 1
        styles[entrant.name] = {"color": colour, "marker": _MARKERS[kind]}
    return styles


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=min(4, len(labels))
    )
