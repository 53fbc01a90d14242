"""Building blocks of the edge's ONNX graphs: one function per operator pattern.

Activations are ``[positions, width]`` throughout.  Matrices are stored per precision:

* ``float32``: ``MatMul``;
* ``int8``: ``MatMulNBits`` with 8-bit codes and one scale per block of inputs;
* ``int4``: a Q4_1 block ``w = d·q + m`` is kept exactly as ``d·(q - 8) + (m + 8d)``: 4-bit
  ``MatMulNBits`` with its default zero point, plus the block sums of the input times the small
  matrix of ``m + 8d``.  Rounding such weights a second time spoils the text.  (An ``int4`` edge
  has its feed-forward matrices in this form; attention and head are ``int8``.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from prepare.base_model import FloatArray, QuantizedMatrix
from prepare.edge_matrix import BLOCK, Matrix, block_size, round_to_int8, round_to_q4_1
from shared.model_bundle import Architecture, Precision

CONTRIB = "com.microsoft"
# Columns per scale of the int8 precision.  MatMulNBits rounds its input in the same blocks, and
# most of the error comes from there: 128 doubles it, 32 decodes a fifth slower.
INT8_BLOCK = 64
_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: quantize the input to int8


@dataclass
class GraphBuilder:
    """Nodes and constants of one graph, named in the order in which they are added."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        outputs: int = 1,
        domain: str = "",
        **attrs: Any,
    ) -> list[str]:
        """Append a node; return the names of its outputs."""
        name = f"{operator}_{len(self.nodes)}"
        names = [name if i == 0 else f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(operator, list(inputs), names, name=name, domain=domain, **attrs)
        )
        return names

    def rename(self, value: str, name: str) -> None:
        """Give the output ``value`` of an earlier node its public name."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, old in enumerate(names):
                    if old == value:
                        names[i] = name

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a constant once; the same name must always mean the same values."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name


def linear(graph: GraphBuilder, x: str, name: str, matrix: Matrix, precision: Precision) -> str:
    """``x @ matrix.T`` in ``precision``; ``x`` is ``[positions, columns]``."""
    if precision == "float32":
        weight = graph.constant(f"{name}.weight", matrix.values.T)
        return graph.add("MatMul", [x, weight])[0]
    if precision == "int8":
        return _linear_int8(graph, x, name, round_to_int8(matrix, INT8_BLOCK))
    if matrix.blocks is not None and matrix.blocks.offset is None:
        return _linear_int8(graph, x, name, matrix.blocks)
    return _linear_int4(graph, x, name, matrix.blocks or round_to_q4_1(matrix.values))


def _linear_int8(graph: GraphBuilder, x: str, name: str, blocks: QuantizedMatrix) -> str:
    rows, count = blocks.scale.shape
    columns = blocks.codes.shape[1]
    size = block_size(blocks)
    codes = np.full((rows, count * size), 128, np.uint8)
    codes[:, :columns] = blocks.codes.astype(np.int16) + 128
    return _matmul_bits(
        graph, x, name, codes.reshape(rows, count, size), blocks.scale, columns, bits=8
    )


def _linear_int4(graph: GraphBuilder, x: str, name: str, blocks: QuantizedMatrix) -> str:
    rows, count = blocks.scale.shape
    assert blocks.offset is not None
    nibbles = blocks.codes.reshape(rows, count, BLOCK // 2, 2)
    packed = (nibbles[..., 0] | (nibbles[..., 1] << 4)).astype(np.uint8)
    product = _matmul_bits(graph, x, name, packed, blocks.scale, count * BLOCK, bits=4)
    correction = graph.constant(f"{name}.offset", (blocks.offset + 8 * blocks.scale).T)
    return graph.add("Gemm", [_block_sums(graph, x, count), correction, product])[0]


def _block_sums(graph: GraphBuilder, x: str, count: int) -> str:
    """Sums of ``x`` over blocks of 32 columns, ``[positions, count]``."""
    shape = graph.constant(f"blocks.{count}", np.array([-1, count, BLOCK], np.int64))
    axis = graph.constant("last_axis", np.array([-1], np.int64))
    folded = graph.add("Reshape", [x, shape])[0]
    return graph.add("ReduceSum", [folded, axis], keepdims=0)[0]


def _matmul_bits(
    graph: GraphBuilder,
    x: str,
    name: str,
    packed: npt.NDArray[np.uint8],
    scale: FloatArray,
    columns: int,
    *,
    bits: int,
) -> str:
    return graph.add(
        "MatMulNBits",
        [x, graph.constant(f"{name}.codes", packed), graph.constant(f"{name}.scale", scale)],
        domain=CONTRIB,
        K=columns,
        N=scale.shape[0],
        bits=bits,
        block_size=packed.shape[2] * 8 // bits,
        accuracy_level=_INT8_ACTIVATIONS,
    )[0]


@dataclass(frozen=True)
class Stream:
    """The residual stream: ``residual + update``; ``update`` is not yet added where given.

    Kept apart so that the next norm can add and normalise in one operator.
    """

    residual: str
    update: str | None = None


def add_and_norm(
    graph: GraphBuilder, stream: Stream, name: str, gamma: FloatArray, epsilon: float
) -> tuple[str, str]:
    """``(normed, residual)`` of the stream."""
    weight = graph.constant(name, gamma)
    if stream.update is None:
        # an ONNX Runtime operator that lives in the default domain
        normed = graph.add(
            "SimplifiedLayerNormalization", [stream.residual, weight], axis=-1, epsilon=epsilon
        )[0]
        return normed, stream.residual
    outputs = graph.add(
        "SkipSimplifiedLayerNormalization",
        [stream.update, stream.residual, weight],
        outputs=4,
        domain=CONTRIB,
        epsilon=epsilon,
    )
    graph.nodes[-1].output[1] = graph.nodes[-1].output[2] = ""
    return outputs[0], outputs[3]


def settle(graph: GraphBuilder, stream: Stream) -> str:
    """The residual stream as one tensor."""
    if stream.update is None:
        return stream.residual
    return graph.add("Add", [stream.update, stream.residual])[0]


def attention(graph: GraphBuilder, packed: str, layer: int, arch: Architecture) -> str:
    """Grouped-query attention over the KV cache, which is written in place.

    ``packed`` is q, k and v side by side; rotary embedding happens inside the operator.
    """
    first = graph.constant("batch_axis", np.array([0], np.int64))
    batched = graph.add("Unsqueeze", [packed, first])[0]
    out = graph.add(
        "GroupQueryAttention",
        [
            batched,
            "",
            "",
            f"key_{layer}",
            f"value_{layer}",
            "last_position",
            "total_positions",
            "rotary_cos",
            "rotary_sin",
        ],
        outputs=3,
        domain=CONTRIB,
        num_heads=arch.heads,
        kv_num_heads=arch.kv_heads,
        do_rotary=1,
    )
    node = graph.nodes[-1]
    node.output[1], node.output[2] = f"present_key_{layer}", f"present_value_{layer}"
    shape: list[int | str] = [1, arch.kv_heads, "capacity", arch.head_size]
    for side in ("key", "value"):
        graph.inputs.append(float_value(f"{side}_{layer}", shape))
        graph.outputs.append(float_value(f"present_{side}_{layer}", shape))
    return graph.add("Squeeze", [out[0], first])[0]


def last_row(graph: GraphBuilder, x: str) -> str:
    """The last position of ``x``, ``[1, width]``."""
    return graph.add("Gather", [x, graph.constant("last_row", np.array([-1], np.int64))])[0]


def gated_feed_forward(
    graph: GraphBuilder, x: str, name: str, gate_up: Matrix, down: Matrix, precision: Precision
) -> str:
    """``down(silu(gate(x)) * up(x))``; gate and up are one matrix, row under row."""
    both = linear(graph, x, f"{name}.gate_up", gate_up, precision)
    gate, up = graph.add("Split", [both], outputs=2, axis=-1, num_outputs=2)
    active = graph.add("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)[0]  # SiLU
    return linear(graph, graph.add("Mul", [active, up])[0], f"{name}.down", down, precision)


def declare_positions(graph: GraphBuilder, arch: Architecture) -> None:
    """Inputs that every graph with attention shares."""
    half = arch.head_size // 2
    graph.inputs += [
        helper.make_tensor_value_info("last_position", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total_positions", TensorProto.INT32, [1]),
        float_value("rotary_cos", ["rotary_positions", half]),
        float_value("rotary_sin", ["rotary_positions", half]),
    ]


def float_value(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    """Declare a float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
