"""``tandem chat``: a conversation in the terminal, coloured by where each word came from."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge import options as opt
from edge.controller import Aim
from edge.generation import Mode

if TYPE_CHECKING:
    from edge.chat import Chat

_EPILOG = """
Examples:

    tandem chat

    tandem chat --cloud localhost:7420

    tandem chat --cloud localhost:7420 --mode collaborative --target-agreement 0.97

    printf 'Name a river.\\nWhere does it begin?\\n' | tandem chat
"""


def register(app: typer.Typer) -> None:
    """Add ``tandem chat``."""
    app.command(epilog=_EPILOG)(chat)


def chat(
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode",
            help="Who decides. (default: auto with --cloud, collaborative with a --threshold too, "
            "else standalone)",
            show_default=False,
        ),
    ] = None,
    threshold: opt.Threshold = None,
    target_agreement: opt.TargetAgreement = None,
    aim: opt.AimOption = Aim.LATENCY,
    private: opt.Private = False,
    max_tokens: opt.MaxTokens = 1024,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    seed: opt.Seed = None,
    cloud: opt.Cloud = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System message, instead of the model's own.")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            dir_okay=False,
            help="Keep the lines that you type in this file. (default: while the chat lasts)",
            show_default=False,
        ),
    ] = None,
    bundle: opt.Bundle = None,
    precision: opt.Precision = opt.DEFAULT_PRECISION,
    threads: opt.Threads = None,
    token: opt.Token = None,
    cloud_ca: opt.CloudCa = None,
    client_cert: opt.Certificate = None,
    client_key: opt.Key = None,
    plaintext_token: opt.PlaintextToken = False,
) -> None:
    """Talk with the model on this device, which asks the cloud for the words it is unsure of.

    Standard input may be a pipe: one line is one question, and the answers alone go to standard
    output.
    """
    from edge.chat import Chat, checked_target  # noqa: PLC0415
    from edge.chat_conversation import Conversation  # noqa: PLC0415
    from edge.chat_display import ChatDisplay, is_conversation  # noqa: PLC0415
    from edge.controls import Controls  # noqa: PLC0415
    from edge.service import EdgeService  # noqa: PLC0415

    endpoint = opt.make_endpoint(cloud, token, cloud_ca, client_cert, client_key, plaintext_token)
    opt.make_sampling(temperature, top_p, seed)  # what is wrong is told before anything is loaded
    controls = Controls(
        mode or _fitting_mode(cloud, threshold),
        threshold,
        checked_target(target_agreement, greedy=temperature == 0),
        aim,
        private,
        max_tokens,
    )
    service = EdgeService(
        opt.load_bundle(bundle), controls, precision=precision, threads=threads, endpoint=endpoint
    )
    talk = Chat(
        service,
        ChatDisplay(),
        Conversation(system),
        lambda: opt.make_sampling(temperature, top_p, seed),
    )
    _converse(talk, history, interactive=is_conversation())


def _fitting_mode(cloud: str | None, threshold: float | None) -> Mode:
    if not cloud:
        return Mode.STANDALONE
    return Mode.AUTO if threshold is None else Mode.COLLABORATIVE


def _converse(talk: Chat, history: Path | None, *, interactive: bool) -> None:
    from edge.chat_display import Notices  # noqa: PLC0415
    from edge.chat_input import PipedLines, TypedLines  # noqa: PLC0415
    from edge.chat_loop import LoopThread  # noqa: PLC0415
    from edge.chat_terminal import ChatTerminal  # noqa: PLC0415

    service = talk.service
    log, notices = logging.getLogger("tandem.edge"), Notices()
    log.setLevel(logging.INFO)
    log.addHandler(notices)
    typed = TypedLines(history) if interactive else None
    try:
        with LoopThread() as loop:
            stack = AsyncExitStack()
            loop.run(stack.enter_async_context(service))
            if interactive:
                manifest, mode = service.engine.bundle.manifest, service.controls.mode
                origins = [exit_.name for exit_ in manifest.exits]
                origins += ["cloud"] if mode is not Mode.STANDALONE else []
                talk.display.greet(manifest.name, mode.value, origins)
            terminal = ChatTerminal(
                loop, talk, typed or PipedLines(), notices, interactive=interactive
            )
            try:
                terminal.converse()
            finally:
                loop.run(stack.aclose())
    finally:
        log.removeHandler(notices)
        if typed is not None:
            typed.close()
