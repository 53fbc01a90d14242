"""A link that the kernel shapes: a network namespace behind a veth pair with a tbf queue.

Needs root and ``ip`` and ``tc``.  tbf counts Ethernet frames: 1,514 bytes for 1,448 of payload.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FRAME_BYTES = 1_514
FRAME_HEADER_BYTES = 66  # Ethernet 14, IPv4 20, TCP 20, its timestamps 12
_NEAR, _FAR = "10.213.71.1", "10.213.71.2"
_PORT = 7_999


def available() -> bool:
    """Whether this process may try."""
    return os.geteuid() == 0 and bool(shutil.which("ip")) and bool(shutil.which("tc"))


@contextmanager
def shaped_by_kernel(rate_mbit: float, queue_bytes: int) -> Iterator[str]:
    """``HOST:PORT`` of a :mod:`benchmarks.link_probe` behind ``rate_mbit`` towards it.

    Raises:
        subprocess.CalledProcessError: the kernel lacks veth, namespaces or tbf.
    """
    space = f"tandem{os.getpid()}"
    near = f"tn{os.getpid() % 10**8}"
    far = f"tf{os.getpid() % 10**8}"
    _run("ip", "netns", "add", space)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        _run("ip", "address", "add", f"{_NEAR}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        inside = ("ip", "netns", "exec", space)
        _run(*inside, "ip", "address", "add", f"{_FAR}/30", "dev", far)
        _run(*inside, "ip", "link", "set", far, "up")
        _run("tc", "qdisc", "add", "dev", near, "root", "tbf", "rate", f"{rate_mbit}mbit",
             "burst", "16kb", "limit", str(queue_bytes))  # fmt: skip
        command = [*inside, sys.executable, "-m", "benchmarks.link_probe", f"{_FAR}:{_PORT}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.communicate()  # its end of input is its end
    finally:
        subprocess.run(["ip", "netns", "delete", space], check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
