"""Import from a GGUF file that the test writes with the reference library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from prepare.base_model import EMBEDDING, BaseModel, layer_names
from prepare.gguf_import import import_gguf
from prepare.tiny_model import tiny_model
from shared.errors import ConfigurationError


def write_gguf(
    path: Path, model: BaseModel, *, quantize: bool, pre: str = "smollm", merges: Sequence[str] = ()
) -> None:
    """Write ``model`` as llama.cpp's converter does: q and k permuted, Q4_1 or float32."""
    arch = model.architecture
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(arch.layers)
    writer.add_context_length(arch.max_positions)
    writer.add_embedding_length(arch.hidden_size)
    writer.add_feed_forward_length(arch.intermediate_size)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_layer_norm_rms_eps(arch.norm_epsilon)
    writer.add_rope_freq_base(arch.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = model.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = {t.content for t in model.tokenizer.get_added_tokens_decoder().values()}
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(1)
    writer.add_chat_template(model.chat_template)

    def add(name: str, values: np.ndarray, heads: int = 0) -> None:
        if heads:
            rows, columns = values.shape
            folded = values.reshape(heads, 2, rows // heads // 2, columns)
            values = np.ascontiguousarray(folded.swapaxes(1, 2).reshape(rows, columns))
        if quantize and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            kind = gguf.GGMLQuantizationType.Q8_0 if "embd" in name else kind
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", model.weights[EMBEDDING])
    add("output_norm.weight", model.weights["model.norm.weight"])
    names = {
        "attn_norm": "input_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v",
        "attn_output": "o", "ffn_norm": "post_norm", "ffn_gate": "gate", "ffn_up": "up",
        "ffn_down": "down",
    }  # fmt: skip
    for layer in range(arch.layers):
        for theirs, short in names.items():
            heads = {"q": arch.heads, "k": arch.kv_heads}.get(short, 0)
            add(f"blk.{layer}.{theirs}.weight", model.weights[layer_names(layer)[short]], heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return tiny_model(5)


def test_float_weights_come_back_unchanged(model: BaseModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", model, quantize=False)
    found = import_gguf(tmp_path / "m.gguf", "m")
    assert found.architecture == model.architecture
    assert found.stop_token_ids == (1,)
    assert found.weights.keys() == model.weights.keys()
    for name, values in model.weights.items():
        np.testing.assert_array_equal(found.weights[name], values, err_msg=name)


def test_quantized_blocks_are_kept_and_mean_the_same_weights(
    model: BaseModel, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", model, quantize=True)
    found = import_gguf(tmp_path / "m.gguf", "m")
    query = found.quantized[layer_names(0)["q"]]
    assert query.offset is not None
    assert query.codes.max() <= 15
    reference = gguf.quants.dequantize(
        gguf.quants.quantize(model.weights[EMBEDDING], gguf.GGMLQuantizationType.Q8_0),
        gguf.GGMLQuantizationType.Q8_0,
    )
    np.testing.assert_array_equal(found.weights[EMBEDDING], reference)
    for name, matrix in found.quantized.items():
        np.testing.assert_array_equal(found.weights[name], matrix.dequantize())
        step = matrix.scale.max()
        assert np.abs(found.weights[name] - model.weights[name]).max() <= step


def test_the_tokenizer_round_trips_text(model: BaseModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", model, quantize=False)
    tokenizer = import_gguf(tmp_path / "m.gguf", "m").tokenizer
    ids = tokenizer.encode("<|im_start|>Grüße, 123!<|im_end|>").ids
    assert (ids[0], ids[-1]) == (0, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Grüße, 123!"


def test_what_is_not_supported_is_named(model: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(ConfigurationError, match=r"junk\.gguf"):
        import_gguf(tmp_path / "junk.gguf", "m")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"empty\.gguf"):
        import_gguf(tmp_path / "empty.gguf", "m")
    write_gguf(tmp_path / "other.gguf", model, quantize=False, pre="llama-bpe")
    with pytest.raises(ConfigurationError, match="llama-bpe is not supported"):
        import_gguf(tmp_path / "other.gguf", "m")
    write_gguf(tmp_path / "merges.gguf", model, quantize=False, merges=["a b"])
    with pytest.raises(ConfigurationError, match="merges"):
        import_gguf(tmp_path / "merges.gguf", "m")
