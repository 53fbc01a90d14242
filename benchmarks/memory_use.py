"""Memory of one engine, each in a fresh process that holds nothing else.

What counts is resident memory as the system reports it (``VmRSS`` and its peak ``VmHWM``): pages
of mapped files count like any other, llama.cpp's weights as well as libraries.  A process goes
through the same steps for every engine: import the libraries; load the tokenizer (llama.cpp's comes
with its model); give back what that freed; load the model, read the prompt, decode.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.engines import Engine, LlamaCppEngine, TandemEngine, decode
from edge.memory import release_freed
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from shared.model_bundle import Precision

_STATUS = Path("/proc/self/status")
AVAILABLE = _STATUS.exists()


@dataclass(frozen=True)
class MemoryUse:
    """MiB of a process: before its model is loaded, after decoding, and at most."""

    before: float
    steady: float
    peak: float


@dataclass(frozen=True)
class Measured:
    """What a process is to load and run: a bundle's edge, or llama.cpp where ``precision`` is
    ``None``.

    Attributes:
        model: the bundle's folder, or the GGUF file.
        tokenizer: the bundle's tokenizer file; ``None`` for llama.cpp.
        room: positions that the engine is opened for.
    """

    model: str
    precision: Precision | None
    full: bool
    tokenizer: str | None
    threads: int
    room: int
    prompt: tuple[int, ...]
    tokens: int


def memory_use(measured: Measured) -> MemoryUse:
    """Run ``measured`` in a process of its own.

    Raises:
        ConfigurationError: that process failed.
    """
    command = [sys.executable, "-m", "benchmarks.memory_use", json.dumps(asdict(measured))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError(f"measuring memory failed: {done.stderr.strip()[-500:]}")
    return MemoryUse(**json.loads(done.stdout))


def _measure_here(measured: Measured) -> MemoryUse:
    if measured.precision is None:
        import llama_cpp  # noqa: F401, PLC0415
    else:
        import tokenizers  # noqa: PLC0415

        import edge.exit_model  # noqa: F401, PLC0415

        tokenizer = tokenizers.Tokenizer.from_file(str(measured.tokenizer))
    release_freed()
    before = _status("VmRSS")
    model, threads, room = Path(measured.model), measured.threads, measured.room
    engine: Engine
    if measured.precision is None:
        engine = LlamaCppEngine(model, threads, room)
        decode(engine, measured.prompt, measured.tokens)
    else:
        engine = TandemEngine(model, measured.precision, threads, room, full=measured.full)
        tokenizer.decode(decode(engine, measured.prompt, measured.tokens).tokens)
    return MemoryUse(before, _status("VmRSS"), _status("VmHWM"))


def _status(key: str) -> float:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def main(arguments: Sequence[str]) -> None:
    """Measure what the JSON in ``arguments`` says; print a :class:`MemoryUse` as JSON."""
    print(json.dumps(asdict(_measure_here(Measured(**json.loads(arguments[0]))))))


if __name__ == "__main__":
    main(sys.argv[1:])
