"""Tells systemd how the service fares (``Type=notify``); elsewhere nothing happens."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send ``state``, such as ``READY=1`` (see sd_notify(3)); a service manager that is not there
    or does not listen changes nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
