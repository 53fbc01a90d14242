"""``tandem simulate fleet-profile``, ``fleet-record`` and ``fleet-validate``: what feeds the fleet
simulator, and what holds it against real processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edge import options as opt
from shared.errors import ConfigurationError
from simulator import link_options

_DEVICE = "slow"
_MOST_EDGES = 64
_PACKAGED_PROMPTS = Path(__file__).parent / "bench" / "prompts.jsonl"

_PROFILE_EPILOG = """
Examples:

    tandem simulate fleet-profile --name my-machine --out profiles

    tandem simulate fleet-profile --quick

    tandem simulate fleet-profile --precision int4 --cloud-threads 1 --name one-core
"""
_RECORD_EPILOG = """
Examples:

    tandem simulate fleet-record --out recording.npz

    tandem simulate fleet-record --prompts-file prompts.jsonl --prompts 80 --max-tokens 128
"""
_VALIDATE_EPILOG = """
Examples:

    tandem simulate fleet-validate

    tandem simulate fleet-validate --link 4g --edges 1,4 --policies blocking@0.8,verified --check

    tandem simulate fleet-validate --device profiles/devices/slow.json --rtt 80 --up 5 --down 20
"""


def register(app: typer.Typer) -> None:
    """Add the commands to ``tandem simulate``."""
    app.command(epilog=_PROFILE_EPILOG)(fleet_profile)
    app.command(epilog=_RECORD_EPILOG)(fleet_record)
    app.command(epilog=_VALIDATE_EPILOG)(fleet_validate)


def fleet_profile(
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Of the profiles, and of their files.")
    ] = "this-machine",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where to write devices/NAME.json, clouds/NAME.json and the measurements.",
        ),
    ] = Path("runs/fleet"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Less than a minute: does it work, not how fast.")
    ] = False,
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    threads: opt.Threads = None,
    cloud_threads: Annotated[
        int | None,
        typer.Option("--cloud-threads", min=1, help="Threads of the cloud. (default: torch's)"),
    ] = None,
) -> None:
    """Measure this machine as an edge and as a cloud for `tandem simulate fleet`.

    Nothing else should run meanwhile. It takes some minutes.
    """
    from simulator.fleet import measuring  # noqa: PLC0415

    measuring.check_name(name)
    loaded = opt.load_bundle(bundle)
    loaded.graphs(precision)
    effort = measuring.QUICK if quick else measuring.FULL
    console = Console(stderr=True, highlight=False)
    with _progress(console, "the edge", effort.steps) as advance:
        measured = measuring.measure_machine(
            loaded,
            precision,
            name,
            effort,
            lambda what: advance(f"the {what}"),
            threads=threads,
            cloud_threads=cloud_threads,
        )
    for path in measuring.write_measured(measured, out):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    device, cloud = measured.device, measured.cloud
    shown = Console(highlight=False, soft_wrap=True)
    levels = ", ".join(f"{1e3 * seconds:.2f}" for seconds in device.level_seconds)
    shown.print(
        f"edge: {levels} ms to each exit after the one before, {1e3 * device.prefill_seconds:.2f} "
        f"ms a token of a prompt, {1e3 * device.step_seconds:.2f} ms a token besides",
        markup=False,
    )
    for kind, model in (("token ids", cloud.whole), ("hidden states", cloud.deep)):
        shown.print(
            f"cloud, from {kind}: {1e3 * model.base_seconds:.1f} ms a pass, "
            f"{1e3 * model.beyond_seconds[-1]:.1f} more with {model.knots[-1]} rows, "
            f"{1e3 * model.session_seconds:.2f} a session, "
            f"{1e3 * model.decision_seconds:.2f} a decision (r² {model.r_squared:.3f})",
            markup=False,
        )
    shown.print(
        f"cloud, besides: {1e3 * cloud.message_seconds:.2f} ms a message, "
        f"{1e3 * cloud.turnaround_seconds:.2f} a question",
        markup=False,
    )


def fleet_record(
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=1, help="First so many only. (default: all)")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts-file",
            metavar="FILE",
            help="JSONL with prompt, or turns. (default: the benchmark's eight)",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 128,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="What to write.")] = Path(
        "runs/fleet/recording.npz"
    ),
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    threads: opt.Threads = None,
) -> None:
    """Record how sure the exits are, and whether rightly, along the full model's own answers.

    A cloud on this machine decodes the answers, the edge then reads every exit at every position.
    The file holds no words.
    """
    from edge.cloud_channel import CloudEndpoint  # noqa: PLC0415
    from edge.engine import EdgeEngine  # noqa: PLC0415
    from simulator.fleet.measuring_run import run_to_end  # noqa: PLC0415
    from simulator.fleet.recorder import Recorded, encode_prompts, record  # noqa: PLC0415
    from simulator.fleet.recordings import save_recording  # noqa: PLC0415
    from simulator.local_cloud import LocalCloud  # noqa: PLC0415

    loaded = opt.load_bundle(bundle)
    loaded.graphs(precision)
    _check_writable(out)
    engine = EdgeEngine(loaded, precision, threads=threads)
    encoded = encode_prompts(engine, prompts_file or _PACKAGED_PROMPTS, prompts, max_tokens)
    console = Console(stderr=True, highlight=False)

    async def run(advance: Callable[[str], None]) -> Recorded:
        async with LocalCloud(loaded.folder) as cloud:
            engine.endpoint = CloudEndpoint(cloud.address)
            return await record(engine, encoded, max_tokens, lambda: advance("answers"))

    try:
        with _progress(console, "answers", 2 * len(encoded)) as advance:
            recorded = run_to_end(run(advance))
        source = "the benchmark's own" if prompts_file is None else f"from {prompts_file.name}"
        recording = recorded.as_recording(
            loaded, f"{len(encoded)} prompts {source}, greedy, at most {max_tokens} tokens"
        )
    finally:
        engine.close()
    save_recording(recording, out)
    positions = sum(answer.length for answer in recording.answers)
    console.print(
        f"wrote {out}: {len(recording.answers)} answers of {positions} tokens",
        markup=False,
        soft_wrap=True,
    )


def fleet_validate(
    edges: Annotated[
        str, typer.Option("--edges", metavar="N,N,…", help="How many edges at a time.")
    ] = "1,4,16",
    policies: Annotated[
        str,
        typer.Option(
            "--policies",
            metavar="NAME,NAME,…",
            help="cloud-only, blocking@THRESHOLD, optimistic@THRESHOLD, verified.",
        ),
    ] = "cloud-only,blocking@0.8,optimistic@0.8",
    link: Annotated[
        str,
        typer.Option(
            "--link", metavar="NAME", help="Of each edge: see tandem simulate link --list."
        ),
    ] = "4g",
    rtt: link_options.Rtt = None,
    up: link_options.Up = None,
    down: link_options.Down = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="NAME|FILE", help="What the edges are like: a profile."),
    ] = _DEVICE,
    prompts: Annotated[
        int, typer.Option("--prompts", min=1, help="Of the benchmark's own, so many.")
    ] = 5,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Longest answer.")] = 32,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Of all fleets; the table has medians.")
    ] = 3,
    cloud_threads: Annotated[
        int, typer.Option("--cloud-threads", min=1, help="The edges need a core of their own.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all chance in the links.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="For validation.json and validation.md.")
    ] = Path("runs/fleet-validate"),
    check: Annotated[
        bool, typer.Option("--check", help="Fail where anything is more than 10% off.")
    ] = False,
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
) -> None:
    """Hold the fleet simulator against real processes on the same shaped link.

    The cloud and the links are real, and so is an edge's process, token loop and wire; its model
    alone is replaced by recorded outcomes after the device profile's times, since this machine
    could not compute for so many. Nothing else should run meanwhile.
    """
    from edge.engine import EdgeEngine  # noqa: PLC0415
    from simulator.fleet import validation, validation_report  # noqa: PLC0415
    from simulator.fleet.measuring_run import run_to_end  # noqa: PLC0415
    from simulator.fleet.profiles import load_device  # noqa: PLC0415
    from simulator.fleet.recorder import encode_prompts  # noqa: PLC0415
    from simulator.fleet.validation_simulated import policy_of  # noqa: PLC0415
    from simulator.link_presets import preset  # noqa: PLC0415
    from simulator.link_spec import change_link  # noqa: PLC0415

    counts = _counts(edges)
    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    if not names:
        raise ConfigurationError("--policies names no policy")
    for name in names:
        policy_of(name)
    ways: list[dict[str, object]] = []
    for rate in (up, down):
        way: dict[str, object] = {} if rtt is None else {"delay_ms": rtt / 2}
        ways.append(way if rate is None else way | {"rate_mbit": rate, "trace": None})
    spec = change_link(preset(link), up=ways[0], down=ways[1])
    profile = load_device(device)
    loaded = opt.load_bundle(bundle)
    if len(profile.segment_seconds) != len(loaded.manifest.exits):
        raise ConfigurationError(
            f"the device {profile.name} has times for {len(profile.segment_seconds)} exits, the "
            f"bundle has {len(loaded.manifest.exits)}"
        )
    _check_writable(out / "validation.json")
    engine = EdgeEngine(loaded, precision)
    try:
        encoded = encode_prompts(engine, _PACKAGED_PROMPTS, prompts, max_tokens)
    finally:
        engine.close()
    asked = validation.Asked(
        edges=counts,
        policies=names,
        prompts=tuple(encoded),
        max_tokens=max_tokens,
        device=profile,
        link=spec,
        cloud_threads=cloud_threads,
        seed=seed,
        rounds=rounds,
    )
    console = Console(stderr=True, highlight=False)
    with _progress(
        console, "the cloud's profile", 2 + rounds * len(names) * len(counts)
    ) as advance:
        found = run_to_end(validation.validate(asked, loaded, precision, advance))
    record, shown = out / "validation.json", out / "validation.md"
    record.write_text(json.dumps(found.as_record(), indent=2) + "\n", encoding="utf-8")
    shown.write_text(validation_report.markdown_table(found.rows) + "\n", encoding="utf-8")
    wide = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    wide.print(validation_report.table(found.rows))
    console.print(f"wrote {record} and {shown}", markup=False, soft_wrap=True)
    if check and not found.within:
        console.print(f"not everything is within {validation_report.GOAL:.0%}", markup=False)
        raise typer.Exit(1)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1 or max(counts) > _MOST_EDGES:
        raise ConfigurationError(
            f"--edges {text!r}: numbers from 1 to {_MOST_EDGES}, with commas between"
        )
    return counts


@contextmanager
def _progress(console: Console, first: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar; what is yielded moves it on by one and says what is under way."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(first, total=total)
        said = ""

        def advance(what: str) -> None:
            nonlocal said
            progress.update(bar, advance=1, description=what)
            if not console.is_terminal and what != said:
                said = what
                console.print(f"{what} done", markup=False)

        yield advance


def _check_writable(path: Path) -> None:
    """See before minutes of work whether there is a folder to write to.

    Raises:
        ConfigurationError: there is none, and none can be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
