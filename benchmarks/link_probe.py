"""Round trips and goodput over TCP, with blocking sockets: both ends of the measurement.

As a process, ``python -m benchmarks.link_probe HOST:PORT`` is the far end.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from simulator.shaped_proxy import parse_address, show_address

_ECHO, _UPLOAD, _DOWNLOAD = b"e", b"u", b"d"
_DELAY = struct.Struct("!d")
_COUNT = struct.Struct("!Q")
_RESULT = struct.Struct("!dQ")  # seconds, bytes
_CHUNK = 65_536
_TIMEOUT_SECONDS = 120.0


@contextmanager
def far_end(host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A server for the functions below, in threads of its own; gives its ``HOST:PORT``."""
    with socket.create_server((host, port)) as listener:
        thread = threading.Thread(target=_accept, args=(listener,), daemon=True)
        thread.start()
        yield show_address(*listener.getsockname()[:2])
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        thread.join()


def round_trips(
    address: str, count: int, size: int = 32, *, sleep_seconds: float = 0.0
) -> list[float]:
    """Seconds of ``count`` echoes of ``size`` bytes, one after the other.

    The far end sleeps ``sleep_seconds`` before each.
    """
    with _connect(address, _ECHO + _DELAY.pack(sleep_seconds)) as peer:
        payload = bytes(size)
        seconds = []
        for number in range(count + 1):
            start = time.perf_counter()
            peer.sendall(payload)
            _read(peer, size)
            if number:  # the first pays for the handshake
                seconds.append(time.perf_counter() - start)
        return seconds


def upload_mbit(address: str, size: int) -> float:
    """Payload Mbit/s of ``size`` bytes sent, from the first to the last at the far end."""
    with _connect(address, _UPLOAD) as peer:
        for _ in range(size // _CHUNK):
            peer.sendall(bytes(_CHUNK))
        peer.shutdown(socket.SHUT_WR)
        seconds, counted = _RESULT.unpack(_read(peer, _RESULT.size))
        return float(counted * 8 / 1e6 / seconds)


def download_mbit(address: str, size: int) -> float:
    """Payload Mbit/s of ``size`` bytes received, from the first to the last."""
    with _connect(address, _DOWNLOAD + _COUNT.pack(size)) as peer:
        seconds, counted = _drain(peer)
        return counted * 8 / 1e6 / seconds


def _connect(address: str, greeting: bytes) -> socket.socket:
    peer = socket.create_connection(parse_address(address, "address"), timeout=_TIMEOUT_SECONDS)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.sendall(greeting)
    return peer


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(peer,), daemon=True).start()


def _serve(peer: socket.socket) -> None:
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            kind = _read(peer, 1)
            if kind == _ECHO:
                (sleep_seconds,) = _DELAY.unpack(_read(peer, _DELAY.size))
                while data := peer.recv(_CHUNK):
                    if sleep_seconds:
                        time.sleep(sleep_seconds)
                    peer.sendall(data)
            elif kind == _UPLOAD:
                peer.sendall(_RESULT.pack(*_drain(peer)))
            elif kind == _DOWNLOAD:
                (size,) = _COUNT.unpack(_read(peer, _COUNT.size))
                for _ in range(size // _CHUNK):
                    peer.sendall(bytes(_CHUNK))
        except OSError:
            return  # the near end went away


def _drain(peer: socket.socket) -> tuple[float, int]:
    """Seconds from the first bytes to the last, and how many came after the first."""
    view = memoryview(bytearray(_CHUNK))
    if not peer.recv_into(view):
        return 1.0, 0
    start = end = time.perf_counter()
    counted = 0
    while read := peer.recv_into(view):
        counted += read
        end = time.perf_counter()
    return max(end - start, 1e-9), counted


def _read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = peer.recv(size - len(data))
        if not more:
            raise ConnectionError("the connection ended early")
        data += more
    return data


if __name__ == "__main__":
    with far_end(*parse_address(sys.argv[1], "address")) as address:
        print(address, flush=True)
        sys.stdin.read()
