"""``tandem simulate fleet`` and ``tandem simulate capacity``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shared.errors import ConfigurationError
from simulator import link_options

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_FLEET_EPILOG = """
Examples:

    tandem simulate fleet --config home.toml

    tandem simulate fleet --config home.toml --seed 7 --out runs/home

    tandem simulate fleet --example > home.toml

docs/fleet.md explains the configuration and what is assumed.
"""
_CAPACITY_EPILOG = """
Examples:

    tandem simulate capacity --cloud epyc-2core --device pi5 --link 4g

    tandem simulate capacity --cloud epyc-2core --device laptop --link wifi --target "p95 time per token <= 80 ms" --out runs/plan

    tandem simulate capacity --cloud epyc-2core --device phone --link 4g --rtts 20,70,150 --policies cloud-only,auto-latency

    tandem simulate capacity --cloud gpu --device pi5 --link dsl --rtt 80 --up 5 --down 20
"""  # noqa: E501
_EXAMPLE = "home.toml"


def register(app: typer.Typer) -> None:
    """Add ``fleet`` and ``capacity`` to ``tandem simulate``."""
    app.command(epilog=_FLEET_EPILOG)(fleet)
    app.command(epilog=_CAPACITY_EPILOG)(capacity)


def fleet(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="What to simulate: TOML or JSON."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of all chance, in place of the file's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write fleet.json, fleet.md and figures here."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a configuration to begin with, and exit.")
    ] = False,
) -> None:
    """Simulate many edges and the cloud that they share, in virtual time.

    The same configuration and seed give the same figures, to the byte.
    """
    if example:
        print(_example(), end="")
        return
    if config is None:
        raise ConfigurationError("name a configuration with --config FILE (or see --example)")
    from simulator.fleet.config import load_config  # noqa: PLC0415  (brings SimPy)
    from simulator.fleet.outputs import fleet_line, fleet_table, write_fleet  # noqa: PLC0415
    from simulator.fleet.simulation import run_fleet  # noqa: PLC0415
    from simulator.fleet.summary import summarise, to_json  # noqa: PLC0415

    loaded = load_config(config)
    _make(out)
    with _progress() as (progress, task):
        run = run_fleet(
            loaded,
            seed=seed,
            progress=lambda share: progress.update(task, completed=share, description=loaded.name),
        )
    summary = summarise(run)
    written = [] if out is None else write_fleet(run, summary, out)
    if as_json:
        print(to_json(summary), end="")
        return
    console = _console()
    console.print(fleet_table(summary))
    console.print(fleet_line(summary), soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def capacity(
    cloud: Annotated[
        str, typer.Option("--cloud", metavar="NAME", help="Cloud profile, or its .json file.")
    ],
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Device profile, or its .json file.")
    ],
    link: Annotated[
        str,
        typer.Option("--link", metavar="NAME", help="Preset of `tandem simulate link --list`."),
    ] = "4g",
    rtt: link_options.Rtt = None,
    up: link_options.Up = None,
    down: link_options.Down = None,
    target: Annotated[
        str, typer.Option("--target", help="Of mean or p1 to p99, time per token, first token "
                          "or answer.")
    ] = "p95 time per token <= 100 ms",
    policies: Annotated[
        str, typer.Option("--policies", metavar="A,B,C", help="Whom to compare.")
    ] = "cloud-only,auto-latency,auto-cost,auto-quality",
    think: Annotated[
        float, typer.Option("--think", metavar="S", min=1.0, help="From an answer to the user's "
                            "next question, on average.")
    ] = 600.0,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Of the cloud.")] = 1,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="USD", min=0.0, help="Of a replica's hour, in place of "
                     "the profile's."),
    ] = None,
    rtts: Annotated[
        str | None,
        typer.Option("--rtts", metavar="MS,MS", help="Round trips to ask about besides the "
                     "link's own."),
    ] = None,
    recording: Annotated[
        Path | None, typer.Option("--recording", metavar="FILE", help="In place of the shipped.")
    ] = None,
    most: Annotated[
        int,
        typer.Option(
            "--most", min=1, max=1_000_000, help="Edges, beyond which nothing is tried."
        ),
    ] = 20_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all chance.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write capacity.json, .md and figures here."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
) -> None:  # fmt: skip
    """How many edges can this cloud serve at this target, on this link, at what cost?"""
    from simulator.fleet.capacity import POLICIES, Scenario, capacities  # noqa: PLC0415
    from simulator.fleet.outputs import (  # noqa: PLC0415
        capacity_json,
        capacity_line,
        capacity_table,
        write_capacities,
    )
    from simulator.fleet.recordings import load_recording  # noqa: PLC0415
    from simulator.fleet.target import parse_target  # noqa: PLC0415

    names = list(dict.fromkeys(name.strip() for name in policies.split(",") if name.strip()))
    if not names:
        raise ConfigurationError(f"--policies names no policy: there are {', '.join(POLICIES)}")
    unknown = next((name for name in names if name not in POLICIES), None)
    if unknown is not None:
        raise ConfigurationError(f"no policy {unknown!r}: there are {', '.join(POLICIES)}")
    changes = {"rtt_ms": rtt, "up_mbit": up, "down_mbit": down}
    edges: dict[str, Any] = {"device": device, "link": link}
    edges |= {key: value for key, value in changes.items() if value is not None}
    cloud_table: dict[str, Any] = {"profile": cloud, "replicas": replicas}
    if price is not None:
        cloud_table["price_per_hour"] = price
    scenario = Scenario(
        edges,
        cloud_table,
        {"think_s": think},
        parse_target(target),
        seed,
        most,
    )
    scenario.config(names[0], 1)  # says at once what is wrong
    recorded = load_recording(recording)
    _make(out)
    with _progress(spinner=True) as (progress, task):
        found = capacities(
            scenario,
            names,
            _numbers(rtts),
            recorded,
            lambda text: progress.update(task, description=text),
        )
    written = [] if out is None else write_capacities(found, scenario, recorded, out)
    if as_json:
        print(capacity_json(found, scenario, recorded), end="")
        return
    console = _console()
    console.print(capacity_table(found, scenario))
    console.print(capacity_line(scenario, recorded), soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def _console() -> Console:
    """For names and paths that users chose: printed as they are."""
    return Console(highlight=False, emoji=False, markup=False)


def _make(folder: Path | None) -> None:
    """Say at once, not after the run, that a folder cannot be written."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)


def _example() -> str:
    from importlib.resources import files  # noqa: PLC0415

    return (files("simulator.fleet") / "examples" / _EXAMPLE).read_text(encoding="utf-8")


def _numbers(text: str | None) -> list[float]:
    try:
        numbers = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise ConfigurationError(f"--rtts {text!r}: write milliseconds with commas") from None
    if any(not 0.0 <= number <= 120_000.0 for number in numbers):
        raise ConfigurationError(f"--rtts {text!r}: a round trip lies within 0 and 120000 ms")
    return numbers


@contextmanager
def _progress(*, spinner: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    what = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = what, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield progress, progress.add_task("simulating", total=None if spinner else 1.0)
