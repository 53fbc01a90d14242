"""``tandem demo``, ``tandem evaluate`` and, from their own modules, ``tandem bench`` and
``tandem simulate``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edge import options as opt
from edge.cloud_channel import CloudEndpoint
from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.plan import Schedule
from shared.errors import ConfigurationError
from simulator import fleet_cli, fleet_measure_cli, link_cli
from simulator.bench import cli as bench_cli

if TYPE_CHECKING:
    from edge.engine import EdgeEngine
    from edge.generation_options import GenerationOptions
    from shared.model_bundle import ModelBundle
    from simulator.evaluation import Evaluation

_DEMO_EPILOG = """
Examples:

    tandem demo

    tandem demo --max-tokens 32 --threshold 0.9 "Tell me a joke."
"""
_EVALUATE_EPILOG = """
Examples:

    tandem evaluate --prompts prompts.jsonl --limit 10 --max-tokens 64

    tandem evaluate --prompts prompts.jsonl --target-agreement 0.95

    tandem evaluate --prompts prompts.jsonl --mode standalone --json
"""


def register(app: typer.Typer) -> None:
    """Add the commands that run edge and cloud together, and what lies between them."""
    app.command(epilog=_DEMO_EPILOG)(demo)
    app.command(epilog=_EVALUATE_EPILOG)(evaluate)
    bench_cli.register(app)
    link_cli.register(app)
    fleet_cli.register(link_cli.app)
    fleet_measure_cli.register(link_cli.app)


def demo(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts to run. (default: three of its own)")
    ] = None,
    threshold: opt.Threshold = None,
    target_agreement: opt.TargetAgreement = None,
    max_tokens: opt.MaxTokens = 48,
    context: opt.Context = ContextCodec.FP16,
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
) -> None:
    """Run a cloud and an edge on this machine and talk to them in all three modes."""
    from edge.generation_options import GenerationOptions  # noqa: PLC0415
    from simulator.demo import PROMPTS, closing_table, run_demo  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    loaded = opt.load_bundle(bundle)
    options = GenerationOptions(
        Mode.COLLABORATIVE,
        threshold=opt.choose_threshold(loaded, threshold, target_agreement, Mode.COLLABORATIVE),
        max_tokens=max_tokens,
        context=context,
    )

    async def run() -> None:
        console.print("starting the cloud on loopback …")
        async with _engine(loaded, precision, None, None) as engine:
            assert engine.endpoint is not None
            console.print(f"cloud at {engine.endpoint.address}; this process is the edge")
            await asyncio.to_thread(engine.load_model)
            outcomes = await run_demo(engine, options, prompts or PROMPTS, console)
            console.print(closing_table(engine, outcomes))

    asyncio.run(run())


def evaluate(
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", help="JSONL; each line holds prompt, or turns (the first is asked)."
        ),
    ],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First so many only.")] = None,
    max_tokens: opt.MaxTokens = 128,
    threshold: opt.Threshold = None,
    target_agreement: opt.TargetAgreement = None,
    mode: Annotated[Mode, typer.Option("--mode", help="Who decides.")] = Mode.COLLABORATIVE,
    context: opt.AutoContext = None,
    schedule: opt.ScheduleOption = Schedule.OPTIMISTIC,
    window: opt.Window = None,
    burst: opt.Burst = 0,
    lookahead: opt.LookaheadTokens = None,
    verified: opt.Verified = False,
    no_exits: opt.NoExits = False,
    cloud: opt.Cloud = None,
    token: opt.Token = None,
    cloud_ca: opt.CloudCa = None,
    client_cert: opt.Certificate = None,
    client_key: opt.Key = None,
    plaintext_token: opt.PlaintextToken = False,
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    threads: opt.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare Tandem's text with the full model's own greedy continuation.

    Without --cloud, a cloud is started on this machine.
    """
    from edge.generation_options import GenerationOptions  # noqa: PLC0415

    if mode is Mode.AUTO:
        raise ConfigurationError(
            "auto mode has no text of its own to evaluate: compare it on links with `tandem bench "
            "--contenders cloud-only,auto-latency`"
        )
    opt.check_schedule_options(
        mode, threshold, schedule, window, burst, verified, lookahead, use_exits=not no_exits
    )
    loaded = opt.load_bundle(bundle)
    options = GenerationOptions(
        mode,
        threshold=opt.choose_threshold(
            loaded, threshold, target_agreement, mode, use_exits=not no_exits
        ),
        max_tokens=max_tokens,
        context=opt.choose_context(context, verified=verified),
        window=opt.choose_window(schedule, window),
        burst=burst,
        lookahead=lookahead,
        verified=verified,
        use_exits=not no_exits,
    )
    endpoint = opt.make_endpoint(cloud, token, cloud_ca, client_cert, client_key, plaintext_token)
    report = asyncio.run(_evaluate(loaded, precision, threads, endpoint, options, prompts, limit))
    if as_json:
        print(json.dumps(asdict(report)))
        return
    for name, value in asdict(report).items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        print(f"{name:<26} {shown}")


async def _evaluate(
    bundle: ModelBundle,
    precision: opt.PrecisionName,
    threads: int | None,
    endpoint: CloudEndpoint | None,
    options: GenerationOptions,
    path: Path,
    limit: int | None,
) -> Evaluation:
    from rich.progress import Progress  # noqa: PLC0415

    from shared.chat import Message  # noqa: PLC0415
    from shared.prompt_file import read_exchanges  # noqa: PLC0415
    from simulator.evaluation import evaluate as run  # noqa: PLC0415

    exchanges = read_exchanges(path, limit)
    async with _engine(bundle, precision, threads, endpoint) as engine:
        encoded = [engine.encode_chat([Message("user", e.prompt)]) for e in exchanges]
        _check_room(encoded, options, bundle)
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("prompts", total=len(encoded))
            return await run(engine, encoded, options, lambda: progress.advance(task))


def _check_room(
    encoded: Sequence[Sequence[int]], options: GenerationOptions, bundle: ModelBundle
) -> None:
    """Say at once, not after an hour, that a prompt is too long."""
    room = bundle.manifest.architecture.max_positions - options.max_tokens
    for number, ids in enumerate(encoded, start=1):
        if len(ids) > room:
            raise ConfigurationError(f"prompt {number} has {len(ids)} tokens; {room} fit")


@asynccontextmanager
async def _engine(
    bundle: ModelBundle,
    precision: opt.PrecisionName,
    threads: int | None,
    endpoint: CloudEndpoint | None,
) -> AsyncIterator[EdgeEngine]:
    """An edge and its cloud: the one at ``endpoint``, or one that is started here."""
    from edge.engine import EdgeEngine  # noqa: PLC0415
    from simulator.local_cloud import LocalCloud  # noqa: PLC0415

    if endpoint is not None:
        engine = EdgeEngine(bundle, precision, threads=threads, endpoint=endpoint)
        try:
            yield engine
        finally:
            engine.close()
        return
    async with (
        LocalCloud(bundle.folder) as cloud,
        _engine(bundle, precision, threads, CloudEndpoint(cloud.address)) as engine,
    ):
        yield engine
