"""Write the edge's ONNX graphs: segments between exits, the exits, and the full model's head.

Inputs and outputs of a graph (``edge/stage.py`` binds them)::

    hidden     float32 [n, hidden]  embeddings for the first segment
    key_<i>, value_<i>              KV cache of layer i, updated in place as present_<...>
    last_position, total_positions  int32 [1]: index of the last new position, and that plus one
    rotary_cos, rotary_sin          float32 [capacity, head_size / 2]
    → hidden_out  float32 [n, hidden]  segments
    → logits      float32 [1, rows]    exits and head, for the last position only

An exit whose head covers a part of the vocabulary carries the token ids of its rows in the
graph's metadata, as base64 of little-endian int32.  Large constants lie beside the graph, and the
embedding is a file of its own (``prepare/edge_files.py``).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from prepare.base_model import EMBEDDING, FINAL_NORM, BaseModel, FloatArray, layer_names
from prepare.edge_files import write_embedding, write_graph
from prepare.edge_matrix import Matrix, stack
from prepare.exit_weights import ExitSet, ExitWeights
from prepare.onnx_layers import (
    CONTRIB,
    GraphBuilder,
    Stream,
    add_and_norm,
    attention,
    declare_positions,
    float_value,
    gated_feed_forward,
    last_row,
    linear,
    settle,
)
from shared.errors import ConfigurationError
from shared.model_bundle import (
    VOCABULARY_KEY,
    Architecture,
    EdgeGraphs,
    EdgeSegment,
    GraphFiles,
    Precision,
)

_OPSET, _CONTRIB_OPSET, _IR_VERSION = 21, 1, 10


def export_edge(
    model: BaseModel, exits: ExitSet, folder: Path, precision: Precision, *, full_depth: bool
) -> EdgeGraphs:
    """Write the graphs of one precision below ``folder / "edge" / precision``, and its embedding.

    The same inputs give the same bytes.

    Args:
        full_depth: also write the layers above the last exit and the full vocabulary's head.

    Raises:
        ConfigurationError: there is no exit, or one lies outside the model.
    """
    arch = model.architecture
    layers = [weights.info.layer for weights in exits.exits]
    if not layers or layers != sorted(set(layers)) or layers[-1] >= arch.layers:
        raise ConfigurationError(
            f"exits at layers {layers}: they must rise and lie below layer {arch.layers}"
        )
    target = folder / "edge" / precision
    target.mkdir(parents=True, exist_ok=True)

    def write(graph: ModelProto) -> GraphFiles:
        return write_graph(graph, folder, target / f"{graph.graph.name}.onnx")

    segments = []
    for first, last in pairwise([0, *layers, *([arch.layers] if full_depth else [])]):
        files = write(_segment(model, first, last, precision))
        segments.append(EdgeSegment(first_layer=first, last_layer=last, files=files))
    return EdgeGraphs(
        embedding=write_embedding(_matrix(model, EMBEDDING), folder, precision),
        segments=tuple(segments),
        exits=tuple(write(_exit(model, weights, precision)) for weights in exits.exits),
        head=write(_head(model, precision)) if full_depth else None,
    )


def _segment(model: BaseModel, first: int, last: int, precision: Precision) -> ModelProto:
    arch, graph = model.architecture, GraphBuilder()
    stream = Stream(_hidden_input(graph, arch))
    declare_positions(graph, arch)
    for layer in range(first, last):
        names = layer_names(layer)
        block = _Block(
            {short: _matrix(model, name) for short, name in names.items() if "norm" not in short},
            model.weights[names["input_norm"]],
            model.weights[names["post_norm"]],
        )
        stream = _transformer_block(graph, stream, layer - first, block, arch, precision)
    graph.rename(settle(graph, stream), "hidden_out")
    graph.outputs.insert(0, float_value("hidden_out", ["n", arch.hidden_size]))
    return _model(graph, f"layers_{first}_{last}")


def _exit(model: BaseModel, weights: ExitWeights, precision: Precision) -> ModelProto:
    arch, graph = model.architecture, GraphBuilder()
    block_precision = _eight_bits(precision)  # trained blocks never were on a 4-bit grid
    stream = Stream(_hidden_input(graph, arch))
    if weights.blocks:
        declare_positions(graph, arch)
    for index, tensors in enumerate(weights.blocks):
        block = _Block(
            {short: Matrix(values) for short, values in tensors.items() if "norm" not in short},
            tensors["input_norm"],
            tensors["post_norm"],
        )
        final = index == len(weights.blocks) - 1
        stream = _transformer_block(
            graph, stream, index, block, arch, block_precision, last_only=final
        )
    _norm_and_head(graph, stream, model, weights.norm, weights.vocabulary_ids, precision)
    metadata = {}
    if weights.vocabulary_ids is not None:
        ids = np.asarray(weights.vocabulary_ids).astype("<i4")
        metadata[VOCABULARY_KEY] = base64.b64encode(ids.tobytes()).decode()
    return _model(graph, weights.info.name, metadata)


def _head(model: BaseModel, precision: Precision) -> ModelProto:
    graph = GraphBuilder()
    stream = Stream(_hidden_input(graph, model.architecture))
    _norm_and_head(graph, stream, model, model.weights[FINAL_NORM], None, precision)
    return _model(graph, "head")


class _Block:
    """Weights of one transformer block, joined where one product serves several matrices."""

    def __init__(
        self, matrices: Mapping[str, Matrix], input_norm: FloatArray, post_norm: FloatArray
    ) -> None:
        self.input_norm, self.post_norm = input_norm, post_norm
        self.qkv = stack([matrices["q"], matrices["k"], matrices["v"]])
        self.o = matrices["o"]
        self.gate_up = stack([matrices["gate"], matrices["up"]])
        self.down = matrices["down"]


def _transformer_block(
    graph: GraphBuilder,
    stream: Stream,
    index: int,
    block: _Block,
    arch: Architecture,
    precision: Precision,
    *,
    last_only: bool = False,
) -> Stream:
    """One block; ``last_only`` keeps the last position from attention on (keys and values are
    still made for all)."""
    name, epsilon = f"block_{index}", arch.norm_epsilon
    # attention's matrices are small: the correction of exact 4-bit blocks would cost more time
    # than the halved bytes save
    small = _eight_bits(precision)
    x, residual = add_and_norm(graph, stream, f"{name}.input_norm", block.input_norm, epsilon)
    mixed = attention(graph, linear(graph, x, f"{name}.qkv", block.qkv, small), index, arch)
    if last_only:
        mixed, residual = last_row(graph, mixed), last_row(graph, residual)
    stream = Stream(residual, linear(graph, mixed, f"{name}.o", block.o, small))
    x, residual = add_and_norm(graph, stream, f"{name}.post_norm", block.post_norm, epsilon)
    update = gated_feed_forward(graph, x, name, block.gate_up, block.down, precision)
    return Stream(residual, update)


def _norm_and_head(
    graph: GraphBuilder,
    stream: Stream,
    model: BaseModel,
    norm: FloatArray,
    vocabulary_ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]] | None,
    precision: Precision,
) -> None:
    if stream.update is None:  # no block has cut the rows down yet
        stream = Stream(last_row(graph, stream.residual))
    x, _ = add_and_norm(graph, stream, "norm", norm, model.architecture.norm_epsilon)
    rows = _matrix(model, EMBEDDING).rows(vocabulary_ids)
    graph.rename(linear(graph, x, "head", rows, _eight_bits(precision)), "logits")
    graph.outputs.insert(0, float_value("logits", [1, len(rows.values)]))


def _eight_bits(precision: Precision) -> Precision:
    """The precision of matrices that the ``int4`` edge keeps at 8 bits."""
    return "int8" if precision == "int4" else precision


def _matrix(model: BaseModel, name: str) -> Matrix:
    return Matrix(model.weights[name], model.quantized.get(name))


def _hidden_input(graph: GraphBuilder, arch: Architecture) -> str:
    graph.inputs.append(float_value("hidden", ["n", arch.hidden_size]))
    return "hidden"


def _model(graph: GraphBuilder, name: str, metadata: Mapping[str, str] | None = None) -> ModelProto:
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes, name, graph.inputs, graph.outputs, list(graph.constants.values())
        ),
        opset_imports=[
            helper.make_opsetid("", _OPSET),
            helper.make_opsetid(CONTRIB, _CONTRIB_OPSET),
        ],
        ir_version=_IR_VERSION,
        producer_name="tandem",
    )
    helper.set_model_props(proto, dict(metadata or {}))
    return proto
