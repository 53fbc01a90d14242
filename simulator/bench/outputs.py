"""What a benchmark leaves behind: ``results.json``, ``report.md`` and the figures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shared.errors import ConfigurationError
from simulator.bench.links import BenchLink
from simulator.bench.losses import find_losses
from simulator.bench.plots import draw_all
from simulator.bench.report import ReportContext, write_report
from simulator.bench.results import Results


def check_report_path(report: Path) -> None:
    """See, before hours of measuring, whether :func:`write_outputs` can write there.

    Raises:
        ConfigurationError: not a Markdown file, or a place where none can be made.
    """
    if report.suffix != ".md" or report.is_dir():
        raise ConfigurationError(f"--report {str(report)!r} is not the name of a .md file")
    for folder in (report.parent, _figures_beside(report)):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ConfigurationError(f"--report {report}: {there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigurationError(f"--report {report}: {there} may not be written")
    if report.exists() and not os.access(report, os.W_OK):
        raise ConfigurationError(f"--report {report} may not be written")


def _figures_beside(report: Path) -> Path:
    return report.with_suffix("")


def write_outputs(
    results: Results, context: ReportContext, folder: Path, report: Path | None
) -> list[Path]:
    """Write everything into ``folder``; ``report`` is a second place for the Markdown, whose
    figures go into a folder beside it.  Returns the Markdown files."""
    (folder / "results.json").write_text(
        json.dumps(as_record(results, context), indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    figures = draw_all(results, folder / "plots")
    written = [_write(results, context, folder / "report.md", figures)]
    if report is not None:
        beside = _figures_beside(report)
        beside.mkdir(parents=True, exist_ok=True)
        copies = {name: beside / path.name for name, path in figures.items()}
        for name, copy in copies.items():
            shutil.copyfile(figures[name], copy)
        written.append(_write(results, context, report, copies))
    return written


def _write(results: Results, context: ReportContext, path: Path, figures: dict[str, Path]) -> Path:
    links = {name: Path(os.path.relpath(f, path.parent)).as_posix() for name, f in figures.items()}
    path.write_text(write_report(results, replace(context, plots=links)), encoding="utf-8")
    return path


def as_record(results: Results, context: ReportContext) -> dict[str, Any]:
    """``results.json``: the environments, the settings and every figure of the report."""
    return {
        "sessions": [session.as_record() for session in context.sessions],
        "command": context.command,
        "settings": context.settings,
        "prompts": context.prompts,
        "repeats": context.repeats,
        "left_out": context.left_out,
        "links": [_link(link) for link in results.links],
        "rows": [row.as_record() for row in results.rows.values()],
        "quality": {name: asdict(quality) for name, quality in results.quality.items()},
        "ratio_to_cloud_only": {
            entrant.name: {
                link.name: results.ratio(entrant.name, link.name) for link in results.links
            }
            for entrant in results.entrants
        },
        "losses": [asdict(loss) for loss in find_losses(results)],
    }


def _link(link: BenchLink) -> dict[str, Any]:
    """A trace is named, not repeated."""
    fields: dict[str, Any] = json.loads(link.spec.model_dump_json())
    for way in ("up", "down"):
        if fields[way]["trace"] is not None:
            fields[way]["trace"] = fields[way]["trace"]["name"]
    return {
        "name": link.name,
        "summary": link.summary,
        "identity": link.identity,
        "rtt_ms": link.spec.rtt_ms,
        **fields,
    }
