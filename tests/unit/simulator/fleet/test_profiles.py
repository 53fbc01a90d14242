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
    assert {"epyc-2core", "laptop", "pi5", "phone"} <= set(shipped("devices"))
    assert {"epyc-2core", "gpu"} <= set(shipped("clouds"))


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
    assert derived.whole.row_seconds == pytest.approx(0.1 * PASSES.row_seconds)
    assert derived.max_rows == 512


def test_a_mixed_pass_pays_one_base() -> None:
    mixed = CLOUD.pass_seconds(whole=(2, 1, 1, 0), deep=(3, 2, 1, 0))
    whole, deep = CLOUD.pass_seconds(whole=(2, 1, 1, 0)), CLOUD.pass_seconds(deep=(3, 2, 1, 0))
    assert mixed == pytest.approx(whole + deep - CLOUD.deep.base_seconds)


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
