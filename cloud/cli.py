"""``tandem cloud``: serve the deep layers, show the configuration, make tokens, ask for health."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from cloud.settings import CLOUD_SOURCES, CloudSettings
from shared.logs import about, configure_logging
from shared.settings_loading import Effective
from shared.settings_options import takes_settings

_LOG = logging.getLogger("tandem.cloud")

app = typer.Typer(help="Serve the deep layers to edges.", no_args_is_help=True)

_HELP_OF_SERVING = """Serve sessions until a signal; open sessions get --drain-seconds to end.

\b
Examples:
  tandem cloud serve
  tandem cloud serve --config cloud.toml --port 7421
  tandem cloud serve --port 0 --port-file address.txt
  tandem cloud serve --device cuda --dtype bfloat16 --budget-mb 40000
  tandem cloud serve --metrics :9464 --log-format json
  tandem cloud serve --engine ray --replicas 2 --max-replicas 8 --host 0.0.0.0 --insecure
  tandem cloud serve --host 0.0.0.0 --tokens tokens.txt --quotas quotas.toml \\
      --tls-cert server.pem --tls-key server.key
"""

_HELP_OF_SHOWING = """Print what `tandem cloud serve` would run with, and where it is from.

What is printed is a configuration file itself.  Tokens and keys are named by their files.

\b
Examples:
  tandem cloud config
  tandem cloud config --config cloud.toml --max-sessions 200
  tandem cloud config --max-sessions 200 > cloud.toml
"""

_HELP_OF_MINTING = """Make a token for TENANT: printed once, its hash is appended to the token file.

A cloud that runs takes it up within a second of the next call.

\b
Example:
  tandem cloud token alice --tokens tokens.txt
"""

_HELP_OF_HEALTH = """Ask a cloud whether it serves (gRPC health): exit code 0 if so, else 4.

\b
Examples:
  tandem cloud health
  tandem cloud health cloud.example:7420 --ca ca.pem
"""


def register(root: typer.Typer) -> None:
    """Add ``cloud`` to the root command."""
    root.add_typer(app, name="cloud")


@app.command(help=_HELP_OF_SERVING)
@takes_settings(CLOUD_SOURCES, example="max_sessions")
def serve(effective: Effective[CloudSettings]) -> None:
    settings = effective.settings
    configure_logging(settings.log_level, settings.log_format)
    if settings.engine == "ray":
        from cloud.ray_engine import RayCloud  # noqa: PLC0415

        with RayCloud(settings) as cloud:
            _say_ready(settings, cloud.address, cloud.metrics_url)
            cloud.wait()
        return

    import asyncio  # noqa: PLC0415

    from cloud.server import CloudServer  # noqa: PLC0415

    if sys.stderr.isatty():
        typer.echo(f"loading the model of {settings.bundle}", err=True)

    async def run() -> None:
        async with CloudServer(settings) as server:
            _say_ready(settings, server.address, server.metrics_url)
            await server.wait()

    asyncio.run(run())


def _say_ready(settings: CloudSettings, address: str, metrics_url: str) -> None:
    """Tell where sessions and metrics are served."""
    if settings.log_format == "json":
        _LOG.info("listening", extra=about(address=address, metrics=metrics_url or "off"))
        return
    typer.echo(f"listening on {address}", err=True)
    if metrics_url:
        typer.echo(f"metrics on {metrics_url}", err=True)


@app.command(help=_HELP_OF_SHOWING)
@takes_settings(CLOUD_SOURCES, example="max_sessions")
def config(effective: Effective[CloudSettings]) -> None:
    typer.echo(str(effective))


@app.command(help=_HELP_OF_MINTING)
def token(
    tenant: Annotated[str, typer.Argument(help="Whom the token is for.")],
    tokens: Annotated[Path, typer.Option(help="Token file to append to.")],
) -> None:
    from cloud.auth import add_token  # noqa: PLC0415

    typer.echo(add_token(tokens, tenant))


@app.command(help=_HELP_OF_HEALTH)
def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="The cloud to ask.")
    ] = "localhost:7420",
    ca: Annotated[
        Path | None, typer.Option(help="PEM file of the cloud's certificate authority; TLS.")
    ] = None,
    client_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate to show to the cloud.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to wait.")] = 5.0,
) -> None:
    from cloud.health_probe import check_health  # noqa: PLC0415

    check_health(address, ca=ca, certificate=client_cert, key=client_key, seconds=seconds)
    typer.echo(f"{address} serves")
