"""``tandem cloud``: serve the deep layers, make tokens, ask how a cloud is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Serve the deep layers to edges.", no_args_is_help=True)

_HELP_OF_SERVING = """Serve sessions until a signal; open sessions get --drain-seconds to end.

\b
Examples:
  tandem cloud serve
  tandem cloud serve --port 0 --port-file address.txt
  tandem cloud serve --device cuda --dtype bfloat16 --budget-mb 40000
  tandem cloud serve --host 0.0.0.0 --tokens tokens.txt \\
      --tls-cert server.pem --tls-key server.key
"""

_HELP_OF_MINTING = """Make a token for TENANT: printed once, its hash is appended to the token file.

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
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 7420,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder; default: what `tandem prepare` wrote.")
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Arithmetic of the model.")
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the model; default: torch's choice.")
    ] = None,
    budget_mb: Annotated[
        int, typer.Option(min=1, help="MiB for context and KV caches of all sessions.")
    ] = 4096,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions held at most.")] = 64,
    session_ttl: Annotated[
        float, typer.Option(min=1, help="Seconds that a session without an edge is kept.")
    ] = 600.0,
    tls_cert: Annotated[Path | None, typer.Option(help="Server certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="CA whose client certificates are asked for (mTLS).")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Token file; without one no token is asked for.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without tokens or TLS.")
    ] = False,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds for open sessions after a signal.")
    ] = 10.0,
    port_file: Annotated[Path | None, typer.Option(help="Write HOST:PORT here once ready.")] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Log to standard error.")
    ] = "info",
) -> None:
    import asyncio  # noqa: PLC0415
    import logging  # noqa: PLC0415

    from cloud.context_manager import StoreLimits  # noqa: PLC0415
    from cloud.server import CloudServer, CloudSettings  # noqa: PLC0415
    from shared.model_bundle import default_bundle_folder  # noqa: PLC0415

    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    settings = CloudSettings(
        bundle=bundle or default_bundle_folder(),
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        threads=threads,
        limits=StoreLimits(
            budget_bytes=budget_mb << 20, max_sessions=max_sessions, idle_seconds=session_ttl
        ),
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        tokens=tokens,
        insecure=insecure,
        drain_seconds=drain_seconds,
        port_file=port_file,
    )

    async def run() -> None:
        async with CloudServer(settings) as server:
            typer.echo(f"listening on {server.address}", err=True)
            await server.wait()

    asyncio.run(run())


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
