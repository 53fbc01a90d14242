"""The ``tandem`` command: each part brings its own sub-commands through an entry point.

Parts register under the group ``tandem.commands`` in ``pyproject.toml``, so this module imports
none of them; a part whose extra is not installed says so when it is called.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer
from rich.console import Console

from shared.errors import TandemError
from shared.terminal_text import harmless

_GROUP = "tandem.commands"
_EXTRAS = {
    "edge": (
        "aiomqtt",
        "grpc",
        "jinja2",
        "onnxruntime",
        "prometheus_client",
        "starlette",
        "tokenizers",
        "uvicorn",
    ),
    "cloud": ("grpc", "grpc_health", "grpc_reflection", "numba", "prometheus_client", "torch"),
    "ray": ("ray",),
    "prepare": ("gguf", "matplotlib", "onnx", "scipy"),
    "simulator": ("simpy",),
}
# where several bring what is missing, or too little beside it
_EXTRA_OF = dict.fromkeys(("bench", "demo", "evaluate", "simulate"), "simulator")
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def build_app() -> typer.Typer:
    """The command with everything that the installed parts register."""
    app = typer.Typer(
        name="tandem",
        help="Edge-cloud collaborative LLM inference: a small device answers what it is sure of "
        "and asks a bigger machine for the rest.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        _register(app, point)
    return app


def _say_version(on: bool) -> None:
    if on:
        print(f"tandem {version('tandem')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_say_version),
    ] = False,
) -> None:
    """Options of ``tandem`` itself."""


def _register(app: typer.Typer, point: EntryPoint) -> None:
    """Let a part add its commands; their heavy imports wait until they run."""
    point.load()(app)


def main() -> None:
    """Run the command; typed errors become one line and their exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    # gRPC's own log would run through the text; what it says arrives as typed errors
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        build_app()()
    except TandemError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = _extra_with(missing, sys.argv[1:])
        if extra is None:
            raise
        errors.print(
            f"[bold red]error:[/] this command needs {missing}: install Tandem with its {extra} "
            f"extra, in its folder: pip install '.\\[{extra}]'"
        )
        sys.exit(2)
    except OSError as error:  # a disk that is full, a folder that may not be written
        errors.print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("interrupted")
        sys.exit(_INTERRUPTED)


def _extra_with(package: str, arguments: Sequence[str]) -> str | None:
    """The extra that brings ``package``: of several the one that the command is named for."""
    extras = [name for name, packages in _EXTRAS.items() if package in packages]
    if not extras:
        return None
    command = arguments[0] if arguments else ""
    return _EXTRA_OF.get(command, command if command in extras else extras[0])


def _plain(text: str) -> str:
    return harmless(text).replace("[", "\\[")


if __name__ == "__main__":
    main()
