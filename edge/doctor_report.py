"""Findings as a table on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge.doctor import Finding
from shared.terminal_text import harmless


def show(findings: Sequence[Finding]) -> None:
    """Print the findings as a table, what to do below each, and count them."""
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(harmless(finding.detail))
        if finding.advice:
            text.append(f"\n→ {harmless(finding.advice)}", "bold")
        level = finding.level.value
        table.add_row(Text(level, styles[level]), finding.check, text)
    console = Console(highlight=False)
    console.print(table)
    counts = Counter(finding.level.value for finding in findings)
    console.print(", ".join(f"{counts[level]} {level}" for level in styles if counts[level]))
