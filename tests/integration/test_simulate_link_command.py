"""``tandem simulate link`` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.link_probe import far_end, round_trips

COMMAND = [sys.executable, "-m", "shared.cli", "simulate", "link"]
ENVIRONMENT = os.environ | {"COLUMNS": "200"}
SECONDS = 60
ANY = ["--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True, text=True, timeout=SECONDS, env=ENVIRONMENT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_says_when_it_is_ready_carries_and_ends_with_a_summary(ending: signal.Signals) -> None:
    with far_end() as target:
        process = subprocess.Popen(
            [*COMMAND, "--rtt", "10", "--up", "50", "--listen", "127.0.0.1:0", "--to", target,
             "--control", "127.0.0.1:0", "--seed", "3"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("listening on 127.0.0.1:"), process.communicate()
        address, control = ready.split(",")[0].split()[-1], ready.split()[-1]
        assert min(round_trips(address, 3)) >= 0.010
        with urllib.request.urlopen(f"{control}/link", timeout=SECONDS) as reply:
            link = json.load(reply)
        assert (link["up"]["rate_mbit"], link["down"]["rate_mbit"]) == (50, None)
        process.send_signal(ending)
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert "up " in out
    assert out.startswith("1 connection in ")


def test_the_list_names_every_preset_and_its_source() -> None:
    done = run("--list")
    assert done.returncode == 0
    for word in ("loopback", "4g", "geostationary", "train", "WebPageTest", "Ookla"):
        assert word in done.stdout


def test_help_shows_examples() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "tandem simulate link --preset 4g" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--listen HOST:PORT"),
        ([*ANY, "--preset", "6g"], "no preset '6g'"),
        ([*ANY, "--up", "0"], "link.up.rate_mbit"),
        ([*ANY, "--rtt", "-5"], "link.up.delay_ms"),
        ([*ANY, "--loss", "1"], "link.up.loss"),
        ([*ANY, "--queue", "10"], "hold no packet"),
        ([*ANY, "--trace-up", "/nowhere"], "cannot be read"),
        ([*ANY, "--trace-down", "BAD"], "line 2: 'x'"),
        ([*ANY, "--up", "3", "--trace-up", "BAD"], "exclude each other"),
        (["--listen", "x", "--to", "127.0.0.1:1"], "listening address 'x'"),
        (["--listen", "127.0.0.1:0", "--to", "y"], "target 'y'"),
        (["--listen", "a..b:0", "--to", "127.0.0.1:1"], "'a..b:0' names no possible host"),
        (["--listen", "127.0.0.1:0", "--to", "a..b:80"], "'a..b:80' names no possible host"),
        ([*ANY, "--control", "0.0.0.0:0"], "not loopback"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_text("1\nx\n")
    done = run(*(str(tmp_path / "bad") if word == "BAD" else word for word in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
