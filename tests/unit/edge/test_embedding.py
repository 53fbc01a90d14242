"""The embedding file: rows equal the dequantized weights; what does not fit is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.embedding import EmbeddingTable
from edge.exit_model import ExitModel
from prepare.edge_files import write_embedding
from prepare.edge_matrix import Matrix, round_to_int8
from prepare.tiny_model import TINY_ARCHITECTURE
from shared.embedding_file import quantized_record
from shared.errors import BundleError
from shared.model_bundle import Architecture, Precision
from tests.tiny_bundle import write_tiny_bundle

ARCH = TINY_ARCHITECTURE
IDS = np.array([5, 271, 0, 5, 130], np.int64)


def _matrix(columns: int = ARCH.hidden_size) -> Matrix:
    rng = np.random.default_rng(11)
    return Matrix(rng.standard_normal((ARCH.vocabulary_size, columns)).astype(np.float32))


def _q8_0() -> Matrix:
    blocks = round_to_int8(_matrix(), 32)
    return Matrix(blocks.dequantize(), blocks)


def _table(folder: Path, matrix: Matrix, precision: Precision, **other: int) -> EmbeddingTable:
    (folder / "edge").mkdir(exist_ok=True)
    file = write_embedding(matrix, folder, precision)
    arch = Architecture(**(ARCH.model_dump() | other))
    return EmbeddingTable(folder / file.path, arch)


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_rows_of_a_q8_0_table_are_its_weights_to_the_bit(
    tmp_path: Path, precision: Precision
) -> None:
    matrix = _q8_0()
    rows = _table(tmp_path, matrix, precision).rows(IDS)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows.view(np.uint32), matrix.values[IDS].view(np.uint32))
    assert [path.name for path in (tmp_path / "edge").iterdir()] == ["embedding_int8.npy"]


def test_a_float32_table_is_kept_as_it_is(tmp_path: Path) -> None:
    matrix = _matrix()
    rows = _table(tmp_path, matrix, "float32").rows(IDS)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, matrix.values[IDS])


def test_a_last_block_may_be_cut_short(tmp_path: Path) -> None:
    matrix = _matrix(columns=40)
    rows = _table(tmp_path, matrix, "int8", hidden_size=40).rows(IDS)
    blocks = round_to_int8(matrix, 32)
    want = blocks.codes * np.repeat(blocks.scale, 32, axis=1)[:, :40]
    np.testing.assert_array_equal(rows, want[IDS])


def test_no_tokens_are_no_rows(tmp_path: Path) -> None:
    assert _table(tmp_path, _matrix(), "int8").rows(np.array([], np.int64)).shape == (0, 64)


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _damage_header(path: Path) -> None:
    path.write_bytes(b"\0" * 16 + path.read_bytes()[16:])


def _damage_header_text(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:10] + b"{" * 40 + data[50:])


def _saves(values: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda path: np.save(path, values, allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (Path.unlink, "No such file"),
        (_shorten, "bytes instead of"),
        (_damage_header, "magic"),
        (_damage_header_text, "header"),
        (lambda path: path.write_bytes(b""), "header"),
        (_saves(np.zeros(271, quantized_record(64))), "not 272 rows of 64"),
        (_saves(np.zeros(272, quantized_record(32))), "not 272 rows of 64"),
        (_saves(np.zeros((272, 64), np.float64)), "float64"),
        (_saves(np.zeros((272, 32), np.float32)), "not 272 rows of 64"),
        (_saves(np.full((272, 64), None)), "object"),
        (_saves(np.asfortranarray(np.zeros((272, 64), np.float32))), "column by column"),
    ],
)
def test_a_file_that_does_not_fit_says_what_to_do(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    _table(tmp_path, _matrix(), "int8")
    path = tmp_path / "edge" / "embedding_int8.npy"
    damage(path)
    with pytest.raises(BundleError, match=rf"{re.escape(str(path))} .*{named}.*`tandem prepare"):
        EmbeddingTable(path, ARCH)


def test_a_file_that_shrinks_under_a_generation_is_noticed(tmp_path: Path) -> None:
    table = _table(tmp_path, _matrix(), "int8")
    path = tmp_path / "edge" / "embedding_int8.npy"
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BundleError, match="shorter"):
        table.rows(IDS)


def test_a_bundle_that_is_replaced_does_not_change_an_open_table(tmp_path: Path) -> None:
    matrix = _matrix()
    table = _table(tmp_path, matrix, "float32")
    (tmp_path / "edge").rename(tmp_path / "old")
    _table(tmp_path, replace(matrix, values=matrix.values + 1), "float32")
    np.testing.assert_array_equal(table.rows(IDS), matrix.values[IDS])


def test_a_bundle_without_its_embedding_does_not_load(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", precisions=["int8"], full_depth=False)
    path = bundle.path(bundle.graphs("int8").embedding)
    _shorten(path)
    with pytest.raises(BundleError, match=r"embedding_int8\.npy has .* bytes.*tandem prepare"):
        ExitModel(bundle, "int8")
    path.unlink()
    with pytest.raises(BundleError, match=r"embedding_int8\.npy is missing: run `tandem prepare`"):
        ExitModel(bundle, "int8")
