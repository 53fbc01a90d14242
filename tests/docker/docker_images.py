"""The images that docker-compose.yml and the Dockerfiles name, from a registry or without one.

Where none is reached, debootstrap makes stand-ins from Debian's packages: Python, Mosquitto and
Prometheus.  Debian has no Grafana.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.docker.docker_engine import MINUTES, ROOT, Docker

SUITE = "bookworm"  # the one of the Dockerfiles' base image
# what a container does not need of a Debian
_LEFT_OUT = ("./var/cache/apt", "./var/lib/apt/lists", "./usr/share/doc", "./usr/share/man")


@dataclass(frozen=True)
class Images:
    """Names to give to docker-compose.yml; ``grafana`` is None where it cannot be had."""

    base: str
    broker: str
    prometheus: str
    grafana: str | None


def obtain_images(docker: Docker, folder: Path) -> Images:
    """Images that the engine holds or can pull, else stand-ins, made in ``folder``.

    In an engine of ours a stand-in has the name of what it stands for; in another's it does not,
    or that engine's owner would take it for the real one.
    """
    dockerfile = (ROOT / "docker/cloud.Dockerfile").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()

    def named(pattern: str, text: str) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        assert found, pattern
        return found[1]

    def obtain(image: str, make: Callable[[str], None]) -> str:
        if docker.has_image(image) or _can_pull(docker, image):
            return image
        stand_in = image if docker.is_ours else f"tandem-stand-in/{image.rpartition('/')[2]}"
        if not docker.has_image(stand_in):
            make(stand_in)
        return stand_in

    def make_base(name: str) -> None:
        packages = ["python3", "python3-venv", "ca-certificates"]
        _make(docker, folder / "base", name, packages)

    def make_broker(name: str) -> None:
        _make(docker, folder / "broker", name, ["mosquitto", "mosquitto-clients"])

    def make_prometheus(name: str) -> None:
        changes = ["USER 65534:65534", 'ENTRYPOINT ["/usr/bin/prometheus"]']
        _make(docker, folder / "prometheus", name, ["prometheus"], changes, writable="prometheus")

    grafana = named(r"\$\{GRAFANA_IMAGE:-([^}]+)\}", compose)
    return Images(
        base=obtain(named(r"^ARG BASE_IMAGE=(\S+)$", dockerfile), make_base),
        broker=obtain(named(r"\$\{BROKER_IMAGE:-([^}]+)\}", compose), make_broker),
        prometheus=obtain(named(r"\$\{PROMETHEUS_IMAGE:-([^}]+)\}", compose), make_prometheus),
        grafana=grafana if docker.has_image(grafana) or _can_pull(docker, grafana) else None,
    )


def _can_pull(docker: Docker, image: str) -> bool:
    return docker("pull", image, seconds=10 * MINUTES, check=False).returncode == 0


def _make(
    docker: Docker,
    root: Path,
    image: str,
    packages: list[str],
    changes: list[str] | None = None,
    writable: str | None = None,
) -> None:
    """An image of a small Debian with ``packages`` and, if asked for, a folder for all to write."""
    # what debootstrap mounts goes with the namespace, however it ends
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase"]
    command += [f"--include={','.join(packages)}"]
    done = subprocess.run(
        [*command, SUITE, str(root), _debian_mirror()],
        capture_output=True,
        text=True,
        timeout=10 * MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    if writable:
        (root / writable).mkdir()
        (root / writable).chmod(0o777)
    tar = ["tar", "-C", str(root), "-c", *(f"--exclude={path}/*" for path in _LEFT_OUT), "."]
    options = [f"--change={change}" for change in changes or []]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
        subprocess.run(
            ["docker", "import", *options, "-", image],
            stdin=packing.stdout,
            stdout=subprocess.DEVNULL,
            timeout=5 * MINUTES,
            env=docker.environment,
            check=True,
        )
    assert packing.returncode == 0
    shutil.rmtree(root)


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
