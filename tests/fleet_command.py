"""``python -m tests.fleet_command fleet …``: ``tandem`` with the fleet's commands alone, errors and
exit codes as users get them."""

from __future__ import annotations

import typer

import shared.cli
from edge.fleet_cli import register


def build_app() -> typer.Typer:
    app = typer.Typer(name="tandem", pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    register(app)
    return app


if __name__ == "__main__":
    shared.cli.build_app = build_app
    shared.cli.main()
