"""Measuring with a progress bar, until done or stopped."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shared.model_bundle import ModelBundle
from simulator.bench.journal import Journal
from simulator.bench.plan import BenchSettings, Plan, Task
from simulator.bench.runner import run_plan


def measure(
    plan: Plan,
    settings: BenchSettings,
    bundle: ModelBundle,
    gguf: Path | None,
    journal: Journal,
    console: Console,
    out: Path,
) -> None:
    """Measure what is missing; Ctrl-C and SIGTERM end it with its children."""
    tasks = list(plan.tasks())
    done = sum(task.key in journal for task in tasks)
    if done:
        console.print(f"{done} of {len(tasks)} measurements are in {out} already", markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=len(tasks), completed=done)

        said = ""

        def advance(task: Task) -> None:
            nonlocal said
            stage = f"{task.kind} on {task.link.name}"
            progress.update(bar, advance=1, description=f"{stage}: {task.entrant.name}")
            if not console.is_terminal and stage != said:
                console.print(stage, markup=False)
                said = stage

        try:
            asyncio.run(_until_terminated(plan, settings, bundle, gguf, journal, advance))
        except (KeyboardInterrupt, asyncio.CancelledError):
            progress.stop()
            console.print(
                f"{len(journal)} measurements are kept in {out}; the same command goes on",
                markup=False,
            )
            raise


async def _until_terminated(
    plan: Plan,
    settings: BenchSettings,
    bundle: ModelBundle,
    gguf: Path | None,
    journal: Journal,
    advance: Callable[[Task], None],
) -> None:
    """A SIGTERM ends it as Ctrl-C does: the children with it."""
    this = asyncio.current_task()
    assert this is not None
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGTERM, this.cancel)
    await run_plan(plan, settings, bundle, gguf, journal, advance)
