"""The edge's model against a torch reference, and against itself under every order of reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cloud.llama_block import LlamaBlock, RmsNorm, Rotary, causal_attention
from edge import exit_model as exit_model_module
from edge.exit_model import ExitModel
from prepare.base_model import EMBEDDING, FINAL_NORM, BaseModel, layer_names
from prepare.bundle_writer import write_bundle
from prepare.edge_matrix import Matrix, round_to_int8, round_to_q4_1
from prepare.exit_weights import untrained_exits
from prepare.tiny_model import tiny_model
from shared.errors import BudgetExceededError, BundleError, ConfigurationError
from shared.model_bundle import ModelBundle, Precision
from tests.tiny_bundle import tiny_exits, write_tiny_bundle

FloatArray = npt.NDArray[np.float32]
TOKENS = np.random.default_rng(7).integers(0, 272, 150).tolist()


def assert_same(got: FloatArray, want: FloatArray, tolerance: float = 3e-4) -> None:
    """Equal but for the order of float32 sums (a wrong or missing position errs by 0.1 and up)."""
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def model(bundle: ModelBundle) -> ExitModel:
    return ExitModel(bundle, "float32", full_depth=True)


@pytest.fixture(scope="module")
def reference() -> dict[str, FloatArray]:
    """Per position of ``TOKENS``: hidden states after each layer, exit logits, full logits."""
    return _reference(tiny_model())


def _reference(base: BaseModel) -> dict[str, FloatArray]:
    arch = base.architecture
    cos, sin = Rotary(arch).at(torch.arange(len(TOKENS)), torch.float32)
    embedding = torch.from_numpy(base.weights[EMBEDDING])

    def block(hidden: torch.Tensor, tensors: dict[str, FloatArray]) -> torch.Tensor:
        layer = LlamaBlock(arch)
        layer.load_state_dict({f"{k}.weight": torch.from_numpy(v) for k, v in tensors.items()})
        out: torch.Tensor = layer(hidden, cos, sin, causal_attention)
        return out

    def logits(hidden: torch.Tensor, norm: FloatArray, rows: torch.Tensor) -> FloatArray:
        layer = RmsNorm(arch.hidden_size, arch.norm_epsilon)
        layer.load_state_dict({"weight": torch.from_numpy(norm)})
        return np.asarray((layer(hidden) @ rows.T).numpy())

    found: dict[str, FloatArray] = {}
    with torch.inference_mode():
        hidden = embedding[TOKENS]
        exits = {w.info.layer: w for w in tiny_exits().exits}
        for number in range(arch.layers):
            names = layer_names(number)
            hidden = block(hidden, {k: base.weights[n] for k, n in names.items()})
            found[f"hidden{number + 1}"] = hidden.numpy()
            if weights := exits.get(number + 1):
                ids = torch.from_numpy(weights.vocabulary_ids).long()
                out = block(hidden, weights.blocks[0])
                found[weights.info.name] = logits(out, weights.norm, embedding[ids])
        found["full"] = logits(hidden, base.weights[FINAL_NORM], embedding)
    return found


def test_every_output_equals_the_reference(
    model: ExitModel, reference: dict[str, FloatArray]
) -> None:
    state = model.open(len(TOKENS))
    prompt = 100
    cut = state.extend(TOKENS[:prompt])
    assert_same(cut, reference["hidden2"][:prompt])
    for position in range(prompt, 120):
        at = position - 1
        assert_same(state.read_exit(0), reference["exit1"][at])
        assert_same(state.read_exit(1), reference["exit2"][at])
        assert_same(state.read_full(), reference["full"][at])
        cut = state.extend(TOKENS[position : position + 1])
        assert_same(cut[0], reference["hidden2"][position])
    assert state.positions == 120
    np.testing.assert_array_equal(state.hidden_states(119, 120), cut)


def test_deep_logits_do_not_depend_on_earlier_early_exits(
    model: ExitModel, reference: dict[str, FloatArray]
) -> None:
    """Some tokens stop at exit 1, some at exit 2, some go deep: the deep ones are the model's."""
    state = model.open(len(TOKENS))
    state.extend(TOKENS[:9])
    depths = np.random.default_rng(3).choice(["exit1", "exit2", "full", "none"], 141).tolist()
    for position, depth in enumerate(depths, start=9):
        read = {
            "exit1": lambda: state.read_exit(0),
            "exit2": lambda: state.read_exit(1),
            "full": state.read_full,
        }.get(depth)
        if read:
            assert_same(read(), reference[depth][position - 1])
        state.extend(TOKENS[position : position + 1])
    assert_same(state.read_full(), reference["full"][-1])


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunking_only_changes_float_noise(
    model: ExitModel,
    reference: dict[str, FloatArray],
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    monkeypatch.setattr(exit_model_module, "CHUNK", chunk)
    state = model.open(len(TOKENS))
    cut = state.extend(TOKENS)
    assert_same(cut, reference["hidden2"])
    assert_same(state.read_exit(1), reference["exit2"][-1])
    assert_same(state.read_full(), reference["full"][-1])


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_truncated_and_extended_again_equals_fresh(
    bundle: ModelBundle, precision: Precision
) -> None:
    model = ExitModel(bundle, precision, full_depth=True)
    fresh = model.open(40)
    fresh.extend(TOKENS[:20])
    expected = fresh.read_exit(0), fresh.read_exit(1), fresh.read_full()

    state = model.open(40)
    state.extend(TOKENS[:12])
    for wrong in (5, 6, 7, 8):
        state.extend([wrong])
        state.read_exit(1)
    state.read_full()
    state.truncate(9)
    assert state.positions == 9
    state.extend(TOKENS[9:20])
    got = state.read_exit(0), state.read_exit(1), state.read_full()
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


def test_truncated_to_an_earlier_position_reads_that_position_again(
    model: ExitModel, reference: dict[str, FloatArray]
) -> None:
    state = model.open(40)
    state.extend(TOKENS[:30])
    state.read_full()
    state.truncate(21)
    assert_same(state.read_exit(0), reference["exit1"][20])
    assert_same(state.read_exit(1), reference["exit2"][20])
    assert_same(state.read_full(), reference["full"][20])
    # and a second reading is the first
    np.testing.assert_array_equal(state.read_exit(1), state.read_exit(1))


def test_generations_do_not_touch_each_other(
    model: ExitModel, reference: dict[str, FloatArray]
) -> None:
    one, other = model.open(60), model.open(30)
    one.extend(TOKENS[:50])
    other.extend(TOKENS[20:40])
    other.read_full()
    assert_same(one.read_full(), reference["full"][49])


def _relative_error(bundle: ModelBundle, precision: Precision, want: FloatArray) -> float:
    """Root-mean-square error of the hidden states at the cut, against their own size.

    Not of the logits: the attention of random weights is so sharp that six layers of it turn any
    rounding into another answer.
    """
    got = ExitModel(bundle, precision).open(len(TOKENS)).extend(TOKENS)
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize(("precision", "worst"), [("int8", 0.08), ("int4", 0.6)])
def test_quantized_edges_stay_close(
    bundle: ModelBundle, reference: dict[str, FloatArray], precision: Precision, worst: float
) -> None:
    assert 0 < _relative_error(bundle, precision, reference["hidden2"]) < worst


def test_int4_of_a_4_bit_model_is_as_close_as_int8(tmp_path: Path) -> None:
    """The blocks are kept exactly; what is left is the rounding of activations, as in int8."""
    base = tiny_model()
    quantized = {
        name: round_to_int8(Matrix(w), 32) if name == EMBEDDING else round_to_q4_1(w)
        for name, w in base.weights.items()
        if w.ndim == 2
    }
    weights = base.weights | {name: blocks.dequantize() for name, blocks in quantized.items()}
    four_bit = replace(base, weights=weights, quantized=quantized)
    exits = untrained_exits(four_bit, [2, 4])
    bundle = write_bundle(
        four_bit, exits, tmp_path / "b", precisions=["float32", "int8", "int4"], full_depth=True
    )
    want = ExitModel(bundle, "float32").open(len(TOKENS)).extend(TOKENS)
    int8, int4 = (_relative_error(bundle, p, want) for p in ("int8", "int4"))
    assert int4 < max(0.08, 1.5 * int8)
    assert int4 > 0, "a float32 graph under another name proves nothing"


def test_vocabulary_ids_come_with_the_graphs(bundle: ModelBundle, model: ExitModel) -> None:
    ids = model.vocabulary_ids(0)
    assert ids is not None
    np.testing.assert_array_equal(ids, np.arange(260))
    assert ids.dtype == np.int32
    assert [e.name for e in model.exits] == ["exit1", "exit2"]
    state = model.open(8)
    state.extend([1])
    assert state.read_exit(0).shape == (260,)
    assert state.read_full().shape == (272,)


@pytest.mark.parametrize("ids", [[272], [-1], [3, 4, 9999]])
def test_unknown_tokens_are_refused_and_change_nothing(model: ExitModel, ids: list[int]) -> None:
    state = model.open(8)
    with pytest.raises(ConfigurationError, match="token ids"):
        state.extend(ids)
    assert state.positions == 0


def test_more_positions_than_opened_for_are_refused(model: ExitModel) -> None:
    state = model.open(8)
    state.extend([1] * 6)
    with pytest.raises(BudgetExceededError, match="opened for 8"):
        state.extend([1, 2, 3])
    assert state.positions == 6
    state.extend([1, 2])
    assert state.read_full().shape == (272,)


@pytest.mark.parametrize("positions", [0, -4, 513])
def test_the_models_own_limit_is_kept(model: ExitModel, positions: int) -> None:
    with pytest.raises(ConfigurationError, match="512"):
        model.open(positions)


def test_a_state_that_grows_is_the_same_to_the_bit(
    model: ExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk() -> list[npt.NDArray[np.float32]]:
        state, seen = model.open(200), []
        for count in (3, 1, 5, 1, 40, 1, 100):
            seen += [state.extend([7 * state.positions % 200] * count), state.read_exit(0)]
            state.truncate(state.positions - count // 2)
        return [*seen, state.read_exit(1), state.hidden_states(0, state.positions).copy()]

    whole = walk()
    monkeypatch.setattr(exit_model_module, "_FIRST_POSITIONS", 4)
    for grown, expected in zip(walk(), whole, strict=True):
        np.testing.assert_array_equal(grown, expected)


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_what_was_a_prompt_is_the_same_in_every_longer_prompt(
    bundle: ModelBundle, precision: Precision
) -> None:
    model = ExitModel(bundle, precision, threads=1)
    text = [(7 * i * i + i) % 200 for i in range(300)]
    whole = model.open(320)
    whole.extend(text)
    kept = model.open(320)
    kept.extend(text[:131])
    for token in text[131:150]:  # an answer, and something else instead of it
        kept.extend([token + 1])
        kept.read_exit(1)
    assert kept.prefilled == 131
    kept.truncate(kept.prefilled)
    kept.extend(text[131:])
    assert kept.prefilled == 300
    for state in (whole, kept):
        state.read_exit(0)
    np.testing.assert_array_equal(kept.hidden_states(0, 300), whole.hidden_states(0, 300))
    np.testing.assert_array_equal(kept.read_exit(1), whole.read_exit(1))


def test_extending_by_nothing_is_nothing(model: ExitModel) -> None:
    state = model.open(8)
    assert state.extend([]).shape == (0, 64)
    assert state.positions == 0


def test_hidden_states_are_a_view_that_cannot_be_written(model: ExitModel) -> None:
    state = model.open(8)
    state.extend([1, 2, 3])
    view = state.hidden_states(1, 3)
    assert view.shape == (2, 64)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1.0


def test_extend_returns_rows_that_later_rollbacks_do_not_change(model: ExitModel) -> None:
    state = model.open(8)
    state.extend([1, 2])
    rows = state.extend([3])
    before = rows.copy()
    state.truncate(2)
    state.extend([9])
    np.testing.assert_array_equal(rows, before)


def test_full_depth_must_be_asked_for_and_be_there(bundle: ModelBundle, tmp_path: Path) -> None:
    state = ExitModel(bundle, "float32").open(8)
    state.extend([1])
    with pytest.raises(BundleError, match="without the layers"):
        state.read_full()
    shallow = write_tiny_bundle(tmp_path / "shallow", precisions=["float32"], full_depth=False)
    with pytest.raises(BundleError, match="--full-depth"):
        ExitModel(shallow, "float32", full_depth=True)
    with pytest.raises(BundleError, match="no int8 edge"):
        ExitModel(shallow, "int8")


def test_a_damaged_graph_is_a_bundle_error(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", precisions=["float32"], full_depth=False)
    files = bundle.graphs("float32").exits[1]
    path = bundle.path(files.graph)
    right = path.read_bytes()
    path.write_bytes(b"\0" * len(right))
    with pytest.raises(BundleError, match=r"exit2\.onnx cannot be loaded"):
        ExitModel(bundle, "float32")
    path.write_bytes(right)
    bundle.path(files.weights).unlink()
    with pytest.raises(BundleError, match=r"exit2\.weights is missing"):
        ExitModel(bundle, "float32")
    manifest = bundle.folder / "manifest.json"
    record = json.loads(manifest.read_text())
    record["edge"]["float32"]["exits"][1]["graph"]["size_bytes"] += 1
    manifest.write_text(json.dumps(record))
    with pytest.raises(BundleError, match="bytes"):
        ExitModel(ModelBundle.load(bundle.folder), "float32")
