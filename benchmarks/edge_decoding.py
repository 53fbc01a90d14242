"""Tokens per second of the edge's engine and of llama.cpp: same weights, same prompt, same cores.

::

    python -m benchmarks.edge_decoding [--precision int8 int4] [--repeats 5] [--tokens 64]

Every engine decodes greedily at full depth.  Their turns are interleaved in one process, so that
a machine that slows down slows them alike, and the median of the turns counts.  Reading the
prompt is timed apart.  llama.cpp runs at whichever thread count up to ``--threads`` is its best;
Tandem runs at ``--threads``.  ``standalone`` is what the edge does alone: the layers up to the
last exit and that exit, for every token.

Memory is measured apart (``benchmarks/memory_use.py``), in a process per engine with the same
prompt, tokens and room.  ``model`` is what loading and decoding adds to a process that has its
libraries and tokenizer (llama.cpp's tokenizer is part of its model); ``process`` is all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.engines import Engine, LlamaCppEngine, TandemEngine, Turn, decode
from benchmarks.memory_use import AVAILABLE, Measured, MemoryUse, memory_use
from edge.exit_model import physical_cores
from prepare.weight_source import obtain_weights
from shared.chat import ChatTemplate, Message
from shared.errors import BundleError, TandemError
from shared.model_bundle import ModelBundle, Precision, cache_folder, default_bundle_folder

PROMPT = "Explain to a curious child, in a few sentences, why the sky is blue."
_CALIBRATION_TOKENS = 24
_WARM_UP_TOKENS = 8
_WORDS_SHOWN = 12


@dataclass(frozen=True)
class Result:
    """Medians over the turns of one engine; ``ratio`` is against llama.cpp."""

    engine: str
    threads: int
    tokens_per_second: float
    slowest: float
    fastest: float
    ratio: float
    prompt_seconds: float
    memory: MemoryUse | None
    text: str


def settle_threads(engine: LlamaCppEngine, prompt: Sequence[int], most: int) -> None:
    """Leave ``engine`` at its fastest thread count in 1 to ``most``."""
    engine.step(engine.begin(prompt))
    speeds: dict[int, list[float]] = {count: [] for count in range(1, most + 1)}
    for _ in range(3):
        for count, measured in speeds.items():
            engine.use_threads(count)
            measured.append(decode(engine, prompt, _CALIBRATION_TOKENS).tokens_per_second)
    engine.use_threads(max(speeds, key=lambda count: statistics.median(speeds[count])))


def take_turns(
    engines: Sequence[Engine], prompt: Sequence[int], tokens: int, repeats: int
) -> dict[str, list[Turn]]:
    """``repeats`` turns of each engine; who begins a round moves on by one each time."""
    for engine in engines:
        decode(engine, prompt, _WARM_UP_TOKENS)
    turns: dict[str, list[Turn]] = {engine.name: [] for engine in engines}
    for number in range(repeats):
        first = number % len(engines)
        for engine in [*engines[first:], *engines[:first]]:
            turns[engine.name].append(decode(engine, prompt, tokens))
    return turns


def run(
    bundle: ModelBundle,
    gguf: Path,
    precisions: Sequence[Precision],
    *,
    repeats: int,
    tokens: int,
    threads: int,
    memory: bool,
) -> list[Result]:
    """Measure llama.cpp and, per precision, the edge at full depth and standalone.

    Raises:
        BundleError: the bundle has no full depth in a precision.
    """
    tokenizer = Tokenizer.from_file(str(bundle.path(bundle.manifest.tokenizer.file)))
    template = ChatTemplate(bundle.manifest.tokenizer.chat_template)
    text = template.render([Message("user", PROMPT)])
    prompt = tokenizer.encode(text, add_special_tokens=False).ids
    room = max(64, len(prompt) + max(tokens, _CALIBRATION_TOKENS) + 2)

    llama = LlamaCppEngine(gguf, threads, room)
    settle_threads(llama, prompt, threads)
    kinds = [(precision, full) for full in (True, False) for precision in precisions]
    engines: list[Engine] = [
        llama,
        *(TandemEngine(bundle.folder, p, threads, room, full=full) for p, full in kinds),
    ]
    turns = take_turns(engines, prompt, tokens, repeats)
    base = statistics.median(turn.tokens_per_second for turn in turns[llama.name])

    def measured(precision: Precision | None, full: bool, threads: int) -> Measured:
        return Measured(
            model=str(bundle.folder if precision else gguf),
            precision=precision,
            full=full,
            tokenizer=str(bundle.path(bundle.manifest.tokenizer.file)) if precision else None,
            threads=threads,
            room=room,
            prompt=tuple(prompt),
            tokens=tokens,
        )

    results = []
    for engine, (precision, full) in zip(engines, [(None, True), *kinds], strict=True):
        speeds = [turn.tokens_per_second for turn in turns[engine.name]]
        speed = statistics.median(speeds)
        words = tokenizer.decode(turns[engine.name][-1].tokens).split()[:_WORDS_SHOWN]
        results.append(
            Result(
                engine=engine.name,
                threads=engine.threads,
                tokens_per_second=speed,
                slowest=min(speeds),
                fastest=max(speeds),
                ratio=speed / base,
                prompt_seconds=statistics.median(t.prompt_seconds for t in turns[engine.name]),
                memory=memory_use(measured(precision, full, engine.threads)) if memory else None,
                text=" ".join(words),
            )
        )
    return results


def show(results: Sequence[Result]) -> None:
    """Print a table, and the first words of each text."""
    table = Table(box=None)
    names = ("engine", "threads", "tokens/s", "range", "ratio", "prompt", "model", "process")
    for name in names:
        table.add_column(name, justify="left" if name == "engine" else "right")
    for result in results:
        table.add_row(
            result.engine,
            str(result.threads),
            f"{result.tokens_per_second:.1f}",
            f"{result.slowest:.0f}–{result.fastest:.0f}",
            f"{result.ratio:.2f}",
            f"{result.prompt_seconds * 1e3:.0f} ms",
            *_memory_cells(result.memory),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("model, process: MiB resident while decoding (and at most)")
    for result in results:
        console.print(f"[bold]{result.engine}[/]", markup=True)
        console.print(f"  {result.text} …", markup=False)


def _memory_cells(use: MemoryUse | None) -> tuple[str, str]:
    if use is None:
        return "?", "?"
    return (
        f"{use.steady - use.before:.0f} ({use.peak - use.before:.0f})",
        f"{use.steady:.0f} ({use.peak:.0f})",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the process's exit code."""
    options = _parse(arguments)
    try:
        import llama_cpp  # noqa: F401, PLC0415
    except ImportError:
        print("llama-cpp-python is missing: pip install '.[bench]'", file=sys.stderr)
        return 2
    try:
        bundle = ModelBundle.load(options.bundle or default_bundle_folder())
        precisions = options.precision or [p for p in ("int8", "int4") if p in bundle.manifest.edge]
        if not precisions:
            raise BundleError("the bundle has no int8 or int4 edge: name one with --precision")
        results = run(
            bundle,
            options.gguf or obtain_weights(cache_folder() / "weights"),
            precisions,
            repeats=options.repeats,
            tokens=options.tokens,
            threads=options.threads or physical_cores(),
            memory=AVAILABLE,
        )
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        show(results)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edge_decoding", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--bundle", type=Path, help="bundle with full depth [the default bundle]")
    parser.add_argument("--gguf", type=Path, help="the weights it was made from [cached file]")
    parser.add_argument(
        "--precision", nargs="+", choices=get_args(Precision), help="[int8 and int4]"
    )
    parser.add_argument("--repeats", type=_count, default=5, help="turns per engine [5]")
    parser.add_argument("--tokens", type=_count, default=64, help="tokens per turn [64]")
    parser.add_argument("--threads", type=_count, help="threads at most [physical cores]")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
