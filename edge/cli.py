"""``tandem generate``: one prompt, one answer, coloured by where each word came from."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING, Annotated

import typer

from edge import chat_cli, doctor_cli, fleet_cli, serve_cli
from edge import options as opt
from edge.controller import Aim
from edge.generation import Mode
from edge.plan import Schedule
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from edge.engine import EdgeEngine
    from edge.generation_options import GenerationOptions
    from edge.generation_result import GenerationResult

_EPILOG = """
Examples:

    tandem generate "Why is the sky blue?"

    tandem generate "Why is the sky blue?" --cloud localhost:7420 --threshold 0.9

    tandem generate "Why is the sky blue?" --cloud localhost:7420 --target-agreement 0.97

    tandem generate "Why is the sky blue?" --cloud localhost:7420 --verified

    tandem generate "Why is the sky blue?" --cloud localhost:7420 --mode auto --aim latency

    tandem generate "Name three rivers." --cloud localhost:7420 --mode cloud-only --json
"""


def register(app: typer.Typer) -> None:
    """Add the edge's commands to ``tandem``."""
    app.command(epilog=_EPILOG)(generate)
    chat_cli.register(app)
    doctor_cli.register(app)
    serve_cli.register(app)
    fleet_cli.register(app)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; '-' reads standard input.")],
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode",
            help="Who decides. (default: collaborative with --cloud, else standalone)",
            show_default=False,
        ),
    ] = None,
    threshold: opt.Threshold = None,
    target_agreement: opt.TargetAgreement = None,
    max_tokens: opt.MaxTokens = 256,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    seed: opt.Seed = None,
    cloud: opt.Cloud = None,
    context: opt.AutoContext = None,
    schedule: opt.ScheduleOption = Schedule.OPTIMISTIC,
    window: opt.Window = None,
    burst: opt.Burst = 0,
    lookahead: opt.LookaheadTokens = None,
    verified: opt.Verified = False,
    aim: opt.AimOption = Aim.LATENCY,
    private: opt.Private = False,
    cloud_token_price: opt.CloudTokenPrice = None,
    no_exits: opt.NoExits = False,
    system: Annotated[
        str | None, typer.Option("--system", help="System message, instead of the model's own.")
    ] = None,
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    threads: opt.Threads = None,
    token: opt.Token = None,
    cloud_ca: opt.CloudCa = None,
    client_cert: opt.Certificate = None,
    client_key: opt.Key = None,
    plaintext_token: opt.PlaintextToken = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Answer PROMPT on this device, asking the cloud for the words it is unsure of."""
    from edge.engine import EdgeEngine  # noqa: PLC0415
    from edge.generation_options import GenerationOptions  # noqa: PLC0415
    from shared.chat import Message  # noqa: PLC0415

    endpoint = opt.make_endpoint(cloud, token, cloud_ca, client_cert, client_key, plaintext_token)
    loaded = opt.load_bundle(bundle)
    chosen, sampling = opt.choose_mode(mode, cloud), opt.make_sampling(temperature, top_p, seed)
    opt.check_schedule_options(
        chosen, threshold, schedule, window, burst, verified, lookahead, use_exits=not no_exits
    )
    auto = chosen is Mode.AUTO
    options = GenerationOptions(
        mode=chosen,
        threshold=opt.choose_threshold(
            loaded,
            threshold,
            None if auto else target_agreement,
            chosen,
            use_exits=not no_exits,
            greedy=temperature == 0,
        ),
        max_tokens=max_tokens,
        sampling=sampling,
        context=opt.choose_context(context, verified=verified),
        window=opt.choose_window(schedule, window),
        burst=burst,
        lookahead=lookahead,
        verified=verified,
        wishes=opt.make_wishes(
            chosen,
            aim,
            target_agreement,
            private,
            cloud_token_price,
            context,
            greedy=temperature == 0,
        ),
        use_exits=not no_exits,
    )
    if auto:
        notices = _notices()
    elif target_agreement is not None:
        print(
            f"threshold {options.threshold:g} for agreement {target_agreement:g}", file=sys.stderr
        )
    engine = EdgeEngine(loaded, precision, threads=threads, endpoint=endpoint)
    text = _prompt_text(prompt)
    messages = [Message("user", text)]
    if system is not None:
        messages.insert(0, Message("system", system))
    try:
        result = asyncio.run(_answer(engine, engine.encode_chat(messages), options, not as_json))
    finally:
        engine.close()
        if auto:
            notices.flush()
    if as_json:
        print(json.dumps(result.as_record(), ensure_ascii=False))


def _notices() -> MemoryHandler:
    """What auto mode has to say, kept until the answer's own lines are out."""
    target = logging.StreamHandler(sys.stderr)
    handler = MemoryHandler(1000, logging.CRITICAL, target, flushOnClose=False)
    log = logging.getLogger("tandem.edge")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return handler


def _prompt_text(prompt: str) -> str:
    """The argument or, for ``-``, standard input; what is not UTF-8 or empty is refused."""
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
        text.encode("utf-8")
    except UnicodeError:
        raise ConfigurationError("the prompt is not UTF-8 text") from None
    if not text.strip():
        raise ConfigurationError("the prompt is empty")
    return text


async def _answer(
    engine: EdgeEngine, prompt_ids: tuple[int, ...], options: GenerationOptions, show: bool
) -> GenerationResult:
    from edge.token_display import show_answer  # noqa: PLC0415

    if not show:
        return await engine.generate(prompt_ids, options)
    return await show_answer(engine, prompt_ids, options)
