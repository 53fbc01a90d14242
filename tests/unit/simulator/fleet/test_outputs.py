"""What the commands print, write and draw."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner, Result

from shared.cli import build_app
from shared.errors import ConfigurationError
from simulator import fleet_cli
from simulator.fleet import outputs, plots
from simulator.fleet.capacity import Capacity, Scenario
from simulator.fleet.recordings import save_recording
from simulator.fleet.report import digits, dollars, fleet_report, milliseconds
from simulator.fleet.simulation import FleetRun, run_fleet
from simulator.fleet.summary import summarise
from simulator.fleet.target import parse_target
from tests.fleet_harness import invented_recording, make_config, write_machines

RECORDING = invented_recording()
FOUND = Capacity(
    policy="cloud-only",
    rtt_ms=40.0,
    edges=1234,
    limited=False,
    measured_seconds=0.05,
    tokens_per_second=100.0,
    utilisation=0.5,
    dollars_per_million_tokens=1234.5,
    agreement=1.0,
    bytes_up_per_token=3.0,
    plans={},
)
NONE = replace(FOUND, policy="blocking", edges=0, dollars_per_million_tokens=None)
MORE = replace(FOUND, policy="verified", edges=20_000, limited=True)


def fleet(folder: Path, *names: str, **others: Any) -> FleetRun:
    groups = [{"count": 2, "policy": "blocking", "name": name} for name in names]
    return run_fleet(make_config(folder, groups, **others), seed=0, recording=RECORDING)


def printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(table)
    return console.export_text()


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["simulate", *arguments], env={"COLUMNS": "400"})


def asked(folder: Path, *more: str) -> list[str]:
    """A question about capacity that is answered at once."""
    device, cloud = write_machines(folder)
    recording = folder / "recording.npz"
    save_recording(RECORDING, recording)
    return [
        "capacity", "--cloud", cloud, "--device", device, "--recording", str(recording),
        "--policies", "cloud-only", "--link", "wifi", "--most", "1", *more,
    ]  # fmt: skip


def scenario(folder: Path, **cloud: Any) -> Scenario:
    device, profile = write_machines(folder)
    edges = {"device": device, "link": "4g"}
    target = parse_target("p95 time per token <= 100 ms")
    return Scenario(edges, {"profile": profile} | cloud, {}, target)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures by name, laid out."""
    figures = {}

    def keep(figure: Figure, folder: Path, name: str) -> str:
        figure.savefig(io.BytesIO())
        figures[name] = figure
        return name

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", ["phones [/4g]", "[bold]phones", "a :smile:"])
def test_names_of_groups_and_fleets_are_no_markup(tmp_path: Path, name: str) -> None:
    text = printed(outputs.fleet_table(summarise(fleet(tmp_path, name, name=f"all {name}"))))
    assert f"all {name}: " in text
    assert f"\n{name} " in text


def test_the_fleet_command_prints_names_and_paths_as_they_are(tmp_path: Path) -> None:
    device, cloud = write_machines(tmp_path)
    out = tmp_path / "out [/x]"
    config = {
        "name": "fleet [x]",
        "duration_s": 60,
        "cloud": {"profile": cloud},
        "edges": [{"name": "$\\phones$ [/4g]", "device": device, "count": 3, "policy": "blocking"}],
    }
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(config))
    done = simulate("fleet", "--config", str(path), "--out", str(out))
    assert done.exit_code == 0, done.output
    for words in ("fleet [x]: ", "$\\phones$ [/4g]", f"wrote {out / 'fleet.json'}"):
        assert words in done.output


def test_the_capacity_command_prints_paths_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "mine [/a]"
    folder.mkdir(parents=True)
    out = tmp_path / "[bold]out"
    done = simulate(*asked(folder, "--out", str(out)))
    assert done.exit_code == 0, done.output
    title = "".join(done.output.split("policy")[0].split())
    assert "".join(str(folder / "cloud.json").split()) in title
    assert f"wrote {out / 'capacity.json'}" in done.output
    assert (out / "edges.png").exists()


def test_a_progress_bar_takes_any_name() -> None:
    with fleet_cli._progress() as (progress, task):
        progress.update(task, completed=0.5, description="fleet [/x]")
        shown = Console(file=io.StringIO(), width=200, record=True)
        shown.print(progress.get_renderable())
    assert "fleet [/x]" in shown.export_text()


def test_a_column_says_which_percentile_it_is(tmp_path: Path) -> None:
    text = printed(outputs.fleet_table(summarise(fleet(tmp_path, "near"))))
    assert "first token p50" in text


def test_the_report_says_what_the_price_is_for(tmp_path: Path) -> None:
    report = fleet_report(summarise(fleet(tmp_path, "near")))
    assert "replica hours at $0.10 an hour (invented for a test)" in report


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.9996, "1,000"), (0.99949, "999"), (0.01234, "12.3"), (1.5, "1.50 s"),
        (2e-8, "0.00002"), (0.0, "0"),
    ],
)  # fmt: skip
def test_milliseconds_have_no_exponent(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


def test_figures_have_no_exponent() -> None:
    assert [digits(v) for v in (1234.5, 0.1, 12.0, 1e7)] == ["1,230", "0.1", "12", "10,000,000"]
    assert digits(152.0, 2) == "150"
    shown = [dollars(v) for v in (None, 0.0, 0.1, 0.1234, 0.00001, 0.9999, 1234.5)]
    assert shown == ["-", "$0.00", "$0.10", "$0.123", "$0.00001", "$1.00", "$1,234.50"]


def test_no_bar_for_a_policy_that_serves_nobody(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    plots.draw_capacities([FOUND, NONE, MORE], "a title", tmp_path)
    for name in ("edges.png", "cost.png"):
        axes = drawn[name].axes[0]
        assert len(axes.patches) == 2
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["cloud-only", "blocking", "verified"]
    assert texts(drawn["edges.png"]) == ["1,234", "none", "> 20,000"]
    assert texts(drawn["cost.png"]) == ["1,234.50", "none", "1,234.50"]


def test_a_figure_without_any_bar_is_drawn(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    plots.draw_capacities([NONE], "a title", tmp_path)
    assert texts(drawn["cost.png"]) == ["none"]


def test_lower_bounds_are_marked_against_the_round_trip(
    tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    plots.draw_capacities([FOUND, MORE, replace(FOUND, rtt_ms=80.0)], "a title", tmp_path)
    assert texts(drawn["edges-against-round-trip.png"]) == ["> 20,000"]


def test_titles_stay_within_the_figure(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    title = "2 × $profiles/clouds/" + "long-name-" * 12 + "$.json, pi5 on 4g: " + "words " * 20
    plots.draw_capacities([FOUND, replace(FOUND, rtt_ms=80.0)], title, tmp_path)
    assert len(drawn) == 3
    for figure in drawn.values():
        text = figure.get_suptitle()
        assert text.count("\\$") == 2
        shown = [
            found
            for found in figure.findobj(Text)
            if isinstance(found, Text) and found.get_text() == text
        ]
        box, whole = shown[0].get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        assert box.y0 >= figure.axes[0].get_window_extent().y1


def test_a_legend_names_every_group(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    names = ["_phones", "a $\\pi$ 5"]
    plots.draw_fleet(fleet(tmp_path, *names), tmp_path)
    legend = drawn["time-per-token.png"].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().replace("\\$", "$") for text in legend.get_texts()] == names


def test_a_capacity_says_what_it_rests_on(tmp_path: Path) -> None:
    question = scenario(tmp_path)
    told = json.loads(outputs.capacity_json([FOUND], question, RECORDING))
    assert told["sources"] == {
        "cloud": {
            "name": "test-cloud",
            "measured": False,
            "source": "invented for a test",
            "price_per_hour": 0.1,
            "price_source": "invented for a test",
        },
        "device": {"name": "test-device", "measured": False, "source": "invented for a test"},
        "recording": {"bundle": "test", "prompts": "invented for a test"},
    }
    assert not any("Energy" in line for line in told["assumptions"])
    assert any("Cost" in line for line in told["assumptions"])
    outputs.write_capacities([FOUND], question, RECORDING, tmp_path / "out")
    report = (tmp_path / "out" / "capacity.md").read_text()
    for line in (
        "- Cloud test-cloud (derived): invented for a test",
        "- Device test-device (derived): invented for a test",
        "- Price: $0.10 for a replica's hour (invented for a test)",
        "- Answers recorded from test (invented for a test)",
    ):
        assert line in report
    assert "Energy" not in report


def test_a_price_that_was_named_is_told_as_such(tmp_path: Path) -> None:
    question = scenario(tmp_path, price_per_hour=0.0)
    cloud = outputs.capacity_sources(question, RECORDING)["cloud"]
    assert cloud["price_per_hour"] == 0.0
    assert cloud["price_source"] != "invented for a test"
    assert "$0.00 an hour" in outputs.capacity_line(question, RECORDING)


def test_the_capacity_command_changes_its_link(tmp_path: Path) -> None:
    changes = ["--rtt", "80", "--up", "5", "--down", "20"]
    done = simulate(*asked(tmp_path, *changes, "--link", "train", "--json"))
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    edges = told["edges"]
    assert [edges[key] for key in ("rtt_ms", "up_mbit", "down_mbit")] == [80.0, 5.0, 20.0]
    assert told["capacities"][0]["rtt_ms"] == 80.0
    shown = simulate(*asked(tmp_path, *changes)).output
    assert "wifi (round trip 80 ms, 5 Mbit/s up, 20 Mbit/s down)" in shown
    assert "cloud test-cloud (derived), $0.10 an hour; device test-device (derived)" in shown


@pytest.mark.parametrize("change", [["--rtt", "-1"], ["--up", "0"], ["--down", "0"]])
def test_a_link_that_carries_nothing_is_refused(tmp_path: Path, change: list[str]) -> None:
    done = simulate(*asked(tmp_path, *change))
    assert done.exit_code == 2
    assert change[0] in done.output


def test_no_policy_is_said_so(tmp_path: Path) -> None:
    done = simulate(*asked(tmp_path, "--policies", ","))
    assert isinstance(done.exception, ConfigurationError)
    assert "--policies names no policy" in str(done.exception)


def test_a_policy_named_twice_is_asked_about_once(tmp_path: Path) -> None:
    done = simulate(*asked(tmp_path, "--policies", "cloud-only,cloud-only", "--json"))
    assert len(json.loads(done.output)["capacities"]) == 1


def test_the_line_has_no_exponent(tmp_path: Path) -> None:
    summary = summarise(fleet(tmp_path, "near"))
    summary["energy"]["joules_per_token"] = 152.3
    assert "; 150 J a token" in outputs.fleet_line(summary)
