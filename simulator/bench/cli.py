"""``tandem bench``: the options, checked before anything starts."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from edge import options as opt
from edge.context_source import ContextCodec
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from shared.model_bundle import ModelBundle
    from simulator.bench.journal import Journal
    from simulator.bench.links import BenchLink
    from simulator.bench.plan import BenchPrompt, BenchSettings, Plan, Task
    from simulator.bench.registry import Entrant

CONTENDERS = (
    "cloud-only,naive-split,blocking@0.8,blocking@0.9,blocking@1.0,standalone,llama.cpp,vllm-cpu"
)
_FULL: dict[str, Any] = {
    "limit": None, "max_tokens": 96, "repeats": 3, "rtt": "0,20,50,100,150", "rate": "1,10,100",
}  # fmt: skip
_QUICK: dict[str, Any] = {
    "limit": 2, "max_tokens": 24, "repeats": 1, "rtt": "0,50", "rate": "10",
}  # fmt: skip
_DEFAULT_PROMPTS = Path(__file__).with_name("prompts.jsonl")

_EPILOG = """
Examples:

    tandem bench --quick

    tandem bench --limit 4 --out runs/grid --report docs/results.md

    tandem bench --contenders cloud-only,blocking@0.8 --preset wifi,4g,3g

    tandem bench --rtt 20,80 --rate 5 --context int8 --prompts prompts.jsonl

    tandem bench --trace-up phone.up --trace-down phone.down --trace-rtt 60

Finished measurements are kept in --out; the same command goes on where one was stopped.
"""


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the root command."""
    app.command(epilog=_EPILOG)(bench)


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes: 2 prompts, 24 tokens, 2 links, 1 repeat.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSONL with prompt, or turns. (default: eight of its own)"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="First so many prompts only.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Longest answer. (default: 96)"),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="Times each; the median counts. (default: 3)"),
    ] = None,
    costly_repeats: Annotated[
        int, typer.Option("--costly-repeats", min=1, help="The same for naive-split.")
    ] = 1,
    contenders: Annotated[
        str | None,
        typer.Option(
            "--contenders", metavar="A,B,C", help=f"(default: {CONTENDERS}, where installed)"
        ),
    ] = None,
    rtt: Annotated[
        str | None,
        typer.Option(
            "--rtt", metavar="MS,…", help="Round trips of the grid. (default: 0,20,50,100,150)"
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="MBIT,…", help="Rates of the grid. (default: 1,10,100)"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME,…",
            help="Links of `tandem simulate link --list`; without --rtt and --rate in place of "
            "the grid.",
        ),
    ] = None,
    trace_up: Annotated[
        list[Path] | None,
        typer.Option("--trace-up", metavar="FILE", help="Mahimahi trace, edge to cloud."),
    ] = None,
    trace_down: Annotated[
        list[Path] | None,
        typer.Option("--trace-down", metavar="FILE", help="And back; both may be repeated."),
    ] = None,
    trace_rtt: Annotated[
        float, typer.Option("--trace-rtt", metavar="MS", help="Round trip of trace links.")
    ] = 40.0,
    context: opt.Context = ContextCodec.FP16,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    bundle: opt.Bundle = None,
    threads: opt.Threads = None,
    cloud_threads: Annotated[
        int | None,
        typer.Option("--cloud-threads", min=1, help="Threads of the cloud. (default: torch's)"),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option("--gguf", help="The bundle's weights for llama.cpp. (default: cached file)"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all chance in the links.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for measurements, report and figures. (default: runs/bench, or "
            "runs/bench-quick)",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write the report here too, figures in a folder beside it."),
    ] = None,
) -> None:
    """Run the paper's experiments: real edge and cloud on shaped links, against each other.

    Writes measurements.jsonl, results.json, report.md and plots/ into --out.
    """
    named = {
        "limit": limit, "max_tokens": max_tokens, "repeats": repeats, "rtt": rtt, "rate": rate,
    }  # fmt: skip
    out = out or Path("runs/bench-quick" if quick else "runs/bench")
    chosen = (_QUICK if quick else _FULL) | {k: v for k, v in named.items() if v is not None}
    grid_wanted = rtt is not None or rate is not None or not (preset or trace_up or trace_down)
    links = _links(chosen, grid_wanted, preset, trace_up or [], trace_down or [], trace_rtt)
    entrants = [_entrant(name) for name in _split(contenders or CONTENDERS, "--contenders")]

    loaded = opt.load_bundle(bundle)
    loaded.graphs(precision)
    weights = _gguf(loaded, gguf)
    entrants, absent = _present(entrants, weights, insist=contenders is not None)
    read = _prompts(loaded, prompts or _DEFAULT_PROMPTS, chosen["limit"], chosen["max_tokens"])

    from simulator.bench.environment import look_around  # noqa: PLC0415
    from simulator.bench.journal import Journal  # noqa: PLC0415
    from simulator.bench.links import UNSHAPED  # noqa: PLC0415
    from simulator.bench.links import named as named_link  # noqa: PLC0415
    from simulator.bench.outputs import write_outputs  # noqa: PLC0415
    from simulator.bench.plan import BenchSettings, Plan  # noqa: PLC0415
    from simulator.bench.report import ReportContext  # noqa: PLC0415
    from simulator.bench.results import sum_up  # noqa: PLC0415

    environment = look_around(loaded)
    longest = max(len(prompt.ids) for prompt in read)
    settings = BenchSettings(
        max_tokens=chosen["max_tokens"],
        context=context,
        precision=precision,
        threads=threads,
        cloud_threads=cloud_threads,
        seed=seed,
        room=max(256, longest + chosen["max_tokens"] + 8),
    )
    plan = Plan(
        tuple(entrants), links, read, chosen["repeats"], costly_repeats, named_link(UNSHAPED)
    )
    console = Console(stderr=True, highlight=False)
    for name, reason in absent.items():
        console.print(f"left out: {name}: {reason}", markup=False)
    record = settings.as_record(loaded, environment.machine)
    with Journal(out, record) as journal:
        _measure(plan, settings, loaded, weights, journal, console, out)
        results = sum_up(plan, journal, loaded.manifest.architecture.layers)
    source = "of its own" if prompts is None else f"from {prompts.name}"
    costly = ", ".join(
        f"{plan.repeats_of(e)} of {e.name}" for e in entrants if plan.repeats_of(e) != plan.repeats
    )
    written = write_outputs(
        results,
        ReportContext(
            environment=environment,
            command=_command_line(sys.argv[1:]),
            settings=record,
            prompts=f"{len(read)} {source}",
            repeats=f"{plan.repeats}{f' ({costly})' if costly else ''}",
            plots={},
            left_out=absent,
        ),
        out,
        report,
    )
    for path in written:
        console.print(f"wrote {path}", markup=False)


def _links(
    chosen: dict[str, Any],
    grid: bool,
    presets: str | None,
    ups: list[Path],
    downs: list[Path],
    trace_rtt: float,
) -> tuple[BenchLink, ...]:
    from simulator.bench.links import choose_links  # noqa: PLC0415

    if len(ups) != len(downs):
        raise ConfigurationError("a trace link needs both --trace-up and --trace-down")
    return choose_links(
        _numbers(chosen["rtt"], "--rtt") if grid else (),
        _numbers(chosen["rate"], "--rate") if grid else (),
        _split(presets, "--preset") if presets is not None else (),
        list(zip(ups, downs, strict=True)),
        trace_rtt,
    )


def _entrant(name: str) -> Entrant:
    from simulator.bench.registry import parse_entrant  # noqa: PLC0415

    return parse_entrant(name)


def _present(
    entrants: Sequence[Entrant], gguf: Path | None, *, insist: bool
) -> tuple[list[Entrant], dict[str, str]]:
    """Who can run here, and why the others cannot; whoever was named must."""
    from simulator.bench.runner import left_out  # noqa: PLC0415

    absent = left_out(entrants, gguf)
    if insist and absent:
        name, reason = next(iter(absent.items()))
        raise ConfigurationError(f"contender {name} cannot run: {reason}")
    return [entrant for entrant in entrants if entrant.name not in absent], absent


def _gguf(bundle: ModelBundle, named: Path | None) -> Path | None:
    """The file that the bundle's weights are from: the one named, or the cached one."""
    from prepare.weight_source import SMOLLM2  # noqa: PLC0415
    from shared.model_bundle import cache_folder, sha256_of  # noqa: PLC0415

    wanted = bundle.manifest.source.sha256
    if named is None:
        path = cache_folder() / "weights" / Path(SMOLLM2.member).name
        return path if wanted == SMOLLM2.member_sha256 and path.is_file() else None
    try:
        found = sha256_of(named)
    except OSError as error:
        raise ConfigurationError(f"{named} cannot be read: {error.strerror}") from None
    if found != wanted:
        raise ConfigurationError(f"{named} does not hold the weights that the bundle is made from")
    return named


def _prompts(
    bundle: ModelBundle, path: Path, limit: int | None, max_tokens: int
) -> tuple[BenchPrompt, ...]:
    """Encoded as every contender gets them; one that is too long is refused at once."""
    from edge.engine import EdgeEngine  # noqa: PLC0415
    from shared.chat import Message  # noqa: PLC0415
    from shared.prompt_file import read_exchanges  # noqa: PLC0415
    from simulator.bench.plan import BenchPrompt  # noqa: PLC0415

    exchanges = read_exchanges(path, limit)
    engine = EdgeEngine(bundle, "int8")  # loads no model before it is asked to
    try:
        found = tuple(
            BenchPrompt(e.prompt, engine.encode_chat([Message("user", e.prompt)]))
            for e in exchanges
        )
    finally:
        engine.close()
    room = bundle.manifest.architecture.max_positions - max_tokens
    for number, prompt in enumerate(found, start=1):
        if len(prompt.ids) > room:
            raise ConfigurationError(f"prompt {number} has {len(prompt.ids)} tokens; {room} fit")
    if len({prompt.identity for prompt in found}) < len(found):
        raise ConfigurationError(f"{path} holds a prompt twice")
    return found


def _measure(
    plan: Plan,
    settings: BenchSettings,
    bundle: ModelBundle,
    gguf: Path | None,
    journal: Journal,
    console: Console,
    out: Path,
) -> None:
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    tasks = list(plan.tasks())
    done = sum(task.key in journal for task in tasks)
    if done:
        console.print(f"{done} of {len(tasks)} measurements are in {out} already", markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=len(tasks), completed=done)

        said = ""

        def advance(task: Task) -> None:
            nonlocal said
            stage = f"{task.kind} on {task.link.name}"
            progress.update(bar, advance=1, description=f"{stage}: {task.entrant.name}")
            if not console.is_terminal and stage != said:
                console.print(stage, markup=False)
                said = stage

        try:
            asyncio.run(_until_terminated(plan, settings, bundle, gguf, journal, advance))
        except (KeyboardInterrupt, asyncio.CancelledError):
            progress.stop()
            console.print(
                f"{len(journal)} measurements are kept in {out}; the same command goes on",
                markup=False,
            )
            raise


async def _until_terminated(
    plan: Plan,
    settings: BenchSettings,
    bundle: ModelBundle,
    gguf: Path | None,
    journal: Journal,
    advance: Callable[[Task], None],
) -> None:
    """A SIGTERM ends it as Ctrl-C does: the children with it."""
    from simulator.bench.runner import run_plan  # noqa: PLC0415

    this = asyncio.current_task()
    assert this is not None
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGTERM, this.cancel)
    await run_plan(plan, settings, bundle, gguf, journal, advance)


def _split(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigurationError(f"{option} {text!r} is not a list like a,b,c")
    return parts


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in _split(text, option)]
    except ValueError:
        raise ConfigurationError(f"{option} {text!r} is not a list of numbers") from None


def _command_line(arguments: Sequence[str]) -> str:
    """The command as it was given; of absolute paths the last part alone."""

    def shown(argument: str) -> str:
        option, is_option, value = argument.partition("=")
        if is_option and argument.startswith("-"):
            return f"{option}={shown(value)}"
        return Path(argument).name if Path(argument).is_absolute() else argument

    return shlex.join(["tandem", *map(shown, arguments)])
