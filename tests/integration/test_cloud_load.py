"""The load test: what is recorded is replayed as it was, and its figures say what they should."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cloud_load
from benchmarks.load_recording import Await, Recordings, Show, record
from benchmarks.load_replay import Tally, load
from benchmarks.load_report import (
    CLOUD_ONLY,
    COLLABORATIVE,
    Bound,
    Figure,
    Row,
    compare,
    edges_at,
    markdown_report,
    medians,
    percentile,
)
from edge.context_source import ContextCodec
from edge.generation import Mode
from edge.generation_options import GenerationOptions
from shared.errors import ConfigurationError
from tests.cloud_harness import serving, tiny_bundle
from tests.edge_harness import full_answer

PROMPTS = ("one", "and two")
OPTIONS = (
    GenerationOptions(
        Mode.COLLABORATIVE, threshold=0.3, max_tokens=12, context=ContextCodec.FLOAT32, window=4
    ),
    GenerationOptions(Mode.CLOUD_ONLY, max_tokens=12),
)


async def recorded() -> Recordings:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1

    made = await record(tiny_bundle(), PROMPTS, OPTIONS, "float32", {"threshold": 0.3}, advance)
    assert done == len(made.sessions) == len(PROMPTS) * len(OPTIONS)
    return made


async def test_recordings_are_replayed_as_they_were(tmp_path: Path) -> None:
    made = await recorded()
    made.write(tmp_path / "r.gz")
    read = Recordings.read(tmp_path / "r.gz")
    assert [(s.mode, s.prompt_ids, s.tokens) for s in read.sessions] == [
        (s.mode, s.prompt_ids, s.tokens) for s in made.sessions
    ]
    assert read.about == {"threshold": 0.3, "fingerprint": tiny_bundle().manifest.fingerprint}
    for session in read.sessions:
        assert session.events[0].time == 0
        assert all(isinstance(event.time, float) and event.time >= 0 for event in session.events)
        assert sum(isinstance(event, Show) for event in session.events) == session.tokens
    for session in read.of(CLOUD_ONLY):
        answer = [event.token for event in session.events if isinstance(event, Await)]
        assert answer == full_answer(session.prompt_ids, 12)
    moments: list[str] = []

    async def look(moment: str) -> None:
        moments.append(moment)

    async with serving() as server:
        for mode in (COLLABORATIVE, CLOUD_ONLY):
            tally = await load(
                server.address,
                read.of(mode),
                3,
                speed=4.0,
                seconds=2.0,
                warm_up=0.2,
                began=functools.partial(look, f"{mode} begins"),
                ended=functools.partial(look, f"{mode} ends"),
            )
            assert moments == [f"{mode} begins", f"{mode} ends"]
            moments.clear()
            assert tally.seconds >= 2.0
            assert tally.answers > 0
            assert tally.diverged == 0
            assert tally.tokens == len(tally.gaps) + len(tally.firsts) > 0
            assert min(tally.decisions) > 0
            assert 0 < max(tally.paces) <= max(tally.gaps)
            assert tally.begun_edges == {0, 1, 2}


async def test_another_decision_than_the_recorded_one_is_counted() -> None:
    made = await recorded()
    (session, *_) = made.of(CLOUD_ONLY)
    wrong = [
        replace(event, token=event.token + 1) if isinstance(event, Await) else event
        for event in session.events
    ]

    async def look() -> None:
        pass

    async with serving() as server:
        tally = await load(
            server.address,
            [replace(session, events=tuple(wrong))],
            1,
            speed=9.0,
            seconds=1.0,
            warm_up=0.0,
            began=look,
            ended=look,
        )
    assert tally.diverged > 0
    assert (tally.answers, tally.tokens) == (0, 0)


@pytest.mark.parametrize("text", [b"", b"no gzip at all"])
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r.gz").write_bytes(text)
    with pytest.raises(ConfigurationError, match="holds no recordings"):
        Recordings.read(tmp_path / "r.gz")


def row(contender: str, edges: int, p99: float, pace: float | None = 30.0, repeat: int = 0) -> Row:
    return Row(
        contender, edges, repeat, 10.0, 100, 5, 0, 10.0, 5.0, 2.0, 9.0, 20.0, 50.0, 9.0, p99, pace,
        5, 9.0, 0.01, 0.1,
    )  # fmt: skip


def test_edges_at_a_p99_lie_between_the_measured_ones() -> None:
    rows = [row(COLLABORATIVE, 8, 100), row(COLLABORATIVE, 1, 50), row(COLLABORATIVE, 32, 400)]
    assert edges_at([], Figure.GAP, 49) is None
    assert edges_at(rows, Figure.GAP, 49) == (1.0, Bound.MOST)
    assert edges_at(rows, Figure.GAP, 100) == (8.0, Bound.NONE)
    edges, bound = edges_at(rows, Figure.GAP, 200) or (0.0, Bound.LEAST)
    assert math.isclose(edges, 16.0)
    assert bound is Bound.NONE
    assert edges_at(rows, Figure.GAP, 401) == (32.0, Bound.LEAST)


def test_the_comparison_is_at_equal_p99() -> None:
    rows = [row(COLLABORATIVE, 8, 100), row(COLLABORATIVE, 32, 400)]
    rows += [row(CLOUD_ONLY, 1, 50), row(CLOUD_ONLY, 8, 200), row(CLOUD_ONLY, 32, 900)]
    found = compare(rows, Figure.GAP, CLOUD_ONLY)
    assert [(c.other_edges, round(c.ratio, 3), c.bound) for c in found] == [
        (1, 8.0, Bound.MOST),
        (8, 2.0, Bound.NONE),
        (32, 1.0, Bound.LEAST),
    ]
    text = markdown_report("python -m benchmarks.cloud_load", rows, ["a machine"], [])
    assert "16.0 collaborative edges, 2.00 times" in text
    assert "at least 32.0 collaborative edges" in text
    assert "fewer than 8.0 collaborative edges" in text


def test_repeats_are_told_by_their_medians_and_their_range() -> None:
    rows = []
    for repeat, (ours, theirs) in enumerate([(100, 200), (100, 150), (100, 400)]):
        rows += [row(COLLABORATIVE, 8, ours, None, repeat), row(COLLABORATIVE, 32, 400, 7, repeat)]
        rows += [row(CLOUD_ONLY, 8, theirs, None, repeat)]
    together = medians(rows)
    assert [(r.contender, r.edges, r.gap_p99, r.pace_p99) for r in together] == [
        (COLLABORATIVE, 8, 100, None),
        (COLLABORATIVE, 32, 400, 7),
        (CLOUD_ONLY, 8, 200, None),
    ]
    assert {(r.repeat, r.answers, r.tokens, r.seconds) for r in together} == {(3, 15, 300, 10.0)}
    text = markdown_report("python -m benchmarks.cloud_load", rows, [], [])
    assert "16.0 collaborative edges, 2.00 times (1.50 to at least 4.00)." in text


def test_answers_too_short_for_a_pace_compare_nothing() -> None:
    rows = [row(COLLABORATIVE, 1, 50, None), row(COLLABORATIVE, 8, 100, 40.0)]
    rows += [row(CLOUD_ONLY, 1, 50, None), row(CLOUD_ONLY, 8, 200, 80.0)]
    assert edges_at(rows[:1], Figure.PACE, 39) is None
    assert edges_at(rows[:2], Figure.PACE, 40) == (8.0, Bound.LEAST)
    (found,) = compare(rows, Figure.PACE, CLOUD_ONLY)
    assert (found.other_edges, found.p99, found.edges) == (8, 80.0, 8.0)


def test_an_answers_pace_is_the_mean_of_its_gaps() -> None:
    tally = Tally(gaps_of=[[0.25, 0.75] * 4, [0.25] * 7])
    assert tally.paces == [0.5]


@pytest.mark.parametrize(("percent", "wanted"), [(50, 2), (99, 4), (100, 4), (0, 1)])
def test_percentiles_are_values_that_occurred(percent: float, wanted: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == wanted


def test_the_command_records_measures_keeps_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "one"}) + "\n")
    command = ["--bundle", str(tiny_bundle().folder), "--recording", str(tmp_path / "r.gz")]
    command += ["--prompts", str(prompts), "--precision", "float32", "--max-tokens", "6"]
    command += ["--out", str(tmp_path / "out"), "--edges", "2", "--seconds", "1", "--warm-up", "0"]
    command += ["--repeats", "2"]
    command += ["--threads", "1", "--report", str(tmp_path / "report.md"), "--json"]
    assert cloud_load.main(command) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {r["contender"] for r in rows} >= {COLLABORATIVE, CLOUD_ONLY}
    for measured in rows:
        assert measured["edges"] == 2
        assert measured["cloud_seconds"] > 0
    of_us = [r for r in rows if r["contender"] == COLLABORATIVE]
    assert [r["repeat"] for r in of_us] == [0, 1]
    assert min(r["passes_per_second"] for r in of_us) > 0
    assert min(r["positions_per_pass"] for r in of_us) > 0
    assert "--edges 2" in (tmp_path / "report.md").read_text()
    assert cloud_load.main(command) == 0  # from the journal
    assert json.loads(capsys.readouterr().out)["rows"] == rows
    assert cloud_load.main([*command, "--seconds", "2"]) == 2  # other settings, same folder
