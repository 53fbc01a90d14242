"""How long the cloud's passes take: one call of attention for all sessions against one for each,
and OpenMP's threads that spin for long or short, beside other programs or alone.

    python -m benchmarks.cloud_pass [--sessions 1 8 32] [--rows 1 4 8] [--past 300] [--rounds 21]
    python -m benchmarks.cloud_pass --sessions 8 --spins 1000 30000 300000 --busy 0 2

A pass is so many new rows for each session, through the layers above the cut.  Both kinds of
attention take turns in one process, and medians are of so many passes each.  With ``--spins`` a
row of each session is run, and there is a process for each value of GOMP_SPINCOUNT (300000 is
OpenMP's own default where there are as many cores as threads), beside so many others that do
nothing but compute.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from cloud.deep_model import Chunk, DeepModel
from shared.model_bundle import ModelBundle, default_bundle_folder
from simulator.bench.environment import look_around

_BUSY = "while True: pass"


def chunks_of(model: DeepModel, sessions: int, rows: int, past: int) -> list[Chunk]:
    """New rows for each of so many sessions, with ``past`` positions behind them."""
    chunks = []
    for _ in range(sessions):
        cache = model.new_cache(model.cut)
        cache.grow(past + rows)
        cache.data.normal_()
        cache.length = past
        new = cache.data.new_empty((rows, model.architecture.hidden_size)).normal_()
        chunks.append(Chunk(cache, new, (rows - 1,)))
    return chunks


def pass_seconds(model: DeepModel, chunks: Sequence[Chunk], past: int) -> float:
    """One pass; the caches are as before."""
    for chunk in chunks:
        chunk.cache.length = past
    began = time.perf_counter()
    model.forward(chunks)
    return time.perf_counter() - began


def median_milliseconds(taken: Sequence[float]) -> float:
    """Of passes of so many seconds, the first of which warmed up."""
    return 1e3 * statistics.median(taken[1:])


def compare_attention(
    model: DeepModel, sessions: int, rows: int, past: int, rounds: int
) -> list[float]:
    """Median milliseconds of a pass with a call for each session, and with one for all."""
    chunks = chunks_of(model, sessions, rows, past)
    usual = model.few_rows
    kernel_up_to = (0, rows)
    taken: list[list[float]] = [[], []]
    try:
        for _ in range(rounds + 1):  # the first warms up
            for few, seconds in zip(kernel_up_to, taken, strict=True):
                model.few_rows = few
                seconds.append(pass_seconds(model, chunks, past))
    finally:
        model.few_rows = usual
    return [median_milliseconds(seconds) for seconds in taken]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def spins(values: Sequence[int], beside: Sequence[int], options: argparse.Namespace) -> Table:
    """A row for each number of busy neighbours, a column for each GOMP_SPINCOUNT."""
    table = Table("beside", *(f"GOMP_SPINCOUNT={value}, ms" for value in values))
    command = [sys.executable, "-m", "benchmarks.cloud_pass", "--one", "--past", str(options.past)]
    command += ["--rounds", str(options.rounds), "--sessions", str(options.sessions[-1])]
    for processes in beside:
        cells = []
        for value in values:
            with busy(processes):
                done = subprocess.run(
                    command,
                    env=os.environ | {"GOMP_SPINCOUNT": str(value)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            cells.append(done.stdout.strip())
        table.add_row(f"{processes} busy", *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--past", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--spins", type=int, nargs="+", help="of the last of --sessions")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundle = ModelBundle.load(default_bundle_folder())
    if not options.one:
        around = look_around(bundle)
        print(f"{around.date}, {around.machine}, code {around.code}")
    if options.spins:
        Console().print(spins(options.spins, options.busy, options))
        return
    model = DeepModel.load(bundle)
    if options.one:
        chunks = chunks_of(model, options.sessions[-1], 1, options.past)
        taken = [pass_seconds(model, chunks, options.past) for _ in range(options.rounds + 1)]
        print(f"{median_milliseconds(taken):.1f}")
        return
    table = Table("sessions", "rows of each", "a call for each, ms", "one call, ms", "ratio")
    for sessions, rows in itertools.product(options.sessions, options.rows):
        each, one = compare_attention(model, sessions, rows, options.past, options.rounds)
        table.add_row(str(sessions), str(rows), f"{each:.1f}", f"{one:.1f}", f"{one / each:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
