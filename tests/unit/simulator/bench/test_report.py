"""From measurements to figures, to where Tandem loses, to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.bench.environment import look_around
from simulator.bench.losses import find_losses
from simulator.bench.outputs import write_outputs
from simulator.bench.plots import cloud_part, uploads
from simulator.bench.report import write_report
from tests.bench_harness import TOKENS, context_of, filled, plan_of
from tests.cloud_harness import tiny_bundle


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
    assert row.cloud_layer_share == pytest.approx(2 * 6 / (6 * (3 + 2 + 2 * TOKENS)))
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
        "`blocking@0.8` is slower than `cloud-only` on 1 of 2 links.",
        "`blocking@0.8` is **slower than `llama.cpp` on every link**.",
        "`standalone` is nowhere slower than `cloud-only`.",
        "Abacus 9, 2 cores (4 logical)",
        "Left out: `vllm-cpu`: not installed.",
        "## Link 100ms-10mbit",
        "| 100 ms | **1.29** |",
        "13.81%",
        "second hand",
    ):
        assert wanted in text, wanted
    assert "busy" not in text
    assert "busy when this began" in write_report(results, context_of(load=3.0))


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
    assert record["environment"]["processor"] == "Abacus 9"
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
    events = [{"time": 1.0, "size": 12_500}, {"time": 1.005, "size": 12_500}]
    (first, second) = uploads(events, link)
    assert first == pytest.approx((1.0, 1.0 + 0.010 + 0.050))
    assert second == pytest.approx((1.005, 1.0 + 0.020 + 0.050))


def test_the_clouds_part_comes_after_what_it_needs() -> None:
    wait = {"start": 1.0, "stop": 2.0, "cloud_seconds": 0.2}
    assert cloud_part(wait, []) == pytest.approx((1.4, 1.6))
    assert cloud_part(wait, [(0.9, 1.6)]) == pytest.approx((1.7, 1.9))


def test_the_environment_names_no_machine_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = look_around(tiny_bundle())
    assert environment.cores >= 1
    assert environment.packages["numpy"]
    assert environment.bundle["layers"] == 6
    text = json.dumps(environment.as_record())
    assert str(Path.home()) not in text
    assert str(tiny_bundle().folder) not in text
