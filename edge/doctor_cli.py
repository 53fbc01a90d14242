"""``tandem doctor``: looks at everything that an edge needs, and says what to do."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from edge import options as opt

DAEMON_PORT = 7430

_EPILOG = """
Examples:

    tandem doctor

    TANDEM_TOKEN=... tandem doctor --cloud cloud.example:7420 --cloud-ca ca.pem

    tandem doctor --mqtt mqtts://device@broker.example --mqtt-ca ca.pem --json
"""


def register(app: typer.Typer) -> None:
    """Add ``tandem doctor``."""
    app.command(epilog=_EPILOG)(doctor)


def doctor(
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    threads: opt.Threads = None,
    cloud: opt.Cloud = None,
    token: opt.Token = None,
    cloud_ca: opt.CloudCa = None,
    client_cert: opt.Certificate = None,
    client_key: opt.Key = None,
    plaintext_token: opt.PlaintextToken = False,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt", metavar="URL", help="Broker: mqtt://[USER@]HOST[:PORT], mqtts:// with TLS."
        ),
    ] = None,
    mqtt_password: Annotated[
        str | None,
        typer.Option(
            "--mqtt-password", envvar="TANDEM_MQTT_PASSWORD", help="Password of that user."
        ),
    ] = None,
    mqtt_ca: Annotated[
        Path | None,
        typer.Option(
            "--mqtt-ca",
            help="PEM file of the broker's authority. (default: the system's)",
            show_default=False,
        ),
    ] = None,
    mqtt_cert: Annotated[
        Path | None,
        typer.Option("--mqtt-cert", help="PEM certificate to show to the broker."),
    ] = None,
    mqtt_key: Annotated[
        Path | None, typer.Option("--mqtt-key", help="PEM key of that certificate.")
    ] = None,
    mqtt_plaintext_password: Annotated[
        bool,
        typer.Option(
            "--mqtt-plaintext-password", help="Send the password without TLS beyond this machine."
        ),
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Where the daemon is to listen.")
    ] = DAEMON_PORT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Check processor, memory, bundle, cloud, broker and clock, and say what to do.

    Ends with 0 where nothing fails, else with 1.
    """
    from edge.doctor import Level  # noqa: PLC0415
    from edge.doctor_broker import Broker  # noqa: PLC0415
    from edge.doctor_report import show  # noqa: PLC0415
    from edge.doctor_visit import examine  # noqa: PLC0415
    from shared.errors import ConfigurationError  # noqa: PLC0415
    from shared.model_bundle import default_bundle_folder  # noqa: PLC0415

    # gRPC's own log would run through the table
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    endpoint = opt.make_endpoint(cloud, token, cloud_ca, client_cert, client_key, plaintext_token)
    how = mqtt_ca, mqtt_cert, mqtt_key, mqtt_plaintext_password
    if mqtt is None and any(how):
        raise ConfigurationError(
            "--mqtt-ca, --mqtt-cert, --mqtt-key and --mqtt-plaintext-password are for a broker: "
            "name it with --mqtt"
        )
    broker = Broker.parse(mqtt, mqtt_password, *how) if mqtt is not None else None
    folder = bundle or default_bundle_folder()
    findings = asyncio.run(examine(folder, precision, threads, endpoint, broker, port))
    failed = any(finding.level is Level.FAIL for finding in findings)
    if as_json:
        record = {"ok": not failed, "findings": [finding.as_record() for finding in findings]}
        print(json.dumps(record, ensure_ascii=False))
    else:
        show(findings)
    if failed:
        raise typer.Exit(1)
