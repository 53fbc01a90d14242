"""One ONNX graph of the bundle: loaded once (:class:`Stage`), run per generation
(:class:`StageRun`).

Everything a run touches is bound by address: caches and rotary tables once, the rows that go in
and come out before each run.  So a token costs two bindings and no copies.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.kv_cache import FloatArray, KvCache, RotaryTables
from edge.memory import release_after_load
from shared.errors import BundleError
from shared.model_bundle import VOCABULARY_KEY, Architecture, GraphFiles, ModelBundle

_CPU = "cpu"
# How long a thread of the pool waits actively for its next share of a run, before it sleeps.  Each
# graph has a pool of its own, so waiting must end with the run, or the pools of the graphs before
# would keep this one's threads from the cores.
_SPIN_MICROSECONDS = "500"


class Stage:
    """A loaded graph.  Weights are shared by all generations; sessions are thread-safe.

    Attributes:
        layers: transformer layers with a KV cache in this graph.
        output_width: columns of the output (hidden size, or rows of a vocabulary head).
        vocabulary_ids: int32 token ids of a head's rows; ``None`` where row i is token i.

    Raises:
        BundleError: a file is missing, or the graph does not load.
    """

    def __init__(self, bundle: ModelBundle, files: GraphFiles, threads: int) -> None:
        path, weights = bundle.path(files.graph), bundle.path(files.weights)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # an arena keeps what the longest prompt chunk took, once per graph; a token's few small
        # buffers are as fast from malloc
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise BundleError(
                f"{path} cannot be loaded: {error}; run `tandem prepare --force`"
            ) from error
        self.layers = sum(v.name.startswith("key_") for v in self.session.get_inputs())
        output = self.session.get_outputs()[0]
        self.output_name, self.output_width = output.name, int(output.shape[1])
        encoded = self.session.get_modelmeta().custom_metadata_map.get(VOCABULARY_KEY)
        self.vocabulary_ids: npt.NDArray[np.int32] | None = None
        if encoded is not None:
            ids = np.frombuffer(base64.b64decode(encoded), dtype="<i4").astype(np.int32)
            if len(ids) != self.output_width:
                raise BundleError(f"{path}: {len(ids)} vocabulary ids for {self.output_width} rows")
            ids.flags.writeable = False
            self.vocabulary_ids = ids
        release_after_load(weights)


class StageRun:
    """A stage bound to one generation's buffers."""

    def __init__(
        self, stage: Stage, arch: Architecture, max_positions: int, rotary: RotaryTables
    ) -> None:
        self.stage = stage
        self.cache = KvCache(stage.layers, arch, max_positions)
        self._binding = stage.session.io_binding()
        self._last_position = np.zeros(1, np.int32)
        self._total_positions = np.zeros(1, np.int32)
        self._rotary = rotary  # bound by address: must live as long as the binding
        if stage.layers:
            self._bind_input("last_position", self._last_position)
            self._bind_input("total_positions", self._total_positions)
            self._bind_input("rotary_cos", rotary.cos)
            self._bind_input("rotary_sin", rotary.sin)
        for layer in range(stage.layers):
            for side, buffers in (("key", self.cache.keys), ("value", self.cache.values)):
                # the same memory as past and present: attention appends in place
                self._bind_input(f"{side}_{layer}", buffers[layer])
                self._bind_output(f"present_{side}_{layer}", buffers[layer])

    def run(self, rows: FloatArray, out: FloatArray) -> None:
        """Append ``rows`` ``[n, hidden]`` to the cache; fill ``out``."""
        count = len(rows)
        self._total_positions[0] = self.cache.length + count
        self._last_position[0] = self.cache.length + count - 1
        self._bind_input("hidden", rows)
        self._bind_output(self.stage.output_name, out)
        self.stage.session.run_with_iobinding(self._binding)
        self.cache.length += count

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self._binding.bind_input(name, _CPU, 0, array.dtype.type, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: FloatArray) -> None:
        assert array.flags.c_contiguous
        self._binding.bind_output(name, _CPU, 0, np.float32, array.shape, array.ctypes.data)
