"""Reliability diagrams: how often an exit is right, against how sure it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

_BINS = 15


def draw_reliability(
    names: Sequence[str],
    confidence: Sequence[npt.NDArray[np.float64]],
    right: Sequence[npt.NDArray[np.bool_]],
    path: Path,
) -> None:
    """Write one panel an exit to ``path`` (PNG): accuracy by confidence over ``_BINS`` bins, and
    how many tokens each bin holds."""
    figure = Figure(figsize=(4.2 * len(names), 4.4), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, height_ratios=(3, 1), sharex=True)
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    for column, (name, sure, ok) in enumerate(zip(names, confidence, right, strict=True)):
        index = np.minimum((sure * _BINS).astype(int), _BINS - 1)
        counts = np.bincount(index, minlength=_BINS)
        held = counts > 0
        accuracy = np.bincount(index, ok, minlength=_BINS)[held] / counts[held]
        mean = np.bincount(index, sure, minlength=_BINS)[held] / counts[held]
        upper, lower = panels[0][column], panels[1][column]
        upper.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
        upper.plot(mean, accuracy, marker="o", markersize=4)
        upper.set(title=f"{name}: right {ok.mean():.0%} of the time", ylim=(0, 1), xlim=(0, 1))
        lower.bar(edges[:-1], counts / len(sure), width=1 / _BINS, align="edge", color="0.6")
        lower.set(xlabel="confidence")
        upper.set(ylabel="accuracy" if column == 0 else "")
        lower.set(ylabel="share" if column == 0 else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
