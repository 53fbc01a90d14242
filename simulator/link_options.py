"""Options that change a preset of a link, shared by commands."""

from __future__ import annotations

from typing import Annotated

import typer

Rtt = Annotated[
    float | None,
    typer.Option(
        "--rtt", metavar="MS", min=0.0, max=120_000.0, help="Round trip, in place of its own."
    ),
]
Up = Annotated[
    float | None,
    typer.Option(
        "--up", metavar="MBIT", min=0.001, max=100_000.0, help="Rate to the cloud, Mbit/s."
    ),
]
Down = Annotated[
    float | None,
    typer.Option("--down", metavar="MBIT", min=0.001, max=100_000.0, help="Rate back, Mbit/s."),
]
