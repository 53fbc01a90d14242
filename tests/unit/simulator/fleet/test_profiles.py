"""Profiles of devices and clouds, shipped and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.errors import ConfigurationError
from simulator.fleet.profiles import (
    DerivedCloud,
    DerivedDevice,
    PassModel,
    Power,
    load_cloud,
    load_device,
    shipped,
)
from tests.fleet_harness import CLOUD, DEVICE, PASSES, POWER


@pytest.mark.parametrize("name", shipped("devices"))
def test_shipped_devices_load_and_say_where_they_are_from(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert len(device.source) > 20
    assert device.measured == ("derived" not in device.source)
    assert all(seconds > 0 for seconds in device.segment_seconds)


@pytest.mark.parametrize("name", shipped("clouds"))
def test_shipped_clouds_load_and_say_where_they_are_from(name: str) -> None:
    cloud = load_cloud(name)
    assert cloud.name == name
    assert cloud.measured == ("derived" not in cloud.source)
    assert cloud.pass_seconds(whole=(1, 1, 1, 0)) > cloud.pass_seconds(deep=(1, 1, 1, 0))


def test_the_shipped_ones() -> None:
    assert {"xeon-2core", "epyc-2core", "laptop", "pi5", "phone"} <= set(shipped("devices"))
    assert {"xeon-2core", "epyc-2core", "gpu"} <= set(shipped("clouds"))


def test_a_derived_device_is_its_base_times_factors() -> None:
    derived = DerivedDevice(
        name="slow",
        base="test-device",
        decode_factor=2.0,
        prefill_factor=3.0,
        source="a test",
        power=POWER,
    ).of(DEVICE)
    assert not derived.measured
    assert derived.level_seconds == pytest.approx([2 * s for s in DEVICE.level_seconds])
    assert derived.prefill_seconds == pytest.approx(3 * DEVICE.prefill_seconds)
    assert "derived, not measured" in derived.source


def test_a_derived_cloud_is_its_base_times_factors() -> None:
    derived = DerivedCloud(
        name="fast",
        base="test-cloud",
        base_factor=0.5,
        row_factor=0.1,
        max_rows=512,
        source="a test",
        power=POWER,
        price_per_hour=1.0,
        price_source="a test",
    ).of(CLOUD)
    assert derived.whole.base_seconds == pytest.approx(0.5 * PASSES.base_seconds)
    rows = [model.rows_seconds(9)[9] - model.base_seconds for model in (derived.whole, PASSES)]
    assert rows[0] == pytest.approx(0.1 * rows[1])
    assert derived.max_rows == 512


def test_a_mixed_pass_reads_the_weights_once() -> None:
    """All rows go through the deep layers together."""
    mixed = CLOUD.pass_seconds(whole=(2, 1, 1, 0), deep=(3, 2, 1, 0))
    whole, deep = CLOUD.pass_seconds(whole=(2, 1, 1, 0)), CLOUD.pass_seconds(deep=(5, 2, 1, 0))
    rows = CLOUD.deep.rows_seconds(2)
    assert mixed == pytest.approx(whole + deep - rows[2])


def test_rows_take_a_line_from_knot_to_knot() -> None:
    model = PASSES.model_copy(
        update={
            "base_seconds": 1.0,
            "knots": (1, 4, 8),
            "beyond_seconds": (0.0, 0.0, 2.0),
        }
    )
    assert model.rows_seconds(10) == pytest.approx([0, 1, 1, 1, 1, 1.5, 2, 2.5, 3, 3.5, 4])
    flat = model.model_copy(update={"knots": (1,), "beyond_seconds": (0.0,)})
    assert flat.rows_seconds(3) == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"knots": [1, 2]}, "differ in length"),
        ({"knots": [2], "beyond_seconds": [0.0]}, "first of the knots is 1"),
        ({"knots": [1], "beyond_seconds": [0.5]}, "first of beyond_seconds 0"),
        ({"knots": [1, 4, 4], "beyond_seconds": [0.0, 0.1, 0.2]}, "do not rise"),
        ({"knots": [1, 4, 8], "beyond_seconds": [0.0, 0.2, 0.1]}, "fall"),
    ],
)
def test_a_pass_model_that_does_not_hold_together(change: dict[str, object], named: str) -> None:
    fields = PASSES.model_dump() | {"knots": [1, 4], "beyond_seconds": [0.0, 0.1]} | change
    if "beyond_seconds" not in change:
        fields["beyond_seconds"] = [0.0]
    with pytest.raises(ValidationError, match=named):
        PassModel.model_validate(fields)


def test_power_rises_with_work() -> None:
    with pytest.raises(ValidationError, match="idle_watts"):
        Power(idle_watts=5.0, active_watts=4.0, source="a test")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"segment_seconds": [0.1]}, "differ in length"),
        ({"prefill_seconds": -1.0}, "prefill_seconds"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_device_that_does_not_hold_together(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    path = tmp_path / "device.json"
    path.write_text(json.dumps(json.loads(DEVICE.model_dump_json()) | change))
    with pytest.raises(ConfigurationError, match=named):
        load_device(str(path))


@pytest.mark.parametrize("text", ["[]", "{", "nothing"])
def test_a_file_that_is_no_profile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cloud.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"cloud\.json"):
        load_cloud(str(path))


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match="pi5"):
        load_device("abacus")
