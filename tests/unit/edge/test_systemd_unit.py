"""The unit file: what systemd says of it, and that `tandem edge unit` fits it to its machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edge import serve_cli
from edge.settings import EDGE_SOURCES, EdgeSettings

UNIT = Path(serve_cli.__file__).parent / "systemd" / "tandem-edge.service"
with_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@pytest.fixture
def printed() -> str:
    app = typer.Typer()
    serve_cli.register(app)
    done = CliRunner().invoke(app, ["edge", "unit"])
    assert done.exit_code == 0, done.output
    return done.output


def test_it_starts_the_command_beside_the_interpreter_that_printed_it(printed: str) -> None:
    command = Path(sys.executable).with_name("tandem")
    assert f"\nExecStart={command} edge serve --config " in printed
    assert "/opt/tandem" not in printed


def test_variables_in_the_unit_are_settings() -> None:
    names = [
        word.partition("=")[0].removeprefix("#Environment=")
        for line in UNIT.read_text().splitlines()
        if "Environment=" in line
        for word in line.partition("Environment=")[2].split()
    ]
    own = {name for name in names if name.startswith(EDGE_SOURCES.prefix)}
    assert own
    fields = {name.removeprefix(EDGE_SOURCES.prefix).lower() for name in own}
    assert fields <= EdgeSettings.model_fields.keys()


@with_systemd
@pytest.mark.parametrize("with_secrets", [False, True])
def test_systemd_finds_nothing_wrong(tmp_path: Path, printed: str, with_secrets: bool) -> None:
    text = printed
    if with_secrets:
        text = text.replace("#LoadCredential=", "LoadCredential=")
        text = text.replace("#Environment=", "Environment=")
    # the command need not be installed where the tests run
    text = text.replace(str(Path(sys.executable).with_name("tandem")), sys.executable)
    unit = tmp_path / "tandem-edge.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


@with_systemd
def test_it_is_as_shut_in_as_it_says(tmp_path: Path, printed: str) -> None:
    unit = tmp_path / "tandem-edge.service"
    unit.write_text(printed)
    # exposure in tenths: 10.0 is a service without any of it
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
