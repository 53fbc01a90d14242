"""The bundle's manifest and files: everything that is wrong is named before it is used."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BundleError
from shared.model_bundle import (
    MANIFEST_NAME,
    BundleFile,
    ModelBundle,
    cache_folder,
    default_bundle_folder,
    describe_file,
    sha256_of,
)
from tests.cloud_harness import tiny_bundle

RIGHT: dict[str, Any] = json.loads((tiny_bundle().folder / MANIFEST_NAME).read_bytes())
Change = Callable[[dict[str, Any]], None]


def load(folder: Path, manifest: Any) -> ModelBundle:
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return ModelBundle.load(folder)


def sets(value: Any, *path: str | int) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value

    return change


def test_a_right_manifest_is_read(tmp_path: Path) -> None:
    bundle = load(tmp_path, RIGHT)
    assert bundle.manifest == tiny_bundle().manifest
    assert bundle.manifest.architecture.kv_size == 32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (sets("Tiny", "name"), "name: "),
        (sets("ab", "fingerprint"), "fingerprint: "),
        (sets(0, "architecture", "layers"), "architecture.layers: "),
        (sets("many", "architecture", "heads"), "architecture.heads: "),
        (sets(0, "architecture", "rope_theta"), "architecture.rope_theta: "),
        (sets([], "tokenizer", "stop_token_ids"), "tokenizer.stop_token_ids: "),
        (sets(-1, "tokenizer", "file", "size_bytes"), "tokenizer.file.size_bytes: "),
        (sets("xyz", "tokenizer", "file", "sha256"), "tokenizer.file.sha256: "),
        (sets(1, "extra"), "extra: "),
        (sets(1, "tokenizer", "extra"), "tokenizer.extra: "),
        (sets("zero", "exits", 0, "name"), "exits.0.name: "),
        (sets([], "edge", "float64"), "edge.float64"),
        (lambda m: m.pop("source"), "source: "),
        (lambda m: m["cloud"].pop("weights"), "cloud.weights: "),
        (sets(99, "cut"), "below the last layer"),
        (sets(1, "cut"), "the cut is the layer of the first exit"),
        (lambda m: m["exits"].reverse(), "rising order"),
        (lambda m: m["edge"]["float32"]["exits"].pop(), "one graph per exit"),
        (sets(1, "edge", "float32", "segments", 1, "first_layer"), "segments must join"),
        (sets([0.0, 0.0], "exits", 0, "calibration", "raw"), "raw must rise"),
        (sets([0.9, 0.1], "exits", 0, "calibration", "confidence"), "must not fall"),
        (sets([0.0, 1.5], "exits", 0, "calibration", "confidence"), r"lies in \[0, 1\]"),
        (sets([0.0, 0.1, 0.2], "exits", 0, "calibration", "raw"), "differ in length"),
    ],
)
def test_a_manifest_that_does_not_hold_names_the_field(
    tmp_path: Path, change: Change, named: str
) -> None:
    manifest = copy.deepcopy(RIGHT)
    change(manifest)
    with pytest.raises(BundleError, match=named):
        load(tmp_path, manifest)


@pytest.mark.parametrize(
    "path",
    [
        "../tokenizer.json",
        "cloud/../../tokenizer.json",
        "/etc/passwd",
        "cloud//config.json",
        ".hidden",
        "cloud/.hidden",
        "C:\\windows",
        "a\\b",
        "tokenizer.json\n",
        "",
        "a" * 201,
    ],
)
def test_paths_never_leave_the_folder(tmp_path: Path, path: str) -> None:
    manifest = copy.deepcopy(RIGHT)
    manifest["tokenizer"]["file"]["path"] = path
    with pytest.raises(BundleError, match=r"tokenizer\.file\.path"):
        load(tmp_path, manifest)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_version_is_told_before_anything_else(tmp_path: Path, version: Any) -> None:
    with pytest.raises(
        BundleError, match=r"format version .* this release reads 2: run `tandem prepare`"
    ):
        load(tmp_path, {"format_version": version, "unknown": 1})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"format_version": 1'])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(BundleError, match="cannot be read"):
        ModelBundle.load(tmp_path)


@pytest.mark.parametrize("manifest", [[], "text", 3, None])
def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path, manifest: Any) -> None:
    with pytest.raises(BundleError, match="manifest: "):
        load(tmp_path, manifest)


def test_no_bundle_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="run `tandem prepare`, or name one with --bundle"):
        ModelBundle.load(tmp_path / "none")


def test_a_missing_and_a_cut_file_are_named(tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle().folder, tmp_path / "bundle")
    bundle = ModelBundle.load(tmp_path / "bundle")
    file = bundle.manifest.tokenizer.file
    path = bundle.path(file)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"tokenizer.json has {file.size_bytes - 1} bytes"):
        bundle.path(file)
    path.unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        bundle.path(file)


def test_verify_finds_damage_in_every_file(tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle().folder, tmp_path / "bundle")
    bundle = ModelBundle.load(tmp_path / "bundle")
    bundle.verify()
    files = list(bundle.files())
    assert len(files) == len({file.path for file in files}) >= 7
    present = {path for path in bundle.folder.rglob("*") if path.is_file()}
    unnamed = {path.name for path in present - {bundle.path(file) for file in files}}
    assert unnamed == {MANIFEST_NAME, "exits.json", "exits.safetensors"}
    for file in files:
        path = bundle.path(file)
        right = path.read_bytes()
        path.write_bytes(bytes([right[0] ^ 1]) + right[1:])
        with pytest.raises(BundleError, match="damaged"):
            bundle.verify()
        path.write_bytes(right)


def test_a_precision_that_was_not_prepared_says_which_were() -> None:
    bundle = tiny_bundle()
    assert len(bundle.graphs("float32").exits) == 2
    with pytest.raises(BundleError, match=r"no int4 edge \(it has: float32\).*--precision int4"):
        bundle.graphs("int4")


def test_a_file_is_described_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "b.bin"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(path) == digest
    assert describe_file(tmp_path, path) == BundleFile(path="a/b.bin", sha256=digest, size_bytes=3)


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert default_bundle_folder().parent == tmp_path / "bundles"
