"""The exporter: what is written, that it is reproducible, and that int4 keeps Q4_1 exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from prepare.base_model import QuantizedMatrix, layer_names
from prepare.bundle_writer import write_bundle
from prepare.edge_matrix import Matrix, round_to_int8, round_to_q4_1, stack
from prepare.exit_weights import untrained_exits
from prepare.onnx_export import export_edge
from prepare.onnx_layers import CONTRIB, GraphBuilder, linear
from prepare.tiny_model import tiny_model
from shared.errors import BundleError, ConfigurationError
from shared.model_bundle import ModelBundle, Precision
from tests.tiny_bundle import tiny_exits, write_tiny_bundle


def _q4_1(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    """A matrix on a Q4_1 grid whose offsets are far from any multiple of the scale."""
    scale = rng.uniform(0.5, 2, (rows, columns // 32)).astype(np.float32)
    offset = rng.uniform(-20, 5, (rows, columns // 32)).astype(np.float32)
    codes = rng.integers(0, 16, (rows, columns), np.uint8)
    blocks = QuantizedMatrix(codes, scale, offset)
    return Matrix(blocks.dequantize(), blocks)


def _q8_0(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    blocks = QuantizedMatrix(codes, rng.uniform(0.1, 1, (rows, columns // 32)).astype("f4"), None)
    return Matrix(blocks.dequantize(), blocks)


def _product(matrix: Matrix, x: np.ndarray, precision: Precision) -> np.ndarray:
    graph = GraphBuilder()
    graph.rename(linear(graph, "x", "m", matrix, precision), "y")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "product",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", x.shape[1]])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", None])],
            list(graph.constants.values()),
        ),
        opset_imports=[onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(CONTRIB, 1)],
        ir_version=10,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def _representable(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Inputs that survive the operator's int8 rounding: whole numbers with 127 in each block."""
    x = rng.integers(-127, 128, (rows, columns)).astype(np.float32)
    x[:, ::32] = 127
    return x


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("make", [_q4_1, _q8_0])
def test_int4_keeps_the_files_own_blocks_exactly(make: object, rows: int) -> None:
    rng = np.random.default_rng(1)
    matrix = make(rng, 40, 96)  # type: ignore[operator]
    x = _representable(rng, rows, 96)
    want = x.astype(np.float64) @ matrix.values.T.astype(np.float64)
    got = _product(matrix, x, "int4")
    np.testing.assert_allclose(got, want, rtol=0, atol=np.abs(want).max() * 2e-6)


def test_rounding_to_int8_errs_by_half_a_step_at_most() -> None:
    rng = np.random.default_rng(2)
    for size in (32, 64, 128):
        values = rng.standard_normal((7, 96)).astype(np.float32)
        blocks = round_to_int8(Matrix(values), size)
        assert blocks.codes.shape == values.shape
        step = np.repeat(blocks.scale, size, axis=1)[:, :96]
        assert (np.abs(blocks.codes * step - values) <= step * 0.5001).all()


def test_q8_0_blocks_pass_through_int8_untouched() -> None:
    matrix = _q8_0(np.random.default_rng(3), 4, 64)
    assert round_to_int8(matrix, 32) is matrix.blocks


def test_rounding_to_q4_1_reaches_both_ends_of_each_block() -> None:
    values = np.random.default_rng(4).standard_normal((6, 64)).astype(np.float32)
    blocks = round_to_q4_1(values)
    assert blocks.offset is not None
    folded, back = values.reshape(6, 2, 32), blocks.dequantize().reshape(6, 2, 32)
    np.testing.assert_allclose(back.min(axis=2), folded.min(axis=2), rtol=1e-6)
    np.testing.assert_allclose(back.max(axis=2), folded.max(axis=2), rtol=1e-5)
    assert (np.abs(back - folded) <= blocks.scale[:, :, None] * 0.5001).all()


def test_constant_blocks_do_not_divide_by_zero() -> None:
    values = np.zeros((2, 64), np.float32)
    values[1] = 3.0
    np.testing.assert_array_equal(round_to_q4_1(values).dequantize(), values)
    np.testing.assert_array_equal(round_to_int8(Matrix(values[:1]), 32).codes, 0)


def test_stacked_blocks_stay_exact_only_where_all_are_of_one_kind() -> None:
    rng = np.random.default_rng(5)
    four, eight = _q4_1(rng, 4, 64), _q8_0(rng, 4, 64)
    joined = stack([four, four])
    assert joined.blocks is not None
    np.testing.assert_array_equal(joined.blocks.dequantize(), joined.values)
    assert stack([four, eight]).blocks is None
    assert stack([four, Matrix(four.values)]).blocks is None


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_the_same_model_gives_the_same_bytes(tmp_path: Path, precision: Precision) -> None:
    one = export_edge(tiny_model(), tiny_exits(), tmp_path / "a", precision, full_depth=True)
    two = export_edge(tiny_model(), tiny_exits(), tmp_path / "b", precision, full_depth=True)
    assert one == two
    other = export_edge(tiny_model(1), tiny_exits(1), tmp_path / "c", precision, full_depth=True)
    assert other.segments[0].files.weights.sha256 != one.segments[0].files.weights.sha256
    assert other.embedding.sha256 != one.embedding.sha256


def test_large_constants_lie_beside_the_graph_each_on_its_own_page(tmp_path: Path) -> None:
    edge = export_edge(tiny_model(), tiny_exits(), tmp_path, "float32", full_depth=False)
    files = edge.segments[0].files
    graph = onnx.load(tmp_path / files.graph.path, load_external_data=False).graph
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {t.name for t in outside} >= {"block_0.qkv.weight", "block_1.down.weight"}
    for tensor in outside:
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == "layers_0_2.weights"
        assert int(where["offset"]) % 4096 == 0
    inside = [t for t in graph.initializer if t not in outside]
    assert max(len(t.raw_data) for t in inside) < 4096
    whole = onnx.load(tmp_path / files.graph.path)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    down = tiny_model().weights[layer_names(1)["down"]]
    np.testing.assert_array_equal(found["block_1.down.weight"], down.T)


def test_segments_end_at_the_exits(tmp_path: Path) -> None:
    shallow = export_edge(tiny_model(), tiny_exits(), tmp_path, "int8", full_depth=False)
    assert [(s.first_layer, s.last_layer) for s in shallow.segments] == [(0, 2), (2, 4)]
    assert shallow.head is None
    deep = export_edge(tiny_model(), tiny_exits(), tmp_path, "int8", full_depth=True)
    assert [(s.first_layer, s.last_layer) for s in deep.segments] == [(0, 2), (2, 4), (4, 6)]
    assert deep.head is not None


@pytest.mark.parametrize("layers", [[], [6], [4, 2]])
def test_exits_outside_the_model_are_refused(tmp_path: Path, layers: list[int]) -> None:
    exits = untrained_exits(tiny_model(), layers)
    with pytest.raises(ConfigurationError, match="exits at layers"):
        export_edge(tiny_model(), exits, tmp_path, "float32", full_depth=False)


def test_a_bundle_verifies_and_its_fingerprint_leaves_the_precision_out(tmp_path: Path) -> None:
    one = write_tiny_bundle(tmp_path / "one", precisions=["float32"])
    two = write_tiny_bundle(tmp_path / "two", precisions=["int8", "int4"], full_depth=False)
    one.verify()
    two.verify()
    assert one.manifest.fingerprint == two.manifest.fingerprint
    assert list(two.manifest.edge) == ["int8", "int4"]
    other = write_tiny_bundle(tmp_path / "other", seed=1, precisions=["float32"])
    assert other.manifest.fingerprint != one.manifest.fingerprint


def test_a_bundle_of_an_older_format_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    bundle = write_tiny_bundle(folder, precisions=["float32"])
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(BundleError, match=r"format version 1, .*: run `tandem prepare`"):
        ModelBundle.load(folder)
    again = write_tiny_bundle(folder, precisions=["float32"])
    assert again.manifest == bundle.manifest


def test_a_failed_write_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder, precisions=["float32"])

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("prepare.bundle_writer.export_edge", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tiny_bundle(folder, seed=1, precisions=["float32"])
    ModelBundle.load(folder).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder, precisions=["float32", "int8"])
    write_tiny_bundle(folder, precisions=["int8"])
    assert not (folder / "edge" / "float32").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_input_that_cannot_make_a_bundle_is_refused(tmp_path: Path) -> None:
    model, exits = tiny_model(), tiny_exits()
    with pytest.raises(ConfigurationError, match="precision"):
        write_bundle(model, exits, tmp_path / "b", precisions=[], full_depth=False)
    stray = replace(exits, base_sha256="0" * 64)
    with pytest.raises(ConfigurationError, match="other weights"):
        write_bundle(model, stray, tmp_path / "b", precisions=["int8"], full_depth=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="not a bundle"):
        write_bundle(model, exits, tmp_path / "home", precisions=["int8"], full_depth=False)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
