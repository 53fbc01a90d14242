"""docker-compose.yml brought up as docs/compose.md has it, and taken away again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from prepare.base_model import EMBEDDING
from prepare.bundle_writer import write_bundle
from prepare.exit_weights import untrained_exits
from prepare.tiny_model import TINY_ARCHITECTURE, tiny_model
from tests.docker.docker_engine import MINUTES, ROOT, Docker
from tests.docker.docker_images import SUITE, obtain_images

PROJECT = "tandem-test"
CLOUD_IMAGE, EDGE_IMAGE = "tandem-cloud:test", "tandem-edge:test"
BROKER_USER, BROKER_PASSWORD = "kitchen", "secret"
_PROFILES = ("--profile", "try", "--profile", "setup")


@dataclass(frozen=True)
class Stack:
    """A project that is up; ``services`` are those that an image could be had for."""

    docker: Docker
    services: tuple[str, ...]

    @property
    def project(self) -> Path:
        """The folder of docker-compose.yml."""
        return self.docker.folder

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``docker compose …``."""
        return self.docker("compose", *arguments, check=check, seconds=5 * MINUTES)

    def ask(self, prompt: str, *options: str) -> subprocess.CompletedProcess[str]:
        """An answer of the edge in the stack, whether it can or not."""
        return self.docker(*_edge(prompt, options), check=False, seconds=5 * MINUTES)

    def start_asking(self, prompt: str, *options: str) -> subprocess.Popen[bytes]:
        """The same, under way, with its output in pipes."""
        return self.docker.start(*_edge(prompt, options))

    def without_token(self) -> Stack:
        """The same stack for somebody who has no token."""
        environment = self.docker.environment | {"TANDEM_TOKEN": ""}
        return replace(self, docker=replace(self.docker, environment=environment))

    def container(self, service: str) -> str:
        """Id of a service's container, running or not."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service: str, what: str) -> str:
        """A Go template over the state of a service's container."""
        return self.docker.inspect(self.container(service), what)

    def is_healthy(self, service: str) -> bool:
        """Whether its health check says so."""
        return self.inspect(service, "{{.State.Health.Status}}") == "healthy"

    def users(self, service: str) -> set[int]:
        """Who runs the processes of a service."""
        top = self.docker("top", self.container(service), "-eo", "pid,uid").stdout
        return {int(line.split()[1]) for line in top.splitlines()[1:]}

    def kill(self, service: str) -> None:
        """End a container as a crash would (``docker kill`` suspends the restart policy)."""
        os.kill(int(self.inspect(service, "{{.State.Pid}}")), signal.SIGKILL)

    def cloud_says(self) -> tuple[int, str]:
        """Exit code and words of the cloud's own health check."""
        check = json.loads(self.inspect("cloud", "{{json .Config.Healthcheck.Test}}"))[1:]
        said = self.compose("exec", "-T", "cloud", *check, check=False)
        return said.returncode, said.stdout + said.stderr

    def cloud_counts(self, name: str, tenant: str) -> float:
        """A tenant's counter or gauge, read from the cloud itself."""
        code = "import urllib.request as r; print(r.urlopen('http://localhost:9464/metrics')"
        text = self.compose("exec", "-T", "cloud", "python3", "-c", f"{code}.read().decode())")
        for family in text_string_to_metric_families(text.stdout):
            for sample in family.samples:
                if sample.name == name and sample.labels.get("tenant") == tenant:
                    return float(sample.value)
        return 0.0

    def prometheus(self, expression: str) -> list[dict[str, Any]]:
        """Prometheus's samples for an expression, over the port that it shows to this machine."""
        port = self.docker.environment["PROMETHEUS_PORT"]
        question = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{port}/api/v1/query?{question}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return list(json.load(response)["data"]["result"])


def _edge(prompt: str, options: Sequence[str]) -> list[str]:
    return ["compose", "run", "--rm", "-T", "--no-deps", "edge", prompt, *options]


@contextlib.contextmanager
def stack(docker: Docker, folder: Path) -> Iterator[Stack]:
    """Images, certificates, bundle, token and broker user; what the engine got for it ends with
    the block, but for the images that Tandem's are made of."""
    images = obtain_images(docker, folder)
    project = _copy_project(folder / "project")
    _write_endless_bundle(project / "bundle")
    # the wheels are all there: pip shall not look for others, which takes minutes to fail
    (folder / "pip.conf").write_text("[global]\nno-index = true\n")
    subprocess.run([project / "docker/make-certificates"], check=True, capture_output=True)
    environment = _without_settings(docker.environment) | {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "BASE_IMAGE": images.base,
        "BROKER_IMAGE": images.broker,
        "PROMETHEUS_IMAGE": images.prometheus,
        "PIP_CONF": str(folder / "pip.conf"),
        "CLOUD_IMAGE": CLOUD_IMAGE,
        "EDGE_IMAGE": EDGE_IMAGE,
        "CLOUD_LISTEN": f"127.0.0.1:{_free_port()}",
        "BROKER_LISTEN": f"127.0.0.1:{_free_port()}",
        "PROMETHEUS_PORT": str(_free_port()),
        "GRAFANA_PORT": str(_free_port()),
    }
    docker = replace(docker, environment=environment, folder=project)
    services = ("cloud", "broker", "prometheus", *(["grafana"] if images.grafana else []))
    up = Stack(docker, services)
    _take_down(docker)  # what a run that was killed has left
    try:
        for service in ("cloud", "edge"):
            docker("compose", "--profile", "try", "build", service, seconds=20 * MINUTES)
        environment["TANDEM_TOKEN"] = up.compose("run", "--rm", "-T", "token", "try").stdout.strip()
        up.compose(
            "run", "--rm", "-T", "--entrypoint", "sh", "broker-user", "-c",
            "umask 077 && touch /secrets/passwords"
            f" && mosquitto_passwd -b /secrets/passwords {BROKER_USER} {BROKER_PASSWORD}",
        )  # fmt: skip
        up.compose("up", "--detach", "--wait", "--no-build", *services)
        yield up
    finally:
        _take_down(docker)


def _take_down(docker: Docker) -> None:
    docker("compose", *_PROFILES, "down", "--volumes", "--remove-orphans", "--timeout", "5")
    docker("image", "rm", "--force", CLOUD_IMAGE, EDGE_IMAGE, check=False)
    label = f"--filter=label=com.docker.compose.project={PROJECT}"
    for what in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        left = docker(*what, "--quiet", label).stdout
        assert not left, f"docker {' '.join(what)}: {left}"


def _copy_project(folder: Path) -> Path:
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
        *tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
        "wheel",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", "constraints.txt",
         "--dest", str(folder / "docker/wheels"), *wanted],
        cwd=ROOT, capture_output=True, text=True, timeout=10 * MINUTES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def _write_endless_bundle(folder: Path) -> None:
    """The tiny model with room for long answers, and with a stop token that it never says."""
    model = tiny_model(architecture=TINY_ARCHITECTURE.model_copy(update={"max_positions": 4096}))
    # its logit is always 0, and some of the other 271 are above that
    model.weights[EMBEDDING][list(model.stop_token_ids)] = 0
    exits = untrained_exits(model, (2, 4), vocabulary_ids=np.arange(260, dtype=np.int32))
    write_bundle(model, exits, folder, precisions=["float32"], full_depth=False)


def _without_settings(environment: dict[str, str]) -> dict[str, str]:
    """What remains without the variables that docker-compose.yml and Tandem itself read."""
    ours = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    return {
        name: value
        for name, value in environment.items()
        if name not in ours and not name.startswith(("TANDEM_", "COMPOSE_"))
    }


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
