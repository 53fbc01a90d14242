"""``tandem simulate fleet`` and ``tandem simulate capacity`` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.fleet.recordings import save_recording
from tests.fleet_harness import invented_recording, write_machines

COMMAND = [sys.executable, "-m", "shared.cli", "simulate"]
ENVIRONMENT = os.environ | {"COLUMNS": "200"}
SECONDS = 120


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True, text=True, timeout=SECONDS, env=ENVIRONMENT, check=False,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two small groups on the test's machines."""
    device, cloud = write_machines(tmp_path)
    save_recording(invented_recording(), tmp_path / "recording.npz")
    path = tmp_path / "fleet.toml"
    path.write_text(
        f"""
name = "a test"
duration_s = 120
seed = 3

[workload]
think_s = 10
recording = "{tmp_path / "recording.npz"}"

[cloud]
profile = "{cloud}"

[[edges]]
name = "near"
count = 3
device = "{device}"
link = "wifi"

[[edges]]
name = "far"
count = 2
device = "{device}"
link = "train"
policy = "blocking"
"""
    )
    return path


def test_a_fleet_is_simulated_reported_and_the_same_again(config: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    done = run("fleet", "--config", str(config), "--out", str(first))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("a test", "near", "far", "a million tokens", f"wrote {first / 'fleet.json'}"):
        assert word in done.stdout
    assert run("fleet", "--config", str(config), "--out", str(again)).returncode == 0
    names = sorted(path.name for path in first.iterdir())
    assert names == ["fleet.json", "fleet.md", "time-per-token.png"]
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    summary = json.loads((first / "fleet.json").read_text())
    assert summary["edges"] == 5
    assert summary["seed"] == 3
    assert summary["answers"] > 10
    assert any("Energy" in line for line in summary["assumptions"])
    report = (first / "fleet.md").read_text()
    assert "invented for a test" in report, "sources are stated"
    assert "![time-per-token.png](time-per-token.png)" in report


def test_another_seed_is_another_hour(config: Path) -> None:
    figures = [
        run("fleet", "--config", str(config), "--json", "--seed", seed).stdout
        for seed in ("3", "3", "4")
    ]
    assert figures[0] == figures[1] != figures[2]
    assert json.loads(figures[2])["seed"] == 4


def test_the_example_can_be_run_as_it_is(tmp_path: Path) -> None:
    printed = run("fleet", "--example")
    assert printed.returncode == 0
    path = tmp_path / "example.toml"
    path.write_text(printed.stdout.replace("duration_s = 3600", "duration_s = 60"))
    done = run("fleet", "--config", str(path), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["edges"] == 100


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("seed = 3", "sed = 3"), "sed: there is no such key"),
        (("think_s = 10", "think_s = 0"), "workload.think_s"),
        (('link = "wifi"', 'link = "string"'), "string"),
        (('policy = "blocking"', 'policy = "hope"'), "edges.1.policy"),
        (("[cloud]", "[cloud"), "cannot be parsed"),
        (("recording.npz", "nothing.npz"), "nothing.npz"),
    ],
)
def test_a_bad_configuration_is_named_and_fails(
    config: Path, change: tuple[str, str], named: str
) -> None:
    config.write_text(config.read_text().replace(*change))
    done = run("fleet", "--config", str(config))
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_is_needed() -> None:
    done = run("fleet")
    assert done.returncode == 2
    assert "--config" in done.stderr


def test_ctrl_c_ends_a_run(config: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("duration_s = 120", "duration_s = 2500000")
    config.write_text(text)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "fleet", "--config", str(config), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + SECONDS
    while not out.exists():  # made just before the simulation begins
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(out.iterdir()) == []


def test_capacity_is_answered_by_one_command(tmp_path: Path) -> None:
    device, cloud = write_machines(tmp_path)
    save_recording(invented_recording(), tmp_path / "recording.npz")
    out = tmp_path / "plan"
    arguments = [
        "capacity", "--cloud", cloud, "--device", device, "--link", "loopback", "--think", "2",
        "--target", "p95 time per token <= 60 ms", "--recording", str(tmp_path / "recording.npz"),
    ]  # fmt: skip
    both = "--policies", "cloud-only,blocking", "--rtts", "100"
    done = run(*arguments, *both, "--out", str(out))
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "capacity.json",
        "capacity.md",
        "cost.png",
        "edges-against-round-trip.png",
        "edges.png",
    ]
    answer = json.loads((out / "capacity.json").read_text())
    assert answer["target"] == "p95 time per token <= 60 ms"
    found = {(c["policy"], c["rtt_ms"]): c for c in answer["capacities"]}
    assert len(found) == 4
    near, far = found["cloud-only", 0.0], found["blocking", 100.0]
    assert 5 < near["edges"] < 2000
    assert near["measured_seconds"] <= 0.060
    assert near["dollars_per_million_tokens"] > 0
    assert near["agreement"] == 1.0
    assert far["edges"] == 0, "0.1 s a question cannot be 60 ms a token"
    assert f"{near['edges']:,}" in done.stdout
    again = run(*arguments, "--policies", "cloud-only", "--json")
    assert json.loads(again.stdout)["capacities"] == [near]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--target", "fast"], "target 'fast'"),
        (["--policies", "prayer"], "no policy 'prayer'"),
        (["--rtts", "some"], "--rtts"),
        (["--rtts", "-5"], "--rtts"),
        (["--link", "string"], "no preset 'string'"),
        (["--cloud", "abacus"], "no cloud 'abacus'"),
    ],
)
def test_a_bad_question_is_named_and_fails(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    device, cloud = write_machines(tmp_path)
    done = run("capacity", "--cloud", cloud, "--device", device, *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_examples() -> None:
    for name in ("fleet", "capacity"):
        assert f"tandem simulate {name} --" in run(name, "--help").stdout
