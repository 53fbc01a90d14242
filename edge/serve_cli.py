"""``tandem edge``: the daemon, what it would run with, and its unit for systemd."""

from __future__ import annotations

import logging
import sys
from importlib.resources import files
from pathlib import Path

import typer

from edge.settings import EDGE_SOURCES, EdgeSettings
from shared.logs import about, configure_logging
from shared.settings_loading import Effective
from shared.settings_options import takes_settings

_LOG = logging.getLogger("tandem.edge")

app = typer.Typer(help="Answer on this device, for programs and people.", no_args_is_help=True)

_HELP_OF_SERVING = """Answer over HTTP until a signal; open answers get --drain-seconds to end.

\b
Examples:
  tandem edge serve
  tandem edge serve --cloud cloud.example:7420 --cloud-ca ca.pem --token-file token.txt
  tandem edge serve --config edge.toml --port 7431
  tandem edge serve --mode collaborative --cloud localhost:7420 --target-agreement 0.97
  tandem edge serve --mqtt broker.example:8883 --mqtt-ca ca.pem --log-format json
  tandem edge serve --host 0.0.0.0 --api-key-file key.txt
"""

_HELP_OF_SHOWING = """Print what `tandem edge serve` would run with, and where it is from.

What is printed is a configuration file itself.  Tokens and keys are not shown.

\b
Examples:
  tandem edge config
  tandem edge config --config edge.toml --parallel 2
  tandem edge config --parallel 2 > edge.toml
"""

_HELP_OF_UNIT = """Print a systemd unit that runs this installation's `tandem edge serve`.

It reads /etc/tandem/edge.toml.

\b
Example:
  tandem edge unit | sudo tee /etc/systemd/system/tandem-edge.service
"""


def register(root: typer.Typer) -> None:
    """Add ``edge`` to the root command."""
    root.add_typer(app, name="edge")


@app.command(help=_HELP_OF_SERVING)
@takes_settings(EDGE_SOURCES, example="max_tokens")
def serve(effective: Effective[EdgeSettings]) -> None:
    import asyncio  # noqa: PLC0415

    from edge.serve import serve as run  # noqa: PLC0415

    settings = effective.settings
    configure_logging(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # our own lines say when it begins
    asyncio.run(run(settings, lambda url: _say_ready(settings, url)))


def _say_ready(settings: EdgeSettings, url: str) -> None:
    """Tell where answers are to be had."""
    if settings.log_format == "json":
        _LOG.info("listening", extra=about(url=url, mode=settings.chosen_mode.value))
        return
    typer.echo(
        f"listening on {url}  (open it in a browser; OpenAI clients: base URL {url}/v1)", err=True
    )


@app.command(help=_HELP_OF_SHOWING)
@takes_settings(EDGE_SOURCES, example="max_tokens")
def config(effective: Effective[EdgeSettings]) -> None:
    typer.echo(str(effective))


@app.command(help=_HELP_OF_UNIT)
def unit() -> None:
    text = (files("edge") / "systemd" / "tandem-edge.service").read_text("utf-8")
    command = Path(sys.executable).with_name("tandem")
    typer.echo(text.replace("/opt/tandem/bin/tandem", str(command)), nl=False)
