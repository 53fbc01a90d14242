"""What is measured in which order, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from simulator.bench.journal import MEASUREMENTS_NAME, SETTINGS_NAME, Journal
from tests.bench_harness import CONTENDERS, plan_of

SETTINGS = {"max_tokens": 4, "machine": "abacus"}
KEY = ("timing", "cloud-only", "4g", "ab", "cd", "0")


def test_every_key_is_its_own() -> None:
    keys = [task.key for task in plan_of().tasks()]
    assert len(set(keys)) == len(keys)


def test_a_prompts_contenders_run_right_after_one_another_another_first_each_time() -> None:
    tasks = [task for task in plan_of().tasks() if task.kind == "timing"]
    first_round = [task.entrant.name for task in tasks[: len(CONTENDERS)]]
    assert first_round == list(CONTENDERS)
    assert tasks[len(CONTENDERS)].entrant.name == CONTENDERS[1]
    assert {t.prompt.text for t in tasks[: len(CONTENDERS)]} == {"one"}
    assert len({t.starts_at for t in tasks[: len(CONTENDERS)]}) == 1  # the same stretch for all


def test_what_is_costly_is_repeated_less() -> None:
    tasks = [t for t in plan_of(repeats=3).tasks() if t.kind == "timing"]
    repeats = {name: {t.repeat for t in tasks if t.entrant.name == name} for name in CONTENDERS}
    assert repeats["naive-split"] == {0}
    assert repeats["blocking@0.8"] == {0, 1, 2}


def test_the_timeline_is_of_the_first_contender_of_ours_that_asks_the_cloud() -> None:
    plan = plan_of(rtts=(0, 50, 100))
    timeline = plan.timeline()
    assert timeline is not None
    assert (timeline.entrant.name, timeline.link.name) == ("blocking@0.8", "50ms-10mbit")
    assert plan_of(contenders=("standalone", "cloud-only")).timeline() is None


def test_a_contender_named_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        plan_of(contenders=("cloud-only", "cloud-only"))


def test_a_journal_remembers(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(KEY, {"seconds": 1.5, "text": "ä\u2028b"})
    again = Journal(tmp_path, SETTINGS)
    assert KEY in again
    assert again[KEY] == {"seconds": 1.5, "text": "ä\u2028b"}
    assert len(again) == 1


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(KEY, {"seconds": 1.5})
        journal.add((*KEY[:-1], "1"), {"seconds": 1.6})
    path = tmp_path / MEASUREMENTS_NAME
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal) == 1
        journal.add((*KEY[:-1], "1"), {"seconds": 1.7})
    assert [json.loads(line)["seconds"] for line in path.read_text().splitlines()] == [1.5, 1.7]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS)
    with pytest.raises(ConfigurationError, match=r"max_tokens was 4, is 8.*another --out"):
        Journal(tmp_path, SETTINGS | {"max_tokens": 8})


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / MEASUREMENTS_NAME).write_text("{}\n")
    with pytest.raises(ConfigurationError, match=SETTINGS_NAME):
        Journal(tmp_path, SETTINGS)
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(SETTINGS))
    with pytest.raises(ConfigurationError, match="line 1 is no measurement"):
        Journal(tmp_path, SETTINGS)
