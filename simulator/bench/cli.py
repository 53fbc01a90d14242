"""``tandem bench``: the options, checked before anything starts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from edge import options as opt
from edge.context_source import ContextCodec

CONTENDERS = (
    "cloud-only,naive-split,blocking@0.8,blocking@0.9,blocking@1.0,optimistic@0.8,verified,"
    "auto-latency,auto-cost,standalone,llama.cpp,vllm-cpu"
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

    tandem bench --limit 4 --out runs/grid --report results.md

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
        typer.Option(
            "--report",
            metavar="FILE.md",
            help="Write the report here too, figures in a folder beside it.",
        ),
    ] = None,
    mix_versions: Annotated[
        bool,
        typer.Option(
            "--mix-versions",
            help="Add to measurements in --out that another version of the code made; the report "
            "says so.",
        ),
    ] = False,
) -> None:
    """Run the paper's experiments: real edge and cloud on shaped links, against each other.

    Writes measurements.jsonl, results.json, report.md and plots/ into --out.
    """
    from simulator.bench import choices  # noqa: PLC0415
    from simulator.bench.environment import look_around  # noqa: PLC0415
    from simulator.bench.journal import Journal  # noqa: PLC0415
    from simulator.bench.links import UNSHAPED, named  # noqa: PLC0415
    from simulator.bench.outputs import check_report_path, write_outputs  # noqa: PLC0415
    from simulator.bench.plan import BenchSettings, Plan  # noqa: PLC0415
    from simulator.bench.progress import measure  # noqa: PLC0415
    from simulator.bench.report import ReportContext  # noqa: PLC0415
    from simulator.bench.results import sum_up  # noqa: PLC0415
    from simulator.bench.sessions import check_version, sessions_of  # noqa: PLC0415

    given = {
        "limit": limit, "max_tokens": max_tokens, "repeats": repeats, "rtt": rtt, "rate": rate,
    }  # fmt: skip
    out = out or Path("runs/bench-quick" if quick else "runs/bench")
    chosen = (_QUICK if quick else _FULL) | {k: v for k, v in given.items() if v is not None}
    if rtt is None and rate is None and (preset or trace_up or trace_down):
        chosen |= {"rtt": None, "rate": None}  # no grid
    if report is not None:
        check_report_path(report)
    links = choices.links_named(
        chosen["rtt"], chosen["rate"], preset, trace_up or [], trace_down or [], trace_rtt
    )
    wanted = choices.entrants_named(contenders or CONTENDERS)
    loaded = opt.load_bundle(bundle)
    loaded.graphs(precision)
    weights = choices.weights_for_llama_cpp(loaded, gguf)
    entrants, absent = choices.present(wanted, weights, insist=contenders is not None)
    read = choices.read_prompts(
        loaded, prompts or _DEFAULT_PROMPTS, chosen["limit"], chosen["max_tokens"]
    )
    environment = look_around(loaded)
    settings = BenchSettings(
        max_tokens=chosen["max_tokens"],
        context=context,
        precision=precision,
        threads=threads,
        cloud_threads=cloud_threads,
        seed=seed,
        room=max(256, max(len(prompt.ids) for prompt in read) + chosen["max_tokens"] + 8),
    )
    plan = Plan(tuple(entrants), links, read, chosen["repeats"], costly_repeats, named(UNSHAPED))
    console = Console(stderr=True, highlight=False)
    for name, reason in absent.items():
        console.print(f"left out: {name}: {reason}", markup=False)
    record = settings.as_record(loaded, environment.machine)
    with Journal(out, record, environment.as_record()) as journal:
        if not mix_versions and not plan.complete_in(journal):
            check_version(journal, environment)
        measure(plan, settings, loaded, weights, journal, console, out)
        results = sum_up(plan, journal, loaded.manifest.architecture.layers)
        sessions = sessions_of(plan, journal)
    source = "of its own" if prompts is None else f"from {prompts.name}"
    costly = ", ".join(
        f"{plan.repeats_of(e)} of {e.name}" for e in entrants if plan.repeats_of(e) != plan.repeats
    )
    written = write_outputs(
        results,
        ReportContext(
            sessions=sessions,
            bundle=environment.bundle,
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


def _command_line(arguments: Sequence[str]) -> str:
    """The command as it was given; of absolute paths the last part alone."""

    def shown(argument: str) -> str:
        option, is_option, value = argument.partition("=")
        if is_option and argument.startswith("-"):
            return f"{option}={shown(value)}"
        return Path(argument).name if Path(argument).is_absolute() else argument

    return shlex.join(["tandem", *map(shown, arguments)])
