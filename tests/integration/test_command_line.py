"""The ``tandem`` command as a user runs it: processes, exit codes, one line per error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud_harness import tiny_bundle

COMMAND = [sys.executable, "-m", "shared.cli"]
SECONDS = 120
CLOUD = ["--cloud", "localhost:1"]
AUTO = [*CLOUD, "--mode", "auto"]


def tandem(
    *arguments: str, expect: int = 0, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TANDEM_BUNDLE": str(tiny_bundle().folder), "COLUMNS": "200"}
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=SECONDS,
        env=environment,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port_file = tmp_path_factory.mktemp("cloud") / "port"
    process = subprocess.Popen(
        [*COMMAND, "cloud", "serve", "--port", "0", "--port-file", str(port_file), "--threads", "1",
         "--bundle", str(tiny_bundle().folder)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("listening on 127.0.0.1:"), line
    yield line.split()[-1]
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    process.stderr.close()
    assert not port_file.exists()


def test_help_names_every_command_and_shows_examples() -> None:
    listing = tandem("--help").stdout
    for name in (
        "generate",
        "chat",
        "doctor",
        "demo",
        "evaluate",
        "prepare",
        "cloud",
        "simulate",
        "bench",
    ):
        assert name in listing
    for name in (
        "generate",
        "chat",
        "doctor",
        "demo",
        "evaluate",
        "prepare",
        "prepare exits",
        "prepare check",
        "cloud serve",
        "cloud config",
        "cloud token",
        "simulate capacity",
        "simulate fleet",
        "simulate link",
        "bench",
    ):
        assert f"tandem {name}" in tandem(*name.split(), "--help").stdout
    assert tandem("--version").stdout.startswith("tandem 0.")


def test_generate_prints_text_and_a_summary(cloud: str) -> None:
    done = tandem("generate", "hello", "--cloud", cloud, "--precision", "float32",
                  "--max-tokens", "8")  # fmt: skip
    assert "tokens" in done.stderr.splitlines()[-1], "a pipe gets the text alone"
    assert done.stdout.strip()
    assert "tokens," not in done.stdout
    assert "\x1b" not in done.stdout


def test_generate_as_json_in_every_mode(cloud: str) -> None:
    for mode in ("standalone", "collaborative", "cloud-only"):
        done = tandem("generate", "-", "--mode", mode, "--cloud", cloud, "--json",
                      "--precision", "float32", "--max-tokens", "6", stdin="hello")  # fmt: skip
        record = json.loads(done.stdout)
        assert record["mode"] == mode
        assert 1 <= len(record["token_ids"]) <= 6


def test_a_seed_repeats_a_sampled_text(cloud: str) -> None:
    arguments = ["generate", "hello", "--cloud", cloud, "--json", "--precision", "float32",
                 "--max-tokens", "12", "--temperature", "1", "--seed"]  # fmt: skip
    first, again, other = (json.loads(tandem(*arguments, seed).stdout) for seed in "112")
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]


def test_evaluate_without_exits_agrees_entirely(cloud: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"turns": ["two", "three"]}\n{"prompt": "four"}\n')
    done = tandem("evaluate", "--prompts", str(prompts), "--limit", "2", "--max-tokens", "8",
                  "--precision", "float32", "--context", "float32", "--no-exits",
                  "--cloud", cloud, "--json")  # fmt: skip
    record = json.loads(done.stdout)
    assert list(record)[2:] == [
        "prompts", "tokens", "agreement", "exact_match", "rouge_l", "cloud_request_rate",
        "origin_shares", "cloud_layer_share", "uploaded_bytes_per_token",
    ]  # fmt: skip
    assert (record["prompts"], record["agreement"], record["exact_match"]) == (2, 1.0, 1.0)
    assert record["origin_shares"] == {"cloud": 1.0}


def test_evaluate_standalone_starts_a_cloud_for_the_reference(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n')
    done = tandem("evaluate", "--prompts", str(prompts), "--max-tokens", "8", "--mode",
                  "standalone", "--precision", "float32", "--json")  # fmt: skip
    record = json.loads(done.stdout)
    assert record["cloud_request_rate"] == record["cloud_layer_share"] == 0.0
    assert 0.0 <= record["agreement"] < 1.0, "untrained exits cannot agree entirely"


def test_demo_talks_in_three_modes_and_closes_with_a_table() -> None:
    done = tandem("demo", "--max-tokens", "6", "--precision", "float32", "hello")
    for mode in ("cloud-only", "collaborative", "standalone"):
        assert mode in done.stdout
    assert "agreement" in done.stdout


def test_cloud_config_prints_a_file_that_says_the_same(tmp_path: Path) -> None:
    first = tandem("cloud", "config", "--max-sessions", "7", "--insecure", "--metrics", ":9464")
    assert "max_sessions = 7  # --max-sessions" in first.stdout
    (tmp_path / "cloud.toml").write_text(first.stdout)
    again = tandem("cloud", "config", "--config", str(tmp_path / "cloud.toml"), "--port", "1")
    assert "max_sessions = 7  # cloud.toml: max_sessions" in again.stdout
    assert "port = 1  # --port" in again.stdout
    assert "insecure = true" in again.stdout


def test_a_cloud_that_logs_json_logs_nothing_else(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "cloud", "serve", "--port", "0", "--metrics", ":0", "--log-format", "json",
         "--threads", "1", "--bundle", str(tiny_bundle().folder)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    ready = json.loads(process.stderr.readline())
    assert ready["event"] == "listening"
    with urllib.request.urlopen(ready["metrics"], timeout=SECONDS) as answer:
        assert b"tandem_cloud_serving 1.0" in answer.read()
    tandem("generate", "hello", "--cloud", ready["address"], "--precision", "float32",
           "--mode", "cloud-only", "--max-tokens", "4")  # fmt: skip
    process.send_signal(signal.SIGTERM)
    lines = [json.loads(line) for line in process.stderr]
    assert process.wait(SECONDS) == 0
    process.stderr.close()
    assert [line["event"] for line in lines] == ["session opened", "session closed", "draining"]
    assert lines[0]["session"] == lines[1]["session"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "x", "--bundle", "/nowhere"], 2, "tandem prepare"),
        (["generate", "x", "--precision", "int4"], 2, "--precision int4"),
        (["generate", "x", "--mode", "collaborative"], 2, "--cloud"),
        (["generate", "x", "--threshold", "2"], 2, "threshold"),
        (["generate", "x", "--threshold", "0.5", "--target-agreement", "0.9"], 2, "not both"),
        (["generate", "x", "--target-agreement", "1", "--cloud", "localhost:1"], 2, "best is 0.96"),
        (["generate", "x", "--target-agreement", "0.9"], 2, "--cloud"),
        (
            [
                "generate",
                "x",
                "--target-agreement",
                "0.9",
                "--cloud",
                "localhost:1",
                "--temperature",
                "1",
            ],
            2,
            "greedy",
        ),
        (
            [
                "evaluate",
                "--prompts",
                "/nowhere",
                "--mode",
                "standalone",
                "--target-agreement",
                "0.9",
            ],
            2,
            "--target-agreement",
        ),
        (["prepare", "exits", "--out", "/tmp/x", "--layers", "20,16"], 2, "rising"),
        (["prepare", "exits", "--out", "/tmp/x", "--blocks", "1,17"], 2, "at most 16"),
        (["prepare", "exits", "--out", "/tmp/x", "--vocabulary", "-5,1"], 2, "head rows"),
        (["prepare", "exits", "--out", "/tmp/x", "--lots", "3"], 2, "--lots"),
        (["generate", "x", "--verified"], 2, "--cloud"),
        (["generate", "x", *CLOUD, "--window", "65"], 2, "--window"),
        (["generate", "x", *CLOUD, "--schedule", "blocking", "--window", "2"], 2, "optimistic"),
        (["generate", "x", *CLOUD, "--burst", "2"], 2, "--context tokens"),
        (["generate", "x", *CLOUD, "--mode", "cloud-only", "--burst", "2"], 2, "--burst"),
        (["generate", "x", *CLOUD, "--aim", "cost"], 2, "--mode auto"),
        (["generate", "x", *AUTO, "--threshold", "0.5", "--verified"], 2, "drop --threshold"),
        (["generate", "x", *AUTO, "--no-exits"], 2, "exits"),
        (["generate", "x", *AUTO, "--private", "--context", "tokens"], 2, "privacy"),
        (["generate", "x", *AUTO, "--aim", "quality", "--cloud-token-price", "1"], 2, "price"),
        (["generate", "x", "--mode", "auto"], 2, "--cloud"),
        (["generate", "x", *CLOUD, "--no-exits", "--verified"], 2, "--no-exits"),
        (
            ["generate", "x", *AUTO, "--target-agreement", "0.9", "--temperature", "1"],
            2,
            "greedy",
        ),
        (["evaluate", "--prompts", "/nowhere", "--mode", "auto"], 2, "tandem bench"),
        (["generate", "x", "--top-p", "0"], 2, "top-p"),
        (["generate", " "], 2, "empty"),
        (["generate", "x", "--cloud-ca", "ca.pem"], 2, "--cloud"),
        (["generate", "x", "--cloud", "nonsense"], 2, "HOST:PORT"),
        (["generate", "x", "--max-tokens", "100000"], 2, "--max-tokens"),
        (["evaluate", "--prompts", "/nowhere"], 2, "cannot be read"),
        (["cloud", "serve", "--bundle", "/nowhere"], 2, "tandem prepare"),
        (["cloud", "serve", "--host", "0.0.0.0"], 2, "--insecure"),
        (["cloud", "serve", "--tls-cert", "a.pem"], 2, "--tls-key"),
        (["cloud", "serve", "--metrics", "9464"], 2, "--metrics"),
        (["cloud", "serve", "--quotas", "/nowhere.toml"], 2, "cannot be read"),
        (["cloud", "serve", "--config", "/nowhere.toml"], 2, "cannot be read"),
        (["cloud", "config", "--port", "70000"], 2, "--port"),
        (["cloud", "config", "--tokens", "tandem_secret"], 2, "token file"),
        (["prepare", "--from", "/nowhere"], 2, "no such file"),
        (["prepare", "exits", "--out", "/tmp/x", "--layers", "a"], 2, "--layers"),
        (["prepare", "exits", "--out", "/tmp/x", "--max-minutes", "1,x"], 2, "--max-minutes"),
        (["prepare", "exits", "--out", "/tmp/x", "--max-minutes", "1,2,3"], 2, "time limit"),
        (["prepare", "check", "--prompts", "/nowhere"], 2, "cannot be read"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, message: str
) -> None:
    if arguments[0] == "generate" and "--precision" not in arguments:
        arguments = [*arguments, "--precision", "float32"]
    assert message in tandem(*arguments, expect=code).stderr


def test_verified_sends_token_ids_unless_told_otherwise(cloud: str) -> None:
    arguments = ["generate", "x y", "--cloud", cloud, "--precision", "float32", "--json"]
    arguments += ["--max-tokens", "6", "--verified"]
    assert json.loads(tandem(*arguments).stdout)["plan"].endswith(", tokens")
    assert json.loads(tandem(*arguments, "--context", "int8").stdout)["plan"].endswith(", int8")


def test_a_wrong_bundle_at_the_cloud_is_told(cloud: str, tmp_path: Path) -> None:
    from tests.tiny_bundle import write_tiny_bundle  # noqa: PLC0415

    write_tiny_bundle(tmp_path / "b", 3, ("float32",), full_depth=False)
    done = tandem("generate", "x", "--cloud", cloud, "--bundle", str(tmp_path / "b"),
                  "--precision", "float32", "--threshold", "1", expect=2)  # fmt: skip
    assert "same model" in done.stderr
