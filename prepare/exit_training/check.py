"""Hold a bundle's exits against the full model's own answers to prompts that they never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge.exit_model import ExitModel
from edge.exit_policy import threshold_for
from prepare.base_model import BaseModel
from prepare.exit_training.calibration import (
    apply_calibration,
    calibration_error,
    operating_points,
)
from prepare.exit_training.edge_reading import ExitReading, read_exits
from prepare.exit_training.lessons import answered_prompts
from prepare.exit_training.reliability import draw_reliability
from prepare.exit_training.teacher import Teacher
from shared.errors import ConfigurationError
from shared.model_bundle import ModelBundle, OperatingPoint, Precision

TARGETS = (0.9, 0.95, 0.97, 0.99)
_FINE = [number / 500 for number in range(100, 501)]


@dataclass(frozen=True)
class ExitCheck:
    """One exit: how often its token is the full model's, and how far off its confidence is."""

    name: str
    agreement: float
    calibration_error: float


@dataclass(frozen=True)
class TargetCheck:
    """What it takes to agree with the full model on ``target`` of the tokens.

    Attributes:
        escalation_rate: the least share of tokens to ask the cloud for, with a threshold chosen
            on these very answers (``None`` where no threshold reaches the target).
        by_table: what the bundle's own table brings here: threshold, agreement, escalation rate.
    """

    target: float
    escalation_rate: float | None
    by_table: OperatingPoint | None


@dataclass(frozen=True)
class PrecisionCheck:
    """All figures of one precision over ``tokens`` positions."""

    precision: str
    tokens: int
    exits: tuple[ExitCheck, ...]
    targets: tuple[TargetCheck, ...]


def check_exits(
    model: BaseModel,
    bundle: ModelBundle,
    precisions: Sequence[Precision],
    prompts: Sequence[str],
    max_tokens: int,
    console: Console,
    plot: Path | None = None,
) -> list[PrecisionCheck]:
    """Answer ``prompts`` greedily with the full float32 model, then read the edge's exits along
    the answers; ``plot`` gets the reliability diagram of the first precision."""
    if bundle.manifest.source.sha256 != model.source.sha256:
        raise ConfigurationError(f"{bundle.folder} was made from other weights than these")
    if not bundle.manifest.exits:
        raise ConfigurationError(f"{bundle.folder} has no exits to check")
    edges = [ExitModel(bundle, precision) for precision in precisions]
    checks = []
    with Progress(console=console) as progress:
        task = progress.add_task("the full model answers", total=len(prompts))
        teacher = Teacher(model, (1,), device=torch.device("cpu"), dtype=torch.float32)
        lessons = answered_prompts(
            model,
            teacher,
            prompts,
            max_tokens=max_tokens,
            advance=lambda count: progress.advance(task, count),
        )
        for precision, edge in zip(precisions, edges, strict=True):
            task = progress.add_task(f"the {precision} edge reads along", total=len(lessons))
            readings = read_exits(edge, lessons, partial(progress.advance, task))
            checks.append(_judge(bundle, precision, readings))
            if plot is not None and precision == precisions[0]:
                names = [info.name for info in bundle.manifest.exits]
                rights = [reading.right for reading in readings]
                draw_reliability(names, _confidence(bundle, readings), rights, plot)
    return checks


def check_table(checks: Sequence[PrecisionCheck]) -> Table:
    """The checks as a table, one column a precision."""
    table = Table(
        title="against the full model's own answers",
        title_justify="left",
        caption="cloud requests: least share of tokens to ask the cloud for, in hindsight\n"
        "--target-agreement gives: agreement at share asked, with the bundle's own threshold",
        caption_justify="left",
    )
    table.add_column("")
    for check in checks:
        table.add_column(check.precision, justify="right")
    table.add_row("tokens", *(str(check.tokens) for check in checks))
    for index, info in enumerate(checks[0].exits):
        table.add_row(
            f"{info.name}: agreement", *(f"{c.exits[index].agreement:.4f}" for c in checks)
        )
        errors = (f"{c.exits[index].calibration_error:.4f}" for c in checks)
        table.add_row(f"{info.name}: calibration error", *errors)
    for index, target in enumerate(checks[0].targets):
        table.add_row(
            f"cloud requests at agreement {target.target:g}",
            *(_shown(c.targets[index].escalation_rate) for c in checks),
        )
        table.add_row(
            f"  --target-agreement {target.target:g} gives",
            *(_point(c.targets[index].by_table) for c in checks),
        )
    return table


def _judge(
    bundle: ModelBundle, precision: Precision, readings: Sequence[ExitReading]
) -> PrecisionCheck:
    confidence = _confidence(bundle, readings)
    rights = [reading.right for reading in readings]
    exits = tuple(
        ExitCheck(
            info.name,
            round(float(right.mean()), 4),
            round(calibration_error(sure, right), 4),
        )
        for info, sure, right in zip(bundle.manifest.exits, confidence, rights, strict=True)
    )
    points = operating_points(confidence, rights, _FINE)
    targets = []
    for target in TARGETS:
        rates = [point.escalation_rate for point in points if point.agreement >= target]
        try:
            threshold = threshold_for(bundle.manifest.operating_points, target)
            (by_table,) = operating_points(confidence, rights, [threshold])
        except ConfigurationError:  # no table, or it does not reach so far
            by_table = None
        targets.append(TargetCheck(target, min(rates, default=None), by_table))
    return PrecisionCheck(precision, len(rights[0]), exits, tuple(targets))


def _confidence(
    bundle: ModelBundle, readings: Sequence[ExitReading]
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return [
        apply_calibration(info.calibration, reading.raw)
        for info, reading in zip(bundle.manifest.exits, readings, strict=True)
    ]


def _shown(rate: float | None) -> str:
    return "not reached" if rate is None else f"{rate:.3f}"


def _point(point: OperatingPoint | None) -> str:
    if point is None:
        return "not in the table"
    return f"{point.agreement:.3f} at {point.escalation_rate:.3f}"
