"""``tandem fleet``: the fleet's edges in a table, and commands to one of them, over MQTT."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.mqtt_settings import DEFAULT_PREFIX, BrokerSettings, split_address
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from edge.fleet_view import FleetView

_PASSWORD_VARIABLE = "TANDEM_MQTT_PASSWORD"  # noqa: S105  (its name)
_REFRESH_SECONDS = 0.5
_LOOK_SECONDS = 12.0  # a little more than edges take from one report to the next

Broker = Annotated[
    str,
    typer.Option(
        "--broker",
        metavar="HOST[:PORT]",
        envvar="TANDEM_MQTT",
        help="MQTT broker that the edges report to.",
    ),
]
User = Annotated[
    str | None,
    typer.Option("--user", envvar="TANDEM_MQTT_USER", help="User name at the broker."),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file", help=f"File that holds the password. (or {_PASSWORD_VARIABLE})"
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", help="PEM file of the broker's certificate authority; turns TLS on."),
]
Certificate = Annotated[
    Path | None, typer.Option("--client-cert", help="PEM certificate to show to the broker.")
]
Key = Annotated[Path | None, typer.Option("--client-key", help="PEM key of that certificate.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Send the password without TLS beyond this machine.")
]
Prefix = Annotated[str, typer.Option("--prefix", help="What every topic begins with.")]

app = typer.Typer(help="Watch and command edges over MQTT.", no_args_is_help=True)

_WATCH_EPILOG = """
Examples:

    tandem fleet watch --broker localhost

    tandem fleet watch --broker broker.example --user monitor --ca ca.pem

    tandem fleet watch --broker localhost --once --json
"""
_SEND_EPILOG = """
Examples:

    tandem fleet send kitchen ping --broker localhost

    tandem fleet send kitchen set-controls mode=auto target_agreement=0.95 --broker localhost

    tandem fleet send kitchen drain --broker broker.example --user operator --ca ca.pem
"""


def register(parent: typer.Typer) -> None:
    """Add ``fleet`` to ``tandem``."""
    parent.add_typer(app, name="fleet")


@app.command(epilog=_WATCH_EPILOG)
def watch(
    broker: Broker,
    user: User = None,
    password_file: PasswordFile = None,
    ca: Ca = None,
    client_cert: Certificate = None,
    client_key: Key = None,
    insecure: Insecure = False,
    prefix: Prefix = DEFAULT_PREFIX,
    once: Annotated[
        bool, typer.Option("--once", help="Show what edges report, once, and end.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=0.1,
            help="End after so long; with --once wait so long at most. "
            f"(default: until Ctrl-C; {_LOOK_SECONDS:g} with --once)",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: an array of objects, not a table.")
    ] = False,
) -> None:
    """A live table of the edges: state, mode, link, speed, share on the device, and more."""
    from edge.fleet_client import look  # noqa: PLC0415
    from edge.fleet_view import FleetView  # noqa: PLC0415

    if as_json and not once:
        raise ConfigurationError("--json goes with --once")
    settings = _settings(broker, user, password_file, ca, client_cert, client_key, insecure, prefix)
    view, console = FleetView(prefix), _console()
    if not once:
        asyncio.run(_show(settings, view, console, seconds))
        return
    asyncio.run(look(settings, view, seconds or _LOOK_SECONDS))
    if as_json:
        print(json.dumps(view.as_records()))
    else:
        console.print(view.table())


def _console() -> Console:
    """Standard output; in a file or pipe lines are as long as the table needs."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


async def _show(
    settings: BrokerSettings, view: FleetView, console: Console, seconds: float | None
) -> None:
    """The live table, until cancelled or for so long."""
    from rich.live import Live  # noqa: PLC0415

    from edge.fleet_client import watch as watch_fleet  # noqa: PLC0415

    note, connected = "", asyncio.Event()

    def told(text: str) -> None:
        nonlocal note
        note = text
        connected.set()

    watching = asyncio.create_task(watch_fleet(settings, view, told), name="fleet watch")
    watching.add_done_callback(lambda _task: connected.set())
    try:
        async with asyncio.timeout(seconds):
            await connected.wait()
            if watching.done():  # an error, and no table
                await watching
            with Live(view.table(note), console=console, auto_refresh=False) as live:
                while not watching.done():
                    live.update(view.table(note), refresh=True)
                    await asyncio.wait([watching], timeout=_REFRESH_SECONDS)
            await watching
    except TimeoutError:
        return
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@app.command(epilog=_SEND_EPILOG)
def send(
    edge: Annotated[str, typer.Argument(help="Name of the edge.")],
    command: Annotated[
        str, typer.Argument(help="One of: set-controls, reload, drain, ping.", metavar="COMMAND")
    ],
    broker: Broker,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="For set-controls: mode=…, threshold=…, target_agreement=…, aim=…, private=…, "
            "max_tokens=…",
            metavar="[KEY=VALUE]…",
            show_default=False,
        ),
    ] = None,
    user: User = None,
    password_file: PasswordFile = None,
    ca: Ca = None,
    client_cert: Certificate = None,
    client_key: Key = None,
    insecure: Insecure = False,
    prefix: Prefix = DEFAULT_PREFIX,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="How long to wait for the edge.")
    ] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the acknowledgement as it came.")
    ] = False,
) -> None:
    """Send EDGE a command and wait until it says that it is done."""
    from edge import fleet_client  # noqa: PLC0415
    from edge.fleet_view import printable  # noqa: PLC0415

    given = parse_arguments(arguments or [])
    fleet_client.make_command(command, given)  # a mistake shows without a broker
    settings = _settings(broker, user, password_file, ca, client_cert, client_key, insecure, prefix)
    answer = asyncio.run(fleet_client.send(settings, edge, command, given, seconds))
    if as_json:
        print(json.dumps(answer.model_dump(mode="json")))
        return
    said = " ".join(f"{key}={json.dumps(value)}" for key, value in (answer.result or {}).items())
    print(printable(f"{edge}: done {said}".rstrip(), 2000))


def parse_arguments(pairs: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs; a value is JSON where it can be, otherwise a string."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"{pair!r} is not KEY=VALUE")
        if key in arguments:
            raise ConfigurationError(f"{key!r} is given twice")
        try:
            arguments[key] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[key] = value
    return arguments


def _settings(
    broker: str,
    user: str | None,
    password_file: Path | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    insecure: bool,
    prefix: str,
) -> BrokerSettings:
    """How to reach the broker; a password lies in a file or the environment, not among the
    arguments, which all users of the machine can read."""
    password = os.environ.get(_PASSWORD_VARIABLE) if user else None
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"{password_file} cannot be read: {error}") from None
    host, port = split_address(broker, tls=ca is not None)
    return BrokerSettings(
        host=host,
        port=port,
        user=user,
        password=password,
        ca=ca,
        certificate=certificate,
        key=key,
        insecure=insecure,
        prefix=prefix,
    )
