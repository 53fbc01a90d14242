"""What the tests of docker-compose.yml need: an engine, images without a registry, the stack.

No image is pulled: debootstrap makes them from Debian's packages, under the names that the
Dockerfiles and docker-compose.yml use, and Tandem's own images are built on that with wheels that
this machine's pip downloads, however it is set up.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from prepare.base_model import EMBEDDING
from prepare.bundle_writer import write_bundle
from prepare.exit_weights import untrained_exits
from prepare.tiny_model import TINY_ARCHITECTURE, tiny_model

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"  # the one of python:3.11-slim-bookworm
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

    def inspect(self, container: str, what: str) -> str:
        """A Go template over a container's state."""
        return self("inspect", "--format", what, container).stdout.strip()


@contextlib.contextmanager
def engine() -> Iterator[Docker]:
    """The engine that answers, or one of our own that ends with the block."""
    docker = Docker(dict(os.environ))
    if docker.answers():
        yield docker
        return
    folder = Path(tempfile.mkdtemp(prefix="tandem-docker-"))  # a socket's path must be short
    docker = replace(docker, environment=os.environ | {"DOCKER_HOST": f"unix://{folder}/socket"})
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
    command = ["dockerd", f"--host=unix://{folder}/socket", f"--pidfile={folder}/pid"]
    command += [f"--data-root={folder}/data", f"--exec-root={folder}/exec"]
    log = folder / "log"
    # a kernel may lack what iptables asks for; containers reach each other without
    for options in ([], ["--iptables=false", "--ip6tables=false"]):
        with log.open("ab") as sink:
            process = subprocess.Popen([*command, *options], stdout=sink, stderr=sink)
        try:
            wait_until(partial(_settled, process, docker), MINUTES)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.poll() is None:
            return process
    raise AssertionError(f"dockerd does not start: {log.read_text()[-4000:]}")


def _settled(process: subprocess.Popen[bytes], docker: Docker) -> bool:
    return process.poll() is not None or docker.answers()


def make_images(docker: Docker, folder: Path) -> None:
    """The images that a registry would have, as far as Debian's packages give them.

    One with Python under the name in the Dockerfiles, and one with Mosquitto and Prometheus under
    the two names in docker-compose.yml.  Images that are there already are left alone.
    """
    base = re.search(
        r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "docker/cloud.Dockerfile").read_text(), re.M
    )
    assert base
    compose = (ROOT / "docker-compose.yml").read_text()
    broker, prometheus = (
        re.findall(rf"\$\{{{name}_IMAGE:-([^}}]+)\}}", compose)[0]
        for name in ("BROKER", "PROMETHEUS")
    )
    if not _have(docker, base[1]):
        root = _debootstrap(folder / "base", "python3", "python3-venv", "ca-certificates")
        _import(docker, root, base[1])
        shutil.rmtree(root)
    if not (_have(docker, broker) and _have(docker, prometheus)):
        root = _debootstrap(folder / "services", "mosquitto", "mosquitto-clients", "prometheus")
        (root / "prometheus").mkdir(mode=0o777)
        (root / "prometheus").chmod(0o777)
        _import(docker, root, broker)
        _import(
            docker, root, prometheus, "USER 65534:65534", 'ENTRYPOINT ["/usr/bin/prometheus"]'
        )  # fmt: skip
        shutil.rmtree(root)


def _have(docker: Docker, image: str) -> bool:
    return docker("image", "inspect", image, check=False).returncode == 0


def _debootstrap(root: Path, *packages: str) -> Path:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}"]
    done = subprocess.run(
        [*command, SUITE, str(root), _debian_mirror()],
        capture_output=True,
        text=True,
        timeout=10 * MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return root


def _debian_mirror() -> str:
    """Where this machine's own apt takes Debian from."""
    folder = Path("/etc/apt")
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        for line in path.read_text().splitlines():
            if found := re.match(r"(?:URIs:|deb(?: \[.*\])?)\s*(\S+/debian/?)(?:\s|$)", line):
                return found[1]
    raise AssertionError("apt's sources name no Debian mirror")


def _import(docker: Docker, root: Path, image: str, *changes: str) -> None:
    options = [f"--change={change}" for change in changes]
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", *options, "-", image],
            stdin=tar.stdout,
            stdout=subprocess.DEVNULL,
            timeout=5 * MINUTES,
            env=docker.environment,
            check=True,
        )
    assert tar.returncode == 0


def copy_project(folder: Path) -> Path:
    """The checkout's own files and, in docker/wheels, all that pip needs to build the images."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    assert sys.version_info[:2] == (3, 11), f"{SUITE} has Python 3.11: run the tests with that"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *extras["cloud"],
        *extras["edge"],
        "setuptools>=77",
        "wheel",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", "constraints.txt",
         "--dest", str(folder / "docker/wheels"), *wanted],
        cwd=ROOT, capture_output=True, text=True, timeout=10 * MINUTES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def write_endless_bundle(folder: Path) -> None:
    """The tiny model with room for long answers, and with a stop token that it never says."""
    model = tiny_model(architecture=TINY_ARCHITECTURE.model_copy(update={"max_positions": 4096}))
    # its logit is always 0, and some of the other 271 are above that
    model.weights[EMBEDDING][list(model.stop_token_ids)] = 0
    exits = untrained_exits(model, (2, 4), vocabulary_ids=np.arange(260, dtype=np.int32))
    write_bundle(model, exits, folder, precisions=["float32"], full_depth=False)


@contextlib.contextmanager
def stack(docker: Docker, folder: Path) -> Iterator[Docker]:
    """Images, certificates, bundle, token and broker user as docs/compose.md has them; all of the
    project's containers, networks and volumes end with the block."""
    make_images(docker, folder)
    project = copy_project(folder / "project")
    write_endless_bundle(project / "bundle")
    # the wheels are all there: pip shall not look for others, which takes minutes to fail
    (folder / "pip.conf").write_text("[global]\nno-index = true\n")
    subprocess.run([project / "docker/make-certificates"], check=True, capture_output=True)
    environment = docker.environment | {
        "COMPOSE_PROJECT_NAME": f"tandem-test-{secrets.token_hex(4)}",
        "PIP_CONF": str(folder / "pip.conf"),
        "CLOUD_IMAGE": "tandem-cloud:test",
        "EDGE_IMAGE": "tandem-edge:test",
        "CLOUD_LISTEN": f"127.0.0.1:{_free_port()}",
        "BROKER_LISTEN": f"127.0.0.1:{_free_port()}",
        "PROMETHEUS_PORT": str(_free_port()),
    }
    compose = Docker(environment, project)
    try:
        for service in ("cloud", "edge"):
            compose("compose", "--profile", "try", "build", service, seconds=20 * MINUTES)
        token = compose("compose", "run", "--rm", "-T", "token", "try").stdout.strip()
        environment["TANDEM_TOKEN"] = token
        compose(
            "compose", "run", "--rm", "-T", "--entrypoint", "sh", "broker-user", "-c",
            "umask 077 && touch /secrets/passwords"
            " && mosquitto_passwd -b /secrets/passwords kitchen secret",
        )  # fmt: skip
        compose("compose", "up", "--detach", "--no-build", "cloud", "broker", "prometheus")
        yield compose
    finally:
        compose(
            "compose", "--profile", "try", "--profile", "setup",
            "down", "--volumes", "--remove-orphans", "--timeout", "25",
        )  # fmt: skip


def container(docker: Docker, service: str) -> str:
    """Id of a running service's container."""
    return docker("compose", "ps", "--quiet", service).stdout.strip()


def kill_container(docker: Docker, name: str) -> None:
    """End its first process as a crash would (``docker kill`` would suspend the restart policy)."""
    os.kill(int(docker.inspect(name, "{{.State.Pid}}")), signal.SIGKILL)


def health(docker: Docker, service: str) -> str:
    """``starting``, ``healthy`` or ``unhealthy``."""
    return docker.inspect(container(docker, service), "{{.State.Health.Status}}")


def query(docker: Docker, expression: str) -> list[dict[str, Any]]:
    """Prometheus's samples for an expression."""
    said = docker(
        "compose", "exec", "-T", "prometheus",
        "promtool", "query", "instant", "--format=json", "http://localhost:9090", expression,
    ).stdout  # fmt: skip
    return list(json.loads(said))


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    """Return once ``happened()``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"still waiting after {seconds} s"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read_some(stream: IO[bytes], count: int) -> bytes:
    """At least ``count`` bytes, as they come."""
    data = b""
    while len(data) < count:
        piece = os.read(stream.fileno(), 4096)  # leaves nothing in a buffer
        assert piece, f"the text ended after {len(data)} bytes"
        data += piece
    return data


def arguments_of(prompt: str, options: Sequence[str]) -> list[str]:
    """``docker compose run`` of the edge."""
    return ["compose", "run", "--rm", "-T", "--no-deps", "edge", prompt, *options]
