"""``tandem simulate link``: put a simulated link between an edge and its cloud."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import ConfigurationError, LinkError

if TYPE_CHECKING:
    from simulator.link_spec import DirectionSpec, LinkSpec
    from simulator.shaped_proxy import ProxyStats, ShapedProxy

app = typer.Typer(help="Networks that are not there.", no_args_is_help=True)

_EPILOG = """
Examples:

    tandem simulate link --list

    tandem simulate link --preset 4g --listen localhost:7421 --to localhost:7420

    tandem simulate link --rtt 80 --up 2 --down 10 --loss 0.01 --listen localhost:7421 --to localhost:7420

    tandem simulate link --trace-up phone.up --trace-down phone.down --rtt 40 --listen localhost:7421 --to localhost:7420
"""  # noqa: E501


def register(root: typer.Typer) -> None:
    """Add ``simulate`` to the root command."""
    root.add_typer(app, name="simulate")


@app.callback()
def _group() -> None:
    """Networks that are not there."""


@app.command(epilog=_EPILOG)
def link(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Where to listen: all addresses of HOST; port 0 is a free one.",
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="HOST:PORT", help="The service behind the link.")
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="What to start from (see --list).")
    ] = "loopback",
    rtt: Annotated[
        float | None, typer.Option("--rtt", metavar="MS", help="Round trip; half of it each way.")
    ] = None,
    up: Annotated[
        float | None, typer.Option("--up", metavar="MBIT", help="Rate towards --to, Mbit/s.")
    ] = None,
    down: Annotated[
        float | None, typer.Option("--down", metavar="MBIT", help="Rate back, Mbit/s.")
    ] = None,
    jitter: Annotated[
        float | None, typer.Option("--jitter", metavar="MS", help="Mean extra delay, each way.")
    ] = None,
    loss: Annotated[
        float | None,
        typer.Option(
            "--loss", metavar="SHARE", help="Share of packets lost, each way: 0.01 is 1%."
        ),
    ] = None,
    queue: Annotated[
        int | None, typer.Option("--queue", metavar="BYTES", help="Most that waits, each way.")
    ] = None,
    trace_up: Annotated[
        Path | None,
        typer.Option("--trace-up", metavar="FILE", help="Mahimahi trace in place of --up."),
    ] = None,
    trace_down: Annotated[
        Path | None,
        typer.Option("--trace-down", metavar="FILE", help="Mahimahi trace in place of --down."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all chance in the link.")] = 0,
    control: Annotated[
        str | None,
        typer.Option(
            "--control", metavar="HOST:PORT", help="Serve the control API there (loopback)."
        ),
    ] = None,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime", help="Stay exact on a busy machine: real-time priority (Linux, root)."
        ),
    ] = False,
    list_presets: Annotated[
        bool, typer.Option("--list", help="Show the presets and where they are from, and exit.")
    ] = False,
) -> None:
    """Carry connections from --listen to --to over a simulated link, until Ctrl-C.

    All connections share the link. Its options change what --preset says.
    """
    console = Console(highlight=False, emoji=False)
    if list_presets:
        console.print(_preset_table())
        return
    if listen is None or to is None:
        raise ConfigurationError("name both --listen HOST:PORT and --to HOST:PORT")
    spec = _changed(
        preset,
        _way(rtt, up, jitter, loss, queue, trace_up, "--up"),
        _way(rtt, down, jitter, loss, queue, trace_down, "--down"),
    )

    from simulator.precise_loop import go_first, new_event_loop  # noqa: PLC0415

    if realtime:
        go_first()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(spec, listen, to, seed, control, console))


async def _serve(
    spec: LinkSpec, listen: str, to: str, seed: int, control: str | None, console: Console
) -> None:
    from simulator.shaped_proxy import ShapedProxy  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        stopped = await stack.enter_async_context(_stop_signals())
        proxy = await stack.enter_async_context(ShapedProxy(to, spec, listen=listen, seed=seed))
        line = f"listening on {proxy.address}, to {to}"
        if control is not None:
            line += f", control at http://{await _control(stack, proxy, control)}"
        console.print(line, soft_wrap=True, markup=False)
        await stopped.wait()
        console.print(_summary(proxy.stats()), soft_wrap=True, markup=False)


async def _control(stack: AsyncExitStack, proxy: ShapedProxy, address: str) -> str:
    from simulator.link_control import LinkControl  # noqa: PLC0415

    return (await stack.enter_async_context(LinkControl(proxy, address))).address


@asynccontextmanager
async def _stop_signals() -> AsyncIterator[asyncio.Event]:
    """Set at the first SIGINT or SIGTERM."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C interrupts instead
            loop.add_signal_handler(number, stopped.set)
            handled.append(number)
    try:
        yield stopped
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _way(
    rtt: float | None,
    rate: float | None,
    jitter: float | None,
    loss: float | None,
    queue: int | None,
    trace: Path | None,
    rate_option: str,
) -> dict[str, Any]:
    """The fields of one way that the options set."""
    from simulator.packet_trace import load_trace  # noqa: PLC0415

    if rate is not None and trace is not None:
        raise LinkError(f"{rate_option} and a trace for the same way exclude each other")
    fields: dict[str, Any] = {}
    if rtt is not None:
        fields["delay_ms"] = rtt / 2
    if rate is not None:
        fields |= {"rate_mbit": rate, "trace": None}
    if trace is not None:
        fields |= {"rate_mbit": None, "trace": load_trace(trace)}
    given = {"jitter_ms": jitter, "loss": loss, "queue_bytes": queue}
    return fields | {name: value for name, value in given.items() if value is not None}


def _changed(preset: str, up: dict[str, Any], down: dict[str, Any]) -> LinkSpec:
    from simulator.link_presets import preset as named  # noqa: PLC0415
    from simulator.link_spec import change_link  # noqa: PLC0415

    return change_link(named(preset), up=up, down=down)


def _preset_table() -> Table:
    from simulator.link_presets import PRESETS  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for heading in ("rtt ms", "down", "up"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what it is, and where the figures are from")
    for preset in PRESETS.values():
        spec = preset.build()
        table.add_row(
            preset.name,
            f"{spec.rtt_ms:g}",
            _rate(spec.down),
            _rate(spec.up),
            f"{preset.summary} [dim]{preset.source}[/]",
        )
    table.caption = "down, up: Mbit/s (~ the average of a trace)"
    table.caption_justify = "left"
    return table


def _rate(way: DirectionSpec) -> str:
    if way.trace is not None:
        return f"~{way.trace.mean_mbit:.0f}"
    return "∞" if way.rate_mbit is None else f"{way.rate_mbit:g}"


def _summary(stats: ProxyStats) -> str:
    ways = [
        f"{name} {counts.delivered_bytes:,} bytes, {counts.lost + counts.dropped} packets lost, "
        f"{counts.stalls} stalls ({counts.stall_seconds:.1f} s)"
        for name, counts in (("up", stats.up), ("down", stats.down))
    ]
    plural = "" if stats.connections_total == 1 else "s"
    opened = f"{stats.connections_total} connection{plural} in {stats.seconds:.0f} s"
    return " · ".join([opened, *ways])
