"""How exactly the shaped proxy does what it is told: configured against measured.

::

    python -m benchmarks.shaped_link [--quick] [--realtime] [--kernel] [--json] [--strict]

The proxy is a process of its own (``tandem simulate link``), steered over its control API; both
ends of the measurement are this process.  *Delay* is the median of echoes of 32 bytes; what the
same echo takes without a proxy is subtracted.  *By sleep* is the error of a far end that sleeps the
round trip itself, with no proxy between: what the load of the machine costs anyone.  Where that is
much, ``--realtime`` (root) gives proxy and measurement real-time priority.  *Rate* is the
payload between the first and the last byte of a bulk transfer.  ``--kernel`` (root) adds the same
transfer through the kernel's tbf, and the model set to count frames as tbf does.

The promise is an added delay within 1 ms at the median and a rate within 3% up to 200 Mbit/s; each
row of the model says whether it was kept, and ``--strict`` exits with 1 when one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.kernel_shaper import (
    FRAME_BYTES,
    FRAME_HEADER_BYTES,
    available,
    shaped_by_kernel,
)
from benchmarks.link_probe import download_mbit, far_end, round_trips, upload_mbit
from shared.errors import ConfigurationError, TandemError
from simulator.packet_trace import invent_trace
from simulator.precise_loop import go_first

ROUND_TRIPS_MS = (0.0, 1.0, 5.0, 20.0, 50.0, 100.0, 300.0, 600.0)
RATES_MBIT = (0.5, 2.0, 10.0, 50.0, 100.0, 200.0)
TRACE_RATES_MBIT = (5.0, 50.0)
KERNEL_RATES_MBIT = (2.0, 20.0, 100.0)
_QUEUE_BYTES = 256_000
_CONFIRM_SECONDS = 10.0
_PROMISED_MS = 1.0
_PROMISED_PERCENT = 3.0
_PROMISED_UP_TO_MBIT = 200.0


@dataclass(frozen=True)
class Row:
    """One setting: configured, measured, and the error in ``unit`` (ms added, or % of the rate).

    ``bound`` is what the error was promised to be within, either way; ``None`` is no promise.
    """

    what: str
    configured: float
    measured: float
    error: float
    unit: str
    bound: float | None = None
    error_by_sleep: float | None = None
    processor_share: float | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the promise was kept; ``None`` where there is none."""
        return None if self.bound is None else abs(self.error) <= self.bound


class Proxy:
    """A running ``tandem simulate link`` and its control API."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready.startswith("listening on "):
            raise ConfigurationError("the proxy did not start: what it says is above")
        words = ready.replace(",", " ").split()
        self.address = words[2]
        self._control = words[-1]
        self._pid = process.pid

    def set_link(self, fields: Mapping[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self._control}/link", json.dumps(fields).encode(), method="PUT"
        )
        with urllib.request.urlopen(request, timeout=_CONFIRM_SECONDS) as reply:
            reply.read()

    def processor_seconds(self) -> float:
        with open(f"/proc/{self._pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_proxy(target: str, *options: str) -> Iterator[Proxy]:
    """A proxy process without limits, to be steered; ``options`` are more of its command line."""
    command = [sys.executable, "-m", "shared.cli", "simulate", "link"]
    command += ["--listen", "127.0.0.1:0", "--to", target, "--control", "127.0.0.1:0", *options]
    environment = os.environ | {"COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Proxy(process)
        finally:
            process.terminate()


def link(rtt_ms: float = 0.0, **way: Any) -> dict[str, Any]:
    """Both ways alike."""
    fields = {"delay_ms": rtt_ms / 2, "queue_bytes": _QUEUE_BYTES, **way}
    return {"up": fields, "down": fields}


def delay_rows(proxy: Proxy, target: str, seconds: float) -> Iterator[Row]:
    """Added round trip, setting by setting; ``seconds`` bounds each."""
    direct = statistics.median(round_trips(target, 300)) * 1e3
    for rtt in ROUND_TRIPS_MS:
        proxy.set_link(link(rtt))
        count = max(5, min(300, int(seconds * 1e3 / max(rtt, 1))))
        measured = statistics.median(round_trips(proxy.address, count)) * 1e3 - direct
        slept = statistics.median(round_trips(target, count, sleep_seconds=rtt / 1e3)) * 1e3
        yield Row(
            "round trip, ms",
            rtt,
            measured,
            measured - rtt,
            "ms",
            bound=_PROMISED_MS,
            error_by_sleep=slept - direct - rtt,
        )


def rate_rows(proxy: Proxy, seconds: float) -> Iterator[Row]:
    """Goodput each way, setting by setting, each for about ``seconds``."""
    for rate in RATES_MBIT:
        for name, measure in (("up", upload_mbit), ("down", download_mbit)):
            proxy.set_link(link(20.0, rate_mbit=rate))
            before = proxy.processor_seconds()
            size = _size(rate, seconds)
            measured = measure(proxy.address, size)
            share = (proxy.processor_seconds() - before) / (size * 8e-6 / measured)
            yield _rate_row(f"rate {name}, Mbit/s", rate, measured, share)


def trace_rows(proxy: Proxy, seconds: float) -> Iterator[Row]:
    """A round of a wandering trace takes as long as the trace is."""
    length = max(1, round(seconds))
    for rate in TRACE_RATES_MBIT:
        trace = invent_trace(mean_mbit=rate, spread=0.5, memory_s=1, seconds=length, seed=1)
        proxy.set_link(link(20.0, trace=trace.model_dump()))
        measured = upload_mbit(proxy.address, _size(rate, length))
        yield _rate_row("trace up, mean Mbit/s", trace.mean_mbit, measured)


def kernel_rows(proxy: Proxy, seconds: float) -> Iterator[Row]:
    """The kernel's tbf, and the model counting frames like it, against payload by arithmetic.

    Raises:
        ConfigurationError: the kernel lacks what it takes, or does not let us.
    """
    for rate in KERNEL_RATES_MBIT:
        payload = rate * (FRAME_BYTES - FRAME_HEADER_BYTES) / FRAME_BYTES
        measured = _through_kernel(rate, _size(rate, seconds))
        yield _rate_row(f"tbf, frames at {rate:g}", payload, measured, promised=False)
        proxy.set_link(link(rate_mbit=rate, mtu_bytes=FRAME_BYTES, header_bytes=FRAME_HEADER_BYTES))
        measured = upload_mbit(proxy.address, _size(rate, seconds))
        yield _rate_row(f"model, frames at {rate:g}", payload, measured)


def _through_kernel(rate_mbit: float, size: int) -> float:
    try:
        with shaped_by_kernel(rate_mbit, _QUEUE_BYTES) as address:
            return upload_mbit(address, size)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip().replace("\n", "; ")
        raise ConfigurationError(f"--kernel: {shlex.join(error.cmd)} failed: {said}") from None


def _size(rate_mbit: float, seconds: float) -> int:
    return max(8, round(rate_mbit * 1e6 / 8 * seconds / 65_536)) * 65_536


def _rate_row(
    what: str,
    rate: float,
    measured: float,
    share: float | None = None,
    *,
    promised: bool = True,
) -> Row:
    error = (measured / rate - 1) * 100
    bound = _PROMISED_PERCENT if promised and rate <= _PROMISED_UP_TO_MBIT else None
    return Row(what, rate, measured, error, "%", bound=bound, processor_share=share)


def run(seconds: float, *, realtime: bool, kernel: bool) -> list[Row]:
    """All measurements, each for about ``seconds``.

    Raises:
        ConfigurationError: real-time priority or the kernel's shaping is refused.
    """
    if realtime:
        go_first()
    with far_end() as target, running_proxy(target, *["--realtime"] * realtime) as proxy:
        rows = [*delay_rows(proxy, target, seconds), *rate_rows(proxy, seconds)]
        rows += trace_rows(proxy, seconds)
        if kernel:
            rows += kernel_rows(proxy, seconds)
    return rows


def show(rows: Sequence[Row]) -> Table:
    """A table of all rows."""
    table = Table(box=None, pad_edge=False)
    table.add_column("what")
    for heading in ("set", "measured", "error", "promised", "by sleep", "core"):
        table.add_column(heading, justify="right")
    for row in rows:
        late = "" if row.error_by_sleep is None else f"{row.error_by_sleep:+.2f} ms"
        share = "" if row.processor_share is None else f"{row.processor_share:.0%}"
        table.add_row(
            row.what,
            f"{row.configured:.2f}",
            f"{row.measured:.2f}",
            f"{row.error:+.2f} {row.unit}",
            "" if row.bound is None else f"±{row.bound:g} {'kept' if row.kept else 'BROKEN'}",
            late,
            share,
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the process's exit code."""
    options = _parse(arguments)
    if options.kernel and not available():
        print("--kernel needs root, ip and tc", file=sys.stderr)
        return 2
    seconds = 1.5 if options.quick else 6.0
    load = os.getloadavg()[0]
    try:
        rows = run(seconds, realtime=options.realtime, kernel=options.kernel)
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    missed = [row for row in rows if row.kept is False]
    if options.json:
        found = [asdict(row) | {"kept": row.kept} for row in rows]
        print(json.dumps({"load": load, "kept": not missed, "rows": found}, indent=2))
    else:
        console = Console(highlight=False)
        console.print(show(rows))
        promises = sum(row.kept is not None for row in rows)
        console.print(f"promises kept: {promises - len(missed)} of {promises}")
        console.print(f"load of the machine at the start: {load:.2f} on {os.cpu_count()} cores")
    return 1 if missed and options.strict else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shaped_link", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    parser.add_argument("--realtime", action="store_true", help="real-time priority (root)")
    parser.add_argument("--kernel", action="store_true", help="compare with tbf (root)")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 unless every promise was kept"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
