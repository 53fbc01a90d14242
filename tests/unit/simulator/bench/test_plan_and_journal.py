"""What is measured in which order, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigurationError
from simulator.bench.journal import MEASUREMENTS_NAME, SETTINGS_NAME, Journal
from simulator.bench.links import named
from simulator.bench.plan import Plan
from simulator.bench.sessions import Session, check_version, sessions_of
from simulator.bench.shaped_link import ShapedLink
from tests.bench_harness import CONTENDERS, environment_of, plan_of

SETTINGS = {"max_tokens": 4, "machine": "abacus"}
SESSION = {"commit": "0123", "load": 0.1}
KEY = ("timing", "cloud-only", "4g", "ab", "cd", "0")


def measurements_in(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "key" in line]


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
    with Journal(tmp_path, SETTINGS, SESSION) as journal:
        journal.add(KEY, {"seconds": 1.5, "text": "ä\u2028b"})
    again = Journal(tmp_path, SETTINGS, SESSION)
    assert KEY in again
    assert again[KEY] == {"seconds": 1.5, "text": "ä\u2028b"}
    assert len(again) == 1


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS, SESSION) as journal:
        journal.add(KEY, {"seconds": 1.5})
        journal.add((*KEY[:-1], "1"), {"seconds": 1.6})
    path = tmp_path / MEASUREMENTS_NAME
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(tmp_path, SETTINGS, SESSION) as journal:
        assert len(journal) == 1
        journal.add((*KEY[:-1], "1"), {"seconds": 1.7})
    assert [line["seconds"] for line in measurements_in(path)] == [1.5, 1.7]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS, SESSION) as journal:
        journal.add(KEY, {"seconds": 1.5})
    with pytest.raises(ConfigurationError, match=r"max_tokens was 4, is 8.*another --out"):
        Journal(tmp_path, SETTINGS | {"max_tokens": 8}, SESSION)


def test_a_run_that_measured_nothing_binds_nobody_to_its_settings(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS, SESSION):
        pass
    other = SETTINGS | {"max_tokens": 8}
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(SETTINGS))  # as a power cut may leave it
    with Journal(tmp_path, other, SESSION) as journal:
        journal.add(KEY, {"seconds": 1.5})
    assert json.loads((tmp_path / SETTINGS_NAME).read_text()) == other


@pytest.mark.parametrize("text", ["[1, 2]", '{"editor.fontSize": 12}', "3", "{"])
def test_settings_that_are_none_of_ours_are_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS_NAME).write_text(text)
    with pytest.raises(ConfigurationError, match=SETTINGS_NAME):
        Journal(tmp_path, SETTINGS, SESSION)
    assert (tmp_path / SETTINGS_NAME).read_text() == text


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(SETTINGS))
    for line in ("{}", "[]", "7", '{"key": 3}', '{"session": 3}'):
        (tmp_path / MEASUREMENTS_NAME).write_text(line + "\n")
        with pytest.raises(ConfigurationError, match="line 1 is no measurement"):
            Journal(tmp_path, SETTINGS, SESSION)
    (tmp_path / SETTINGS_NAME).unlink()
    (tmp_path / MEASUREMENTS_NAME).write_text('{"key": ["a"]}\n')
    with pytest.raises(ConfigurationError, match=f"no {SETTINGS_NAME}"):
        Journal(tmp_path, SETTINGS, SESSION)


def test_each_measurement_is_known_to_be_of_the_run_that_made_it(tmp_path: Path) -> None:
    plan = plan_of()
    first, second, *_ = (task.key for task in plan.tasks())
    monday, tuesday = environment_of(load=0.1), environment_of(load=3.0)
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(SETTINGS))
    (tmp_path / MEASUREMENTS_NAME).write_text(json.dumps({"key": first}) + "\n")  # of long ago
    for environment, key in ((monday, second), (tuesday, None), (tuesday, ("x",))):
        with Journal(tmp_path, SETTINGS, environment.as_record()) as journal:
            if key is not None:  # a run that measures nothing leaves no trace
                journal.add(key, {})
    journal = Journal(tmp_path, SETTINGS, {})
    assert len(journal.sessions) == 2
    assert journal.session_of(("x",)) == 1
    assert sessions_of(plan, journal) == (Session(None, 1), Session(monday, 1))


def test_versions_of_the_code_are_not_mixed_unasked(tmp_path: Path) -> None:
    old, new = environment_of(), environment_of(commit="fedcba987654+12345678")
    with Journal(tmp_path, SETTINGS, old.as_record()) as journal:
        check_version(journal, new)  # nothing is measured yet
        journal.add(KEY, {})
    journal = Journal(tmp_path, SETTINGS, new.as_record())
    check_version(journal, environment_of(load=5.0, date="another day"))
    with pytest.raises(ConfigurationError, match=r"0123456789ab.*fedcba987654.*--mix-versions"):
        check_version(journal, new)
    (tmp_path / MEASUREMENTS_NAME).write_text(json.dumps({"key": KEY}) + "\n")
    with pytest.raises(ConfigurationError, match="not written down"):
        check_version(Journal(tmp_path, SETTINGS, {}), old)


def test_an_environment_of_another_version_is_a_typed_error(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS, {"cpu": "abacus"}) as journal:
        journal.add(KEY, {})
        with pytest.raises(ConfigurationError, match="environment of a session cannot be read"):
            check_version(journal, environment_of())


def test_a_prompt_begins_where_it_always_does_whatever_else_is_asked() -> None:
    def starts(plan: Plan) -> dict[tuple[str, int], set[float]]:
        found: dict[tuple[str, int], set[float]] = {}
        for task in plan.tasks():
            if task.kind == "timing":
                found.setdefault((task.prompt.text, task.repeat), set()).add(task.starts_at)
        return found

    few, many = starts(plan_of()), starts(plan_of(repeats=4, prompts=("zero", "one", "two")))
    assert all(many[key] == where for key, where in few.items())
    assert all(len(where) == 1 for where in many.values())  # the same for every contender
    assert len(set.union(*many.values())) == len(many)  # and another each time
    assert all(0 <= time < 3600 for time in set.union(*many.values()))


def test_every_contender_meets_the_same_noise() -> None:
    seeds: dict[tuple[str, str, int], set[int]] = {}
    for task in plan_of(rtts=(0, 50, 100), repeats=3).tasks():
        if task.kind == "timing":
            place = (task.link.name, task.prompt.text, task.repeat)
            seeds.setdefault(place, set()).add(task.noise_seed(7))
    assert all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds)
    assert all(0 <= seed < 1 << 64 for seed in set.union(*seeds.values()))
    (task, *_) = plan_of().tasks()
    assert task.noise_seed(7) == task.noise_seed(7) != task.noise_seed(8)


async def test_a_link_is_told_what_to_be_like_and_which_chance_to_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put: list[tuple[str, str, bytes]] = []
    monkeypatch.setattr(ShapedLink, "_ask", lambda _, *asked: put.append(asked))
    spec = named("lossy-wifi").spec
    await ShapedLink("localhost:1", 0).become(spec, (1 << 64) - 1)
    assert put == [("PUT", "/link?seed=18446744073709551615", spec.model_dump_json().encode())]
