"""Import a Llama-style GGUF file with gguf and numpy alone (no torch, no transformers).

llama.cpp stores the rows of q and k permuted for interleaved rotary embedding; they are put back
into the half-rotated order that Hugging Face, ONNX Runtime and Tandem use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prepare.base_model import EMBEDDING, FINAL_NORM, BaseModel, QuantizedMatrix, layer_names
from shared.errors import ConfigurationError
from shared.model_bundle import Architecture, Source, sha256_of

_LAYER_TENSORS = {
    "attn_norm": "input_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "post_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


def import_gguf(path: Path, name: str) -> BaseModel:
    """Read a GGUF file into a :class:`BaseModel`.

    Raises:
        ConfigurationError: the file is not GGUF, not a Llama-style decoder with tied embedding,
            or uses a tokenizer other than byte-level BPE.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not a readable GGUF file: {error}") from None
    if _field(reader, "general.architecture") != "llama":
        raise ConfigurationError(f"{path}: only Llama-style models can be prepared")

    architecture = _architecture(reader)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    quantized: dict[str, QuantizedMatrix] = {}
    for tensor in reader.tensors:
        target = _target_name(tensor.name)
        heads = {"q": architecture.heads, "k": architecture.kv_heads}.get(target.short, 0)
        matrix = _quantized_matrix(tensor)
        if matrix is None:
            values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            weights[target.name] = _unpermute(values.astype(np.float32), heads)
            continue
        matrix = QuantizedMatrix(
            codes=_unpermute(matrix.codes, heads),
            scale=_unpermute(matrix.scale, heads),
            offset=None if matrix.offset is None else _unpermute(matrix.offset, heads),
        )
        quantized[target.name] = matrix
        weights[target.name] = matrix.dequantize()
    if "output.weight" in weights:
        raise ConfigurationError(f"{path}: models with an untied head are not supported yet")

    eos = int(_field(reader, "tokenizer.ggml.eos_token_id"))
    return BaseModel(
        name=name,
        architecture=architecture,
        weights=weights,
        quantized=quantized,
        tokenizer=_tokenizer(reader),
        chat_template=str(_field(reader, "tokenizer.chat_template")),
        stop_token_ids=(eos,),
        source=Source(
            description=f"{_field(reader, 'general.name')} ({path.name})",
            license=str(_field(reader, "general.license")),
            sha256=sha256_of(path),
        ),
    )


class _Target:
    def __init__(self, name: str, short: str = "") -> None:
        self.name = name
        self.short = short


def _target_name(name: str) -> _Target:
    if name == "token_embd.weight":
        return _Target(EMBEDDING)
    if name == "output_norm.weight":
        return _Target(FINAL_NORM)
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_TENSORS:
        short = _LAYER_TENSORS[parts[2]]
        return _Target(layer_names(int(parts[1]))[short], short)
    return _Target(name)


def _quantized_matrix(tensor: Any) -> QuantizedMatrix | None:
    """Split a Q4_1 or Q8_0 tensor into codes, scales and offsets (see ggml-common.h)."""
    columns, rows = int(tensor.shape[0]), int(tensor.shape[-1])
    kind = tensor.tensor_type
    if kind == gguf.GGMLQuantizationType.Q4_1:  # fp16 d, fp16 m, 16 bytes of nibbles
        blocks = np.asarray(tensor.data).reshape(rows, columns // 32, 20)
        scale = _half(blocks[:, :, 0:2])
        offset = _half(blocks[:, :, 2:4])
        nibbles = blocks[:, :, 4:]
        codes = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=2)
        return QuantizedMatrix(codes.reshape(rows, columns), scale, offset)
    if kind == gguf.GGMLQuantizationType.Q8_0:  # fp16 d, 32 int8
        blocks = np.asarray(tensor.data).reshape(rows, columns // 32, 34)
        codes8 = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8)
        return QuantizedMatrix(codes8.reshape(rows, columns), _half(blocks[:, :, 0:2]), None)
    return None


def _half(pairs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(pairs).view(np.float16)[:, :, 0].astype(np.float32)


def _unpermute(array: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo llama.cpp's row order of q and k; ``heads`` 0 leaves the array as it is."""
    if not heads:
        return np.ascontiguousarray(array)
    rows, columns = array.shape
    folded = array.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(folded.swapaxes(1, 2).reshape(rows, columns))


def _field(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    if field is None:
        raise ConfigurationError(f"the GGUF file has no field {key}")
    return field.contents()


def _architecture(reader: Any) -> Architecture:
    heads = int(_field(reader, "llama.attention.head_count"))
    hidden = int(_field(reader, "llama.embedding_length"))
    return Architecture(
        layers=int(_field(reader, "llama.block_count")),
        hidden_size=hidden,
        heads=heads,
        kv_heads=int(_field(reader, "llama.attention.head_count_kv")),
        head_size=hidden // heads,
        intermediate_size=int(_field(reader, "llama.feed_forward_length")),
        vocabulary_size=len(_field(reader, "tokenizer.ggml.tokens")),
        max_positions=int(_field(reader, "llama.context_length")),
        rope_theta=float(_field(reader, "llama.rope.freq_base")),
        # the file holds a float32; 1e-05 is what was meant
        norm_epsilon=float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
    )


def _tokenizer(reader: Any) -> Tokenizer:
    """Byte-level BPE with SmolLM's pre-tokenizer (single digits, then GPT-2's pattern)."""
    model, pre = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if (model, pre) != ("gpt2", "smollm"):
        raise ConfigurationError(f"tokenizer {model}/{pre} is not supported (gpt2/smollm is)")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges: list[tuple[str, str]] = []
    if "tokenizer.ggml.merges" in reader.fields:  # a writer leaves out an empty list
        for merge in _field(reader, "tokenizer.ggml.merges"):
            left, _, right = merge.partition(" ")
            merges.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # tokenizers raises Exception itself
        raise ConfigurationError(f"the tokenizer's merges do not fit: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return tokenizer
