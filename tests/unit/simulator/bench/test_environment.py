"""What a benchmark says that it ran on."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from simulator.bench.environment import Environment, commit_of, look_around
from tests.bench_harness import environment_of
from tests.cloud_harness import tiny_bundle


def test_it_names_no_machine_and_no_folder() -> None:
    environment = look_around(tiny_bundle())
    assert environment.cores >= 1
    assert environment.packages["numpy"]
    assert environment.bundle["layers"] == 6
    text = json.dumps(environment.as_record())
    assert str(Path.home()) not in text
    assert str(tiny_bundle().folder) not in text
    assert Environment.from_record(json.loads(text)) == environment


def test_code_without_a_commit_is_known_by_its_version() -> None:
    assert environment_of().code == "0123456789ab"
    installed = environment_of(commit=None, packages={"tandem": "0.1.0"})
    assert installed.code == "version 0.1.0"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_uncommitted_changes_are_told_apart_reports_and_tests_do_not_count(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    folder = tmp_path / "simulator" / "bench"
    files = [folder / "a.py", folder.parent / "local_cloud.py"]
    others = [tmp_path / "docs" / "results.md", tmp_path / "tests" / "test_a.py"]
    git("init")
    for file in (*files, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    git("add", "simulator/bench", "docs", "tests")
    git("commit", "-m", "some")
    assert commit_of(folder) is None  # somebody else's repository
    git("add", ".")
    git("commit", "-m", "all")
    clean = commit_of(folder)
    assert clean is not None
    assert len(clean) == 12
    for file in others:
        file.write_text("new")
    assert commit_of(folder) == clean
    marks = []
    for text in ("new", "newer"):
        files[0].write_text(text)
        marks.append(commit_of(folder))
    assert len({clean, *marks}) == 3
    assert all(mark is not None and mark.startswith(f"{clean}+") for mark in marks)
