"""Tokens per second of the edge's engine and of llama.cpp: same weights, same prompt, same cores.

::

    python -m benchmarks.edge_decoding [--precision int8 int4] [--repeats 5] [--tokens 64]

Every engine decodes greedily at full depth.  Their turns are interleaved in one process, so that
a machine that slows down slows them alike, and the median of the turns counts.  Reading the
prompt is timed apart.  llama.cpp runs at whichever thread count up to ``--threads`` is its best;
Tandem runs at ``--threads``.  ``standalone`` is what the edge does alone: the layers up to the
last exit and that exit, for every token.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from edge.exit_model import ExitModel, physical_cores
from prepare.weight_source import obtain_weights
from shared.chat import ChatTemplate, Message
from shared.errors import BundleError, ConfigurationError, TandemError
from shared.model_bundle import ModelBundle, Precision, cache_folder, default_bundle_folder

PROMPT = "Explain to a curious child, in a few sentences, why the sky is blue."
_CALIBRATION_TOKENS = 24
_WARM_UP_TOKENS = 8
_WORDS_SHOWN = 12


class Engine(Protocol):
    """Something that decodes greedily; ``begin`` forgets what came before."""

    name: str
    threads: int

    def begin(self, prompt: Sequence[int]) -> int:
        """Read the prompt; return the first token."""

    def step(self, token: int) -> int:
        """Append ``token``; return the next one."""


class TandemEngine:
    """The edge's graphs: at full depth, or up to the last exit and read there."""

    def __init__(
        self, bundle: ModelBundle, precision: Precision, threads: int, room: int, *, full: bool
    ) -> None:
        self.name = f"tandem {precision}" + ("" if full else " standalone")
        self.threads = threads
        self._model = ExitModel(bundle, precision, threads=threads, full_depth=full)
        self._state = self._model.open(room)
        self._full = full
        self._exit = len(self._model.exits) - 1
        self._ids = None if full else self._model.vocabulary_ids(self._exit)

    def begin(self, prompt: Sequence[int]) -> int:
        self._state.truncate(0)
        return self._next(prompt)

    def step(self, token: int) -> int:
        return self._next([token])

    def _next(self, tokens: Sequence[int]) -> int:
        self._state.extend(tokens)
        if self._full:
            return int(self._state.read_full().argmax())
        row = int(self._state.read_exit(self._exit).argmax())
        return row if self._ids is None else int(self._ids[row])


class LlamaCppEngine:
    """llama.cpp through its own C functions: no sampler chain, no copies of the logits."""

    name = "llama.cpp"

    def __init__(self, gguf: Path, threads: int, room: int) -> None:
        import llama_cpp  # noqa: PLC0415  the benchmark says what to install where it is missing

        self._llama = llama_cpp
        self.threads = threads
        self._model = llama_cpp.Llama(
            str(gguf), n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self._context = self._model.ctx
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = self._model.n_vocab()

    def use_threads(self, threads: int) -> None:
        self.threads = threads
        self._llama.llama_set_n_threads(self._context, threads, threads)

    def begin(self, prompt: Sequence[int]) -> int:
        self._llama.llama_memory_clear(self._memory, True)
        return self._next(prompt)

    def step(self, token: int) -> int:
        return self._next([token])

    def _next(self, tokens: Sequence[int]) -> int:
        array = (self._llama.llama_token * len(tokens))(*tokens)
        batch = self._llama.llama_batch_get_one(array, len(tokens))
        if code := self._llama.llama_decode(self._context, batch):
            raise ConfigurationError(f"llama.cpp could not decode (code {code})")
        logits = self._llama.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


@dataclass(frozen=True)
class Turn:
    """One decoding: seconds for the prompt, tokens per second after it, and the tokens."""

    prompt_seconds: float
    tokens_per_second: float
    tokens: tuple[int, ...]


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
    resident_mib: float | None
    text: str


def decode(engine: Engine, prompt: Sequence[int], tokens: int) -> Turn:
    """Greedy tokens after ``prompt``; the end-of-text token does not stop it."""
    start = time.perf_counter()
    found = [engine.begin(prompt)]
    begun = time.perf_counter()
    for _ in range(tokens):
        found.append(engine.step(found[-1]))
    return Turn(begun - start, tokens / (time.perf_counter() - begun), tuple(found))


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


def resident_growth(make: Callable[[], Engine]) -> float:
    """MiB that an engine adds to a process of its own, loaded and decoding."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_growth_here, make).result()


def _growth_here(make: Callable[[], Engine]) -> float:
    before = _resident_mib()
    engine = make()
    decode(engine, range(1, 33), _WARM_UP_TOKENS)
    return _resident_mib() - before


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


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
    recipes: list[Callable[[], Engine]] = [
        partial(TandemEngine, bundle, precision, threads, room, full=full)
        for full in (True, False)
        for precision in precisions
    ]
    engines: list[Engine] = [llama, *(make() for make in recipes)]
    recipes.insert(0, partial(LlamaCppEngine, gguf, llama.threads, room))
    turns = take_turns(engines, prompt, tokens, repeats)
    base = statistics.median(turn.tokens_per_second for turn in turns[llama.name])

    results = []
    for engine, make in zip(engines, recipes, strict=True):
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
                resident_mib=resident_growth(make) if memory else None,
                text=" ".join(words),
            )
        )
    return results


def show(results: Sequence[Result]) -> None:
    """Print a table, and the first words of each text."""
    table = Table(box=None)
    for name in ("engine", "threads", "tokens/s", "range", "ratio", "prompt", "memory"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for result in results:
        memory = result.resident_mib
        table.add_row(
            result.engine,
            str(result.threads),
            f"{result.tokens_per_second:.1f}",
            f"{result.slowest:.0f}–{result.fastest:.0f}",
            f"{result.ratio:.2f}",
            f"{result.prompt_seconds * 1e3:.0f} ms",
            "?" if memory is None else f"{memory:.0f} MiB",
        )
    console = Console(highlight=False)
    console.print(table)
    for result in results:
        console.print(f"[bold]{result.engine}[/]", markup=True)
        console.print(f"  {result.text} …", markup=False)


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
            memory=Path("/proc/self/statm").exists(),
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
