"""``pip install '.[edge]'`` in an environment of its own: small, and it answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cloud_harness import tiny_bundle

ROOT = Path(__file__).parents[2]
PARTS = ("cloud", "edge", "prepare", "protos", "shared", "simulator")
FILES = ("pyproject.toml", "README.md", "LICENSE")
SECONDS = 300
ABSENT = ("torch", "transformers", "onnx", "scipy", "matplotlib", "ray", "pytest")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the edge's extra alone, installed from a copy: building leaves files."""
    folder = tmp_path_factory.mktemp("edge-only")
    source = folder / "source"
    for part in PARTS:
        shutil.copytree(
            ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in FILES:
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=SECONDS)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, f"{source}[edge]"],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return python


def clean_environment() -> dict[str, str]:
    """Without paths that lead to this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(python: Path, *arguments: str) -> str:
    """What a module prints, run far from the checkout."""
    done = subprocess.run(
        [python, *arguments],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=clean_environment(),
        cwd=python.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_nothing_of_the_clouds_is_installed(python: Path) -> None:
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    names = {package["name"].lower().replace("_", "-") for package in listed}
    assert "onnxruntime" in names
    assert not names & set(ABSENT)
    assert not [name for name in names if name.startswith("nvidia")]
    run(python, "-m", "pip", "check")


@pytest.mark.slow
def test_the_daemon_starts_alone_answers_and_serves_its_page(python: Path, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    options = ["--port", "0", "--port-file", str(port_file), "--precision", "float32"]
    process = subprocess.Popen(
        [python.with_name("tandem"), "edge", "serve", *options,
         "--bundle", str(tiny_bundle().folder)],
        stderr=subprocess.PIPE, text=True, env=clean_environment(), cwd=tmp_path,
    )  # fmt: skip
    assert process.stderr is not None
    with process, process.stderr:
        line = process.stderr.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        address = f"http://{port_file.read_text().strip()}"
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
        for path in ("/", "/metrics"):
            with urllib.request.urlopen(address + path, timeout=SECONDS) as answer:
                assert answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.slow
def test_the_unit_and_other_parts_commands_say_what_they_need(python: Path) -> None:
    unit = run(python.with_name("tandem"), "edge", "unit")
    assert f"ExecStart={python.with_name('tandem')} edge serve" in unit
    done = subprocess.run(
        [python.with_name("tandem"), "cloud", "serve"],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=clean_environment(),
        cwd=python.parent,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install '.[cloud]'" in done.stderr
