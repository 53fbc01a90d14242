"""The three commands as a user runs them: real processes, a tiny bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared.cli import build_app
from simulator.fleet import validation
from simulator.fleet.profiles import load_cloud, load_device
from simulator.fleet.recordings import load_recording
from simulator.fleet.validation_report import Pace, Round, Row, Validation
from tests.cloud_harness import tiny_bundle
from tests.fleet_harness import CLOUD, DEVICE

COMMAND = [sys.executable, "-m", "shared.cli", "simulate"]
ROOT = Path(__file__).parents[4]
SECONDS = 300
FLOAT32 = ["--precision", "float32"]


def environment() -> dict[str, str]:
    return os.environ | {"TANDEM_BUNDLE": str(tiny_bundle().folder), "COLUMNS": "200"}


def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.alone
def test_a_quick_profile_is_read_back(tmp_path: Path) -> None:
    done = run(
        "fleet-profile", "--quick", "--name", "tiny", "--out", str(tmp_path), "--threads", "1",
        "--cloud-threads", "1", *FLOAT32,
    )  # fmt: skip
    device = load_device(str(tmp_path / "devices" / "tiny.json"))
    cloud = load_cloud(str(tmp_path / "clouds" / "tiny.json"))
    assert device.name == cloud.name == "tiny"
    assert device.measured
    assert len(device.segment_seconds) == 2
    assert min(*device.level_seconds, device.prefill_seconds, device.step_seconds) > 0
    assert cloud.whole.samples == cloud.deep.samples > 10
    assert cloud.pass_seconds(deep=(1, 1, 1, 96)) > 0
    assert cloud.pass_seconds(whole=(1, 1, 1, 96)) > 0
    assert 0 < cloud.message_seconds < 0.1
    assert 0 < device.message_seconds < 0.1
    assert "r²" in done.stdout
    details = json.loads((tmp_path / "measurements" / "tiny.json").read_text())
    assert {sample["sessions"] for sample in details["passes"]["whole"]} == {1, 4}
    overheads = details["overheads"]
    assert 0 < overheads["empty_pass"] < overheads["exchange"]
    assert overheads["message"] == pytest.approx((overheads["asked"] + overheads["said"]) / 2)
    assert set(details["edge_level_seconds_by_context"]) == {"64", "128"}


def test_a_recording_is_read_back_and_holds_no_words(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.npz"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a secret word"}\n{"turns": ["and", "more"]}\n')
    run(
        "fleet-record", "--prompts-file", str(prompts), "--max-tokens", "6", "--out", str(path),
        "--threads", "1", *FLOAT32,
    )  # fmt: skip
    recording = load_recording(path)
    assert len(recording.answers) == 2
    assert all(1 <= answer.length <= 6 for answer in recording.answers)
    assert recording.model.prompts.startswith("2 prompts from prompts.jsonl")
    assert set(recording.model.compression.values())
    run(
        "fleet-record", "--prompts", "1", "--max-tokens", "4", "--out", str(path), *FLOAT32,
    )  # fmt: skip
    assert len(load_recording(path).answers) == 1


def device_file(folder: Path) -> str:
    power = {"idle_watts": 0, "active_watts": 0, "source": "made up"}
    device = {
        "name": "slow", "source": "made up", "measured": False, "power": power,
        "segment_seconds": [0.02, 0.004], "exit_seconds": [0.002, 0.002],
        "pending_seconds": [0.0001, 0.001], "prefill_seconds": 0.0005,
    }  # fmt: skip
    path = folder / "slow.json"
    path.write_text(json.dumps(device))
    return str(path)


def test_a_validation_runs_both_sides(tmp_path: Path) -> None:
    policies = ["cloud-only", "blocking@0.3", "optimistic@0.3", "verified"]
    done = run(
        "fleet-validate", "--edges", "1,2", "--policies", ",".join(policies), "--prompts", "2",
        "--max-tokens", "6", "--device", device_file(tmp_path), "--link", "wifi",
        "--rounds", "2", "--out", str(tmp_path / "out"), *FLOAT32,
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "validation.json").read_text())
    rows = record["rows"]
    assert [(r["policy"], r["edges"]) for r in rows] == [(p, n) for p in policies for n in (1, 2)]
    for row in rows:
        assert row["answers"] == 2 * row["edges"]
        # the machine that tests is busy: that both tell of the same thing is all that is asked
        assert len(row["rounds"]) == 2
        for once in row["rounds"]:
            assert 0.2 < once["simulated"]["mean"] / once["real"]["mean"] < 3.0
            assert once["late"] >= 0.0
    blocking = next(r for r in rows if r["policy"] == "blocking@0.3")
    assert blocking["rounds"][0]["real"]["mean"] > 0.02
    assert record["device"]["name"] == "slow"
    assert "blocking@0.3" in done.stdout
    assert (tmp_path / "out" / "validation.md").read_text().startswith("|")


@pytest.mark.parametrize(
    ("p95", "check", "code"), [(0.19, True, 0), (0.17, True, 1), (0.17, False, 0)]
)
def test_a_validation_that_misses_its_goal_fails_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, p95: float, check: bool, code: int
) -> None:
    row = Row("blocking@0.3", 1, 2, (Round(Pace(0.1, 0.2, 0.5), Pace(0.1, p95, 0.5)),))

    async def found(*_: object) -> Validation:
        return Validation((row,), DEVICE, CLOUD)

    monkeypatch.setattr(validation, "validate", found)
    monkeypatch.setenv("TANDEM_BUNDLE", str(tiny_bundle().folder))
    command = ["simulate", "fleet-validate", "--out", str(tmp_path), *FLOAT32]
    command += ["--device", device_file(tmp_path), *["--check"] * check]
    assert CliRunner().invoke(build_app(), command).exit_code == code
    assert json.loads((tmp_path / "validation.json").read_text())["rows"][0]["answers"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fleet-profile", "--name", "../x"], "is no name for a profile"),
        (["fleet-record", "--out", "/proc/none/r.npz", *FLOAT32], "cannot be written"),
        (["fleet-record", "--prompts-file", "nowhere.jsonl", *FLOAT32], "cannot be read"),
        (["fleet-record", "--max-tokens", "500", *FLOAT32], "fit"),
        (["fleet-validate", "--edges", "0"], "numbers from 1"),
        (["fleet-validate", "--edges", "1,x"], "numbers from 1"),
        (["fleet-validate", "--policies", "auto"], "no policy 'auto'"),
        (["fleet-validate", "--policies", ","], "names no policy"),
        (["fleet-validate", "--link", "string"], "string"),
        (["fleet-validate", "--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS,
        env=environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 1), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["fleet-profile", "fleet-record", "fleet-validate"])
def test_help_shows_examples(command: str) -> None:
    done = run(command, "--help")
    assert f"tandem simulate {command}" in done.stdout


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ctrl_c_ends_the_children_too(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "fleet-validate", "--edges", "1", "--policies", "blocking@0.3",
         "--max-tokens", "100", "--prompts", "8", "--device", device_file(tmp_path),
         "--out", str(tmp_path / "out"), *FLOAT32],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    deadline = time.monotonic() + SECONDS
    children: list[int] = []
    while len(children) < 3:  # the cloud, the links and an edge
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        children = children_of(process.pid)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)
