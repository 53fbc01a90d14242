"""What the doctor makes of a machine: pure judgements, and the port of this one."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge import doctor_machine as machine
from edge.doctor import Level

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL
MIB = machine.MIB
DAY = 86400.0
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("name", "cpuinfo", "level", "word"),
    [
        ("x86_64", "flags\t\t: sse2 avx2 avx512_vnni amx_int8", OK, "AVX-512 VNNI, AMX"),
        ("x86_64", "flags : avx2 avx_vnni", OK, "AVX-VNNI"),
        ("x86_64", "flags : avx avx2 fma", OK, "without VNNI"),
        ("x86_64", "flags : sse2 avx", WARN, "without AVX2"),
        ("aarch64", "Features\t: fp asimd asimddp", OK, "dotprod"),
        ("aarch64", "Features : asimddp i8mm", OK, "dotprod, i8mm"),
        ("aarch64", "Features : fp asimd evtstrm crc32", WARN, "without dotprod"),
        ("arm64", "", OK, "does not tell"),
    ],
)
def test_processor(name: str, cpuinfo: str, level: Level, word: str) -> None:
    finding = machine.judge_processor(name, machine.processor_features(cpuinfo))
    assert finding.level is level
    assert word in finding.detail
    assert bool(finding.advice) == (level is not OK)


def test_threads_beyond_the_cores_are_warned_of() -> None:
    assert machine.judge_cores(4, 4, None, None).level is OK
    assert "--threads 4" in machine.judge_cores(8, 4, None, 6).advice
    assert "--threads 1" in machine.judge_cores(8, 4, 1.5, None).advice
    assert machine.judge_cores(8, 4, 2.0, 2).level is OK


def test_memory_is_the_least_of_system_and_container() -> None:
    meminfo = "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n"
    assert machine.available_memory(meminfo, "", "") == 4 * MIB
    assert machine.available_memory(meminfo, "max\n", "5\n") == 4 * MIB
    assert machine.available_memory(meminfo, f"{3 * MIB}\n", f"{MIB}\n") == 2 * MIB
    assert machine.available_memory("", "", "") is None


@pytest.mark.parametrize(
    ("available", "level"), [(99, FAIL), (100, WARN), (149, WARN), (150, OK), (None, OK)]
)
def test_memory(available: int | None, level: Level) -> None:
    bytes_ = None if available is None else available * MIB
    assert machine.judge_memory(bytes_, 100 * MIB, 50 * MIB).level is level


def test_python() -> None:
    assert machine.judge_python((3, 11, 0), 64).level is OK
    assert machine.judge_python((3, 10, 9), 64).level is FAIL
    assert "64-bit" in machine.judge_python((3, 12, 0), 32).advice


REQUIREMENTS = (
    "numpy>=1.26",
    "protobuf<8,>=6.31",
    'onnxruntime>=1.23; extra == "edge"',
    'torch>=2.4; extra == "cloud"',
)


@pytest.mark.parametrize(
    ("installed", "problem"),
    [
        ({"numpy": "2.0.0", "protobuf": "6.31.1", "onnxruntime": "1.23.0"}, None),
        ({"numpy": "1.26", "protobuf": "6.31", "onnxruntime": "1.100.0+cpu"}, None),
        ({"numpy": "1.9.9", "protobuf": "6.31", "onnxruntime": "1.23"}, "numpy 1.9.9"),
        ({"numpy": "2.0", "protobuf": "6.4", "onnxruntime": "1.23"}, "protobuf 6.4 is older"),
        ({"numpy": "2.0", "protobuf": "6.31", "onnxruntime": None}, "onnxruntime is missing"),
    ],
)
def test_packages(installed: dict[str, str | None], problem: str | None) -> None:
    finding = machine.judge_packages(REQUIREMENTS, installed)
    assert finding.level is (OK if problem is None else FAIL)
    assert problem is None or problem in finding.detail


def test_disk() -> None:
    assert machine.judge_disk(int(1e9), True).level is OK
    assert machine.judge_disk(int(1e9), False).level is WARN
    assert machine.judge_disk(int(1e8), True).level is WARN


@pytest.mark.parametrize(
    ("now", "written", "synchronised", "level"),
    [
        (NOW, NOW - DAY, True, OK),
        (NOW, None, None, OK),
        (NOW, NOW - DAY, False, WARN),
        (NOW, NOW + DAY, True, WARN),
        (1000.0, None, True, FAIL),
    ],
)
def test_clock(now: float, written: float | None, synchronised: bool, level: Level) -> None:
    finding = machine.judge_clock(now, written, synchronised)
    assert finding.level is level
    assert ("set-ntp" in finding.advice) == (level is not OK)


@contextmanager
def http_daemon(status: int, body: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "level", "word"),
    [
        (200, b'{"status": "ok"}', OK, "daemon answers"),
        (503, b'{"status": "draining"}', WARN, "draining"),
        (200, b"<html>", FAIL, "another program"),
        (404, b"[]", FAIL, "another program"),
    ],
)
def test_who_has_the_port(status: int, body: bytes, level: Level, word: str) -> None:
    with http_daemon(status, body) as port:
        finding = machine.check_port(port)
    assert finding.level is level
    assert word in finding.detail


def test_a_port_that_is_free_or_does_not_speak_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert machine.check_port(port, seconds=0.05).level is FAIL
    assert "free" in machine.check_port(port).detail
