"""The ``docker`` command and an engine for it: the one that answers, or one of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shared.model_bundle import cache_folder

ROOT = Path(__file__).parents[2]
MINUTES = 60.0
TOOLS = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "debootstrap": "debootstrap",
    "openssl": "openssl",
    "git": "git",
}


def missing_tools() -> list[str]:
    """What the tests call and this machine lacks, as a person would look for it."""
    missing = [f"{tool} ({package})" for tool, package in TOOLS.items() if not shutil.which(tool)]
    if shutil.which("docker"):
        compose = subprocess.run(
            ["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False
        )
        if compose.returncode or not compose.stdout.lstrip("v").startswith(tuple("23456789")):
            missing.append("docker compose, version 2 or newer")
    return missing


@dataclass(frozen=True)
class Docker:
    """The ``docker`` command, for one engine and, in ``folder``, one compose project."""

    environment: dict[str, str]
    folder: Path = ROOT
    is_ours: bool = False  # an engine that nobody else uses

    def __call__(
        self, *arguments: str, seconds: float = 2 * MINUTES, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run it; a failure shows what it said."""
        done = subprocess.run(
            ["docker", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            env=self.environment,
            cwd=self.folder,
            check=False,
        )
        said = f"docker {' '.join(arguments)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        assert done.returncode == 0 or not check, said
        return done

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it with its output in pipes."""
        return subprocess.Popen(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd=self.folder,
        )

    def answers(self) -> bool:
        """Whether an engine is there."""
        return self("info", check=False).returncode == 0

    def has_image(self, name: str) -> bool:
        """Whether the engine holds it."""
        return self("image", "inspect", name, check=False).returncode == 0

    def inspect(self, container: str, what: str) -> str:
        """A Go template over a container's state."""
        return self("inspect", "--format", what, container).stdout.strip()


def engine_folder() -> Path:
    """Where our own engine keeps images and what builds leave, so that the next run is quick."""
    return cache_folder() / "docker-tests"


@contextlib.contextmanager
def engine() -> Iterator[Docker]:
    """The engine that answers, or one of our own that ends with the block."""
    docker = Docker(dict(os.environ))
    if docker.answers():
        yield docker
        return
    folder = Path(tempfile.mkdtemp(prefix="tandem-docker-"))  # a socket's path must be short
    socket = f"unix://{folder}/socket"
    docker = replace(docker, environment=os.environ | {"DOCKER_HOST": socket}, is_ours=True)
    process = _start_engine(docker, folder)
    try:
        yield docker
    finally:
        process.terminate()
        try:
            process.wait(MINUTES)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start_engine(docker: Docker, folder: Path) -> subprocess.Popen[bytes]:
    kept = engine_folder()
    kept.mkdir(parents=True, exist_ok=True)
    command = ["dockerd", f"--host=unix://{folder}/socket", f"--exec-root={folder}/exec"]
    command += [f"--data-root={kept}/engine", f"--pidfile={kept}/pid"]  # the pid is the lock
    log = folder / "log"
    # a kernel may lack what iptables asks for; containers reach each other without
    for options in ([], ["--iptables=false", "--ip6tables=false"]):
        with log.open("ab") as sink:
            # in a session of its own: Ctrl-C is for the tests, which still need it to clean up
            process = subprocess.Popen(
                [*command, *options], stdout=sink, stderr=sink, start_new_session=True
            )
        try:
            wait_until(partial(_settled, process, docker), MINUTES)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if process.poll() is None:
            return process
    said = log.read_text()[-4000:]
    shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError(f"dockerd does not start: {said}")


def _settled(process: subprocess.Popen[bytes], docker: Docker) -> bool:
    return process.poll() is not None or docker.answers()


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C would, so that what it holds is given back."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    """Return once ``happened()``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"still waiting after {seconds} s"
        time.sleep(0.2)
