"""Files of the edge, laid out so that loading them takes no more memory than running them.

A graph's large constants lie beside it in a ``.weights`` file (ONNX external data), each on a page
of its own: ONNX Runtime maps them one by one and lets go of each once its kernel has packed it.
Inside the graph they would be in memory three times over while it loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from prepare.edge_matrix import Matrix, round_to_int8
from shared.embedding_file import EMBEDDING_BLOCK, quantized_record
from shared.model_bundle import BundleFile, GraphFiles, Precision, describe_file

_PAGE = 4096  # mapping starts at a multiple of it, and smaller constants stay in the graph


def write_graph(graph: ModelProto, folder: Path, path: Path) -> GraphFiles:
    """Write ``path`` and its constants beside it, both inside the bundle's ``folder``.

    The same graph gives the same bytes; ``graph`` loses the constants that were moved out.
    """
    weights = path.with_suffix(".weights")
    with weights.open("wb") as file:
        for tensor in graph.graph.initializer:
            if len(tensor.raw_data) >= _PAGE:
                file.write(bytes(-file.tell() % _PAGE))
                _move_out(tensor, weights.name, file.tell())
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    path.write_bytes(graph.SerializeToString(deterministic=True))
    return GraphFiles(graph=describe_file(folder, path), weights=describe_file(folder, weights))


def _move_out(tensor: TensorProto, location: str, offset: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": location, "offset": offset, "length": len(tensor.raw_data)}
    for key, value in where.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def write_embedding(table: Matrix, folder: Path, precision: Precision) -> BundleFile:
    """Write the token embedding below ``folder / "edge"``; precisions share what is the same.

    A float32 edge gets the 8-bit table too where the model came with one: the rows are the same
    to the bit.
    """
    exact = table.blocks is not None and table.blocks.offset is None
    if precision == "float32" and not exact:
        path = folder / "edge" / "embedding_float32.npy"
        values: np.ndarray[Any, Any] = table.values.astype("<f4", copy=False)
    else:
        path = folder / "edge" / "embedding_int8.npy"
        blocks = round_to_int8(table, EMBEDDING_BLOCK)
        rows, columns = blocks.codes.shape
        values = np.empty(rows, quantized_record(columns))
        values["scale"], values["codes"] = blocks.scale, blocks.codes
    with path.open("wb") as file:
        np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False)
    return describe_file(folder, path)
