"""A bundle is checked before any of it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import BundleError
from shared.model_bundle import (
    MANIFEST_NAME,
    BundleFile,
    Calibration,
    ModelBundle,
    cache_folder,
    default_bundle_folder,
    describe_file,
    sha256_of,
)
from tests.cloud_harness import tiny_bundle

SHA = "0" * 64
Json = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny bundle that may be damaged."""
    return shutil.copytree(tiny_bundle().folder, tmp_path / "bundle")


def edit(folder: Path, change: Callable[[Json], object]) -> None:
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_good_bundle_loads_and_verifies(folder: Path) -> None:
    bundle = ModelBundle.load(folder)
    bundle.verify()
    assert bundle.manifest == tiny_bundle().manifest
    names = [file.path for file in bundle.files()]
    assert len(names) == len(set(names))
    assert "cloud/model.safetensors" in names


def test_no_bundle_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tandem prepare"):
        ModelBundle.load(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 1}', "\xff"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        ModelBundle.load(folder)


CHANGES: dict[str, tuple[Callable[[Json], object], str]] = {
    "version": (lambda m: m.update(format_version=2), "version 2"),
    "unknown key": (lambda m: m.update(extra=1), "extra"),
    "missing key": (lambda m: m.pop("cut"), "cut"),
    "fingerprint": (lambda m: m.update(fingerprint="abc"), "fingerprint"),
    "name": (lambda m: m.update(name="../up"), "name"),
    "layers": (lambda m: m["architecture"].update(layers=0), "layers"),
    "infinite theta": (lambda m: m["architecture"].update(rope_theta=1e999), "rope_theta"),
    "cut beyond": (lambda m: m.update(cut=6), "last layer"),
    "cut elsewhere": (lambda m: m.update(cut=3), "first exit"),
    "exits fall": (lambda m: m["exits"].reverse(), "rising order"),
    "graphs missing": (lambda m: m["edge"]["float32"]["exits"].pop(), "one graph per exit"),
    "segments apart": (
        lambda m: m["edge"]["float32"]["segments"][1].update(first_layer=3),
        "must join",
    ),
    "no stop token": (lambda m: m["tokenizer"].update(stop_token_ids=[]), "stop_token_ids"),
    "calibration": (
        lambda m: m["exits"][0].update(calibration={"raw": [0, 1], "confidence": [1, 0]}),
        "must not fall",
    ),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES.keys())
def test_a_field_that_does_not_hold_is_named(
    folder: Path, change: Callable[[Json], object], named: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=named):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "",
        ".",
        "..",
        ".hidden",
        "a/.b",
        "a\\b",
        "a/",
        "a\n",
        "a\n",
    ],
)
def test_paths_never_leave_the_folder(folder: Path, path: str) -> None:
    with pytest.raises(ValidationError):
        BundleFile(path=path, sha256=SHA, size_bytes=0)
    edit(folder, lambda m: m["cloud"]["weights"].update(path=path))
    with pytest.raises(BundleError, match=r"cloud\.weights\.path"):
        ModelBundle.load(folder)


@pytest.mark.parametrize("path", ["tokenizer.json", "edge/int8/exit1.onnx", "a-b_c/d.e.f"])
def test_ordinary_paths_are_taken(path: str) -> None:
    assert BundleFile(path=path, sha256=SHA, size_bytes=0).path == path


def test_a_missing_file_is_named(folder: Path) -> None:
    bundle = ModelBundle.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        bundle.path(bundle.manifest.tokenizer.file)


def test_a_cut_off_file_is_named(folder: Path) -> None:
    bundle = ModelBundle.load(folder)
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="bytes"):
        bundle.path(bundle.manifest.tokenizer.file)


def test_a_flipped_bit_is_found(folder: Path) -> None:
    bundle = ModelBundle.load(folder)
    path = folder / "cloud" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged"):
        bundle.verify()


def test_an_absent_precision_names_those_there_are(folder: Path) -> None:
    bundle = ModelBundle.load(folder)
    assert bundle.graphs("float32").segments
    with pytest.raises(BundleError, match=r"no int8 edge .*float32"):
        bundle.graphs("int8")


def test_a_file_is_described_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    file = describe_file(tmp_path, path)
    assert (file.path, file.size_bytes, file.sha256) == ("a/b.bin", 3, sha256_of(path))
    assert file.sha256.startswith("ba7816bf")


@pytest.mark.parametrize(
    ("raw", "confidence"),
    [((0.0,), (0.0,)), ((0.0, 1.0), (0.0, 0.5, 1.0)), ((0.5, 0.5), (0.0, 1.0)), ((0, 1), (0, 2))],
)
def test_a_calibration_must_be_a_monotone_map(
    raw: tuple[float, ...], confidence: tuple[float, ...]
) -> None:
    with pytest.raises(ValidationError):
        Calibration(raw=raw, confidence=confidence)


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert default_bundle_folder().is_relative_to(tmp_path)
