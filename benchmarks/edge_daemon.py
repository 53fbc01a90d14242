"""How long the daemon takes to start, and the memory that it holds.

::

    python -m benchmarks.edge_daemon --rounds 3

The daemon runs as users run it: a process of its own, ``tandem edge serve``, standalone, on the
default bundle or the one that is named.  *Ready* is when its port file is there: its address takes
requests from then on.  Memory is resident memory as the system reports it (``VmRSS``, and its peak
``VmHWM``), pages of mapped files included: after the start, after the first answer, and after as
many more as are asked for.  Every answer is to a question of its own, so that nothing is reused
from one to the next.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError
from shared.model_bundle import Precision, default_bundle_folder

_SUBJECTS = (
    "the sky", "the sea", "bread", "a river", "glass", "a bicycle", "snow", "a violin", "salt",
    "a bridge", "thunder", "paper", "a clock", "honey", "a desert", "steel", "a lighthouse",
    "wool", "a volcano", "soap",
)  # fmt: skip
_POLL_SECONDS = 0.005
_START_SECONDS = 120.0


@dataclass(frozen=True)
class DaemonUse:
    """One daemon's life.

    Attributes:
        ready_seconds: from the start of the process until it answers.
        cpu_seconds: that its threads computed until then.
        started, one_answer, all_answers, peak: MiB resident.
    """

    ready_seconds: float
    cpu_seconds: float
    started: float
    one_answer: float
    all_answers: float
    peak: float


def measure(bundle: Path, precision: Precision, answers: int, tokens: int) -> DaemonUse:
    """Start a daemon, ask it ``answers`` times for ``tokens`` tokens, and end it.

    Raises:
        ConfigurationError: it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log"
        command = [sys.executable, "-m", "shared.cli", "edge", "serve", "--port", "0"]
        command += ["--port-file", str(port_file), "--bundle", str(bundle)]
        command += ["--precision", precision, "--max-tokens", str(tokens)]
        plain = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
        with log.open("wb") as sink:
            began = time.monotonic()
            process = subprocess.Popen(command, stderr=sink, env=plain)
        try:
            while not port_file.exists():
                late = time.monotonic() - began > _START_SECONDS
                if late or process.poll() is not None:
                    raise ConfigurationError(f"the daemon did not start: {log.read_text()[-500:]}")
                time.sleep(_POLL_SECONDS)
            ready = time.monotonic() - began
            cpu, started = _cpu_seconds(process.pid), _memory(process.pid, "VmRSS")
            address = port_file.read_text().strip()
            _ask(address, 0)
            one = _memory(process.pid, "VmRSS")
            for number in range(1, answers):
                _ask(address, number)
            all_ = _memory(process.pid, "VmRSS")
            return DaemonUse(ready, cpu, started, one, all_, _memory(process.pid, "VmHWM"))
        finally:
            process.terminate()
            process.wait()


def _ask(address: str, number: int) -> None:
    """One answer, as long as the daemon makes them."""
    subject = _SUBJECTS[number % len(_SUBJECTS)]
    text = f"Question {number}: explain {subject} to a curious child, with an example."
    body = {"messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


def _memory(pid: int, key: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) / 1024


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=default_bundle_folder())
    parser.add_argument("--precision", choices=("float32", "int8", "int4"), default="int8")
    parser.add_argument("--rounds", type=int, default=3, help="daemons, one after the other")
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    chosen = parser.parse_args(arguments)
    if not Path("/proc/self/status").exists():
        raise SystemExit("memory is read from /proc: this needs Linux")
    uses = [
        measure(chosen.bundle, chosen.precision, chosen.answers, chosen.tokens)
        for _ in range(chosen.rounds)
    ]
    print(f"| median of {chosen.rounds} | least | most | |")
    print("|---|---|---|---|")
    for name, unit, text in (
        ("ready_seconds", "s", "until it answers"),
        ("cpu_seconds", "s", "computed until then"),
        ("started", "MiB", "resident then"),
        ("one_answer", "MiB", "resident after 1 answer"),
        ("all_answers", "MiB", f"resident after {chosen.answers} answers"),
        ("peak", "MiB", "resident at most"),
    ):
        values = [float(getattr(use, name)) for use in uses]
        digits = 2 if unit == "s" else 0
        shown = [f"{x:.{digits}f}" for x in (statistics.median(values), min(values), max(values))]
        print(f"| {shown[0]} {unit} | {shown[1]} | {shown[2]} | {text} |")


if __name__ == "__main__":
    main()
