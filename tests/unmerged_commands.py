"""``python -m tests.unmerged_commands``: ``tandem`` with ``chat`` and ``doctor``."""

from __future__ import annotations

import typer

from edge import chat_cli, doctor_cli
from shared import cli

_build = cli.build_app


def build_app() -> typer.Typer:
    app = _build()
    chat_cli.register(app)
    doctor_cli.register(app)
    return app


if __name__ == "__main__":
    cli.build_app = build_app
    cli.main()
