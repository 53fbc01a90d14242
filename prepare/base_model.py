"""The full model before it is cut up: weights, tokenizer and chat template in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from shared.model_bundle import Architecture, Source

FloatArray = npt.NDArray[np.float32]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of rows × columns stored as ``scale · code + offset`` over blocks of 32 columns.

    Attributes:
        codes: ``[rows, columns]``, uint8 in [0, 15] (Q4_1) or int8 (Q8_0, offset ``None``).
        scale: ``[rows, columns // 32]``, float32.
        offset: like ``scale``; ``None`` where the format has none.
    """

    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scale: FloatArray
    offset: FloatArray | None

    def dequantize(self) -> FloatArray:
        """``[rows, columns]`` float32, computed as the file's own format defines it."""
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, columns // 32, 32).astype(np.float32)
        values = blocks * self.scale[:, :, None]
        if self.offset is not None:
            values += self.offset[:, :, None]
        return values.reshape(rows, columns)


@dataclass(frozen=True)
class BaseModel:
    """A Llama-style decoder under Hugging Face's tensor names.

    Attributes:
        weights: float32; matrices ``[out_features, in_features]``, norms ``[hidden]``.
        quantized: the file's own blocks for those matrices that came quantized, so that an edge
            can keep them exactly instead of rounding a second time.
    """

    name: str
    architecture: Architecture
    weights: dict[str, FloatArray]
    tokenizer: Tokenizer
    chat_template: str
    stop_token_ids: tuple[int, ...]
    source: Source
    quantized: dict[str, QuantizedMatrix] = field(default_factory=dict)

    def write_hugging_face_folder(self, folder: Path) -> tuple[Path, Path]:
        """Write ``config.json`` and ``model.safetensors`` (float32); return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        arch = self.architecture
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": arch.hidden_size,
            "intermediate_size": arch.intermediate_size,
            "num_hidden_layers": arch.layers,
            "num_attention_heads": arch.heads,
            "num_key_value_heads": arch.kv_heads,
            "head_dim": arch.head_size,
            "vocab_size": arch.vocabulary_size,
            "max_position_embeddings": arch.max_positions,
            "rms_norm_eps": arch.norm_epsilon,
            "rope_theta": arch.rope_theta,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": self.stop_token_ids[0],
            "eos_token_id": list(self.stop_token_ids),
            "torch_dtype": "float32",
        }
        config_path = folder / "config.json"
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        weights_path = folder / "model.safetensors"
        save_file(self.weights, weights_path, metadata={"format": "pt"})
        return config_path, weights_path


def layer_names(layer: int) -> dict[str, str]:
    """Short name → Hugging Face tensor name for one transformer layer."""
    prefix = f"model.layers.{layer}"
    return {
        "input_norm": f"{prefix}.input_layernorm.weight",
        "q": f"{prefix}.self_attn.q_proj.weight",
        "k": f"{prefix}.self_attn.k_proj.weight",
        "v": f"{prefix}.self_attn.v_proj.weight",
        "o": f"{prefix}.self_attn.o_proj.weight",
        "post_norm": f"{prefix}.post_attention_layernorm.weight",
        "gate": f"{prefix}.mlp.gate_proj.weight",
        "up": f"{prefix}.mlp.up_proj.weight",
        "down": f"{prefix}.mlp.down_proj.weight",
    }
