"""The doctor on bundles: whole, damaged, incomplete, elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge import doctor_bundle as doctor
from edge.doctor import Level
from shared.model_bundle import ModelBundle, Precision
from tests.cloud_harness import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> ModelBundle:
    """One of its own, without the cloud's half, as a device has it."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle().folder, folder, ignore=shutil.ignore_patterns("cloud"))
    return ModelBundle.load(folder)


def levels(folder: Path, precision: Precision = "float32") -> dict[str, Level]:
    return {finding.check: finding.level for finding in doctor.check_bundle(folder, precision)}


def test_a_whole_bundle(bundle: ModelBundle) -> None:
    assert levels(bundle.folder) == dict.fromkeys(
        ("bundle", "precisions", "exits", "operating points"), Level.OK
    )
    finding = doctor.check_files(bundle, doctor.edge_files(bundle, "float32"))
    assert finding.level is Level.OK
    assert "SHA-256" in finding.detail


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    assert levels(tmp_path) == {"bundle": Level.FAIL}


def test_a_precision_that_it_lacks(bundle: ModelBundle) -> None:
    assert levels(bundle.folder, "int8")["precisions"] is Level.FAIL
    (finding,) = (f for f in doctor.check_bundle(bundle.folder, "int8") if f.advice)
    assert "--precision int8" in finding.advice


def test_exits_that_were_never_measured(bundle: ModelBundle) -> None:
    manifest = bundle.manifest.model_copy(update={"operating_points": ()})
    found = doctor.judge_bundle(ModelBundle(bundle.folder, manifest), "float32")
    assert found[-1].level is Level.WARN
    assert "--target-agreement" in found[-1].advice


def test_a_file_that_is_damaged_cut_or_missing(bundle: ModelBundle) -> None:
    files = doctor.edge_files(bundle, "float32")
    path = bundle.folder / files[-1].path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "damaged" in doctor.check_files(bundle, files).detail
    in_time = doctor.check_files(bundle, files, seconds=0.0)
    assert in_time.level is Level.OK
    assert "0 of" in in_time.detail, "it says how little was compared"
    path.write_bytes(content[:-1])
    assert doctor.check_files(bundle, files).level is Level.FAIL
    path.unlink()
    assert "missing" in doctor.check_files(bundle, files).detail


def test_memory_grows_with_weights_and_positions(bundle: ModelBundle) -> None:
    needed, longest = doctor.memory_needs(bundle, "float32")
    graphs = bundle.manifest.edge["float32"]
    weights = sum(f.size_bytes for f in graphs.files() if f.path.endswith(".weights"))
    assert needed > weights
    # 4 layers and an exit's blocks, keys and values of 32, and 2 segments' hidden states of 64
    layers = 4 + sum(exit_.blocks for exit_ in bundle.manifest.exits)
    assert longest == 512 * 4 * (layers * 2 * 32 + 2 * 64)


async def test_a_test_answer(bundle: ModelBundle) -> None:
    finding = await doctor.check_answer(bundle, "float32", 1)
    assert finding.level is Level.OK
    assert "ms a token" in finding.detail
    graph = bundle.manifest.edge["float32"].segments[0].files.graph
    (bundle.folder / graph.path).unlink()
    assert (await doctor.check_answer(bundle, "float32", 1)).level is Level.FAIL
