"""The edge's model: segments of layers, early exits between them, and one state per generation.

Deeper segments and exits are filled lazily.  Each keeps its own count of positions that it has
processed; what lies between that count and the newest token is pending and is run in one batch
when an exit above is read.  Hidden states at every boundary are kept for the whole generation,
so a token read deep is the same whether or not earlier tokens stopped early.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.chunks import chunks
from edge.embedding import EmbeddingTable
from edge.kv_cache import FloatArray, RotaryTables
from edge.memory import release_freed
from edge.stage import Stage, StageRun
from shared.errors import BudgetExceededError, BundleError, ConfigurationError
from shared.model_bundle import ExitInfo, ModelBundle, Precision

# longer batches gain little once the matrices are read once for this many rows
CHUNK = 128
_FIRST_POSITIONS = 256  # that a state has room for before it grows


class ExitModel:
    """Loaded graphs of one precision, shared by many generations.

    Raises:
        BundleError: the bundle lacks the precision, a graph, or (with ``full_depth``) the layers
            above the last exit.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        precision: Precision,
        *,
        threads: int | None = None,
        full_depth: bool = False,
    ) -> None:
        graphs = bundle.graphs(precision)
        self.architecture = bundle.manifest.architecture
        self.exits: tuple[ExitInfo, ...] = bundle.manifest.exits
        self.cut = bundle.manifest.cut
        deepest = self.exits[-1].layer if self.exits else self.cut
        segments = [s for s in graphs.segments if full_depth or s.last_layer <= deepest]
        boundaries = [segment.last_layer for segment in segments]
        if [e.layer for e in self.exits] != boundaries[: len(self.exits)]:
            raise BundleError(f"edge/{precision}: segments must end where the exits are")
        if full_depth and (graphs.head is None or boundaries[-1] != self.architecture.layers):
            raise BundleError(
                "the bundle's edge stops at its last exit: run `tandem prepare --full-depth`"
            )
        threads = threads or physical_cores()
        self.embedding = EmbeddingTable(bundle.path(graphs.embedding), self.architecture)
        # One matrix at a time is in memory twice while it is packed.  The heads are the largest:
        # they come first, when little else is there.
        head = graphs.head if full_depth else None
        self.head_stage = None if head is None else Stage(bundle, head, threads)
        self.exit_stages = [Stage(bundle, files, threads) for files in graphs.exits]
        self.segment_stages = [Stage(bundle, s.files, threads) for s in segments]

    def vocabulary_ids(self, index: int) -> npt.NDArray[np.int32] | None:
        """Token id of each row of exit ``index``'s logits; ``None`` where row i is token i."""
        return self.exit_stages[index].vocabulary_ids

    def open(self, max_positions: int) -> ModelState:
        """Start a generation of at most ``max_positions`` tokens, prompt included.

        Raises:
            ConfigurationError: the model itself cannot hold that many.
        """
        limit = self.architecture.max_positions
        if not 1 <= max_positions <= limit:
            raise ConfigurationError(
                f"{max_positions} positions: this model holds between 1 and {limit}"
            )
        return ModelState(self, max_positions)


class ModelState:
    """One generation, or a conversation.  Not thread-safe: one worker at a time calls it.

    Buffers grow with the text: at the first prompt ONNX Runtime clears those it is given, all of
    them, which takes memory and time.
    """

    def __init__(self, model: ExitModel, max_positions: int) -> None:
        self.max_positions = max_positions
        self._model = model
        self._vocabulary_size = model.architecture.vocabulary_size
        self._embedding = model.embedding
        self._positions = 0
        self._prefilled = 0
        self._read_positions = 0  # at the last reading of logits
        self._capacity = min(_FIRST_POSITIONS, max_positions)
        self._allocate()

    def _allocate(self) -> None:
        model, arch, capacity = self._model, self._model.architecture, self._capacity
        rotary = RotaryTables(arch, capacity)
        self._segments = [StageRun(s, arch, capacity, rotary) for s in model.segment_stages]
        self._exits = [StageRun(s, arch, capacity, rotary) for s in model.exit_stages]
        head = model.head_stage
        self._head = None if head is None else StageRun(head, arch, capacity, rotary)
        # boundary i is the output of segment i; boundary 0 is the cut
        shape = (capacity, arch.hidden_size)
        self._boundaries: list[FloatArray] = [np.zeros(shape, np.float32) for _ in self._segments]

    def _make_room(self, positions: int) -> None:
        if positions <= self._capacity:
            return
        runs, boundaries = [*self._segments, *self._exits], self._boundaries
        self._capacity = min(self.max_positions, max(positions, 2 * self._capacity))
        self._allocate()
        for run, before in zip([*self._segments, *self._exits], runs, strict=True):
            run.cache.take_over(before.cache)
        for rows, old in zip(self._boundaries, boundaries, strict=True):
            rows[: self._positions] = old[: self._positions]

    @property
    def positions(self) -> int:
        """Tokens so far."""
        return self._positions

    @property
    def prefilled(self) -> int:
        """How many of the first positions were taken in many at a time, as a prompt is.  Any other
        text that begins with them may go on from here, and comes out the same to the bit."""
        return self._prefilled

    def extend(self, token_ids: Sequence[int]) -> FloatArray:
        """Run segment 0 on new tokens; return their hidden states at the cut, ``[n, hidden]``.

        Raises:
            ConfigurationError: a token id that the model does not have.
            BudgetExceededError: more positions than this generation was opened for.
        """
        ids = np.asarray(token_ids, np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self._vocabulary_size):
            raise ConfigurationError(
                f"token ids must lie in [0, {self._vocabulary_size}), "
                f"got {int(ids.min())} to {int(ids.max())}"
            )
        start, stop = self._positions, self._positions + len(ids)
        if stop > self.max_positions:
            raise BudgetExceededError(
                f"{stop} positions, but this generation was opened for {self.max_positions}"
            )
        self._make_room(stop)
        first, out = self._segments[0], self._boundaries[0]
        for begin, end in chunks(start, stop, CHUNK):
            first.run(self._embedding.rows(ids[begin - start : end - start]), out[begin:end])
        if self._prefilled == start and len(ids) > 1:
            self._prefilled = stop
        self._positions = stop
        return out[start:stop].copy()

    def hidden_states(self, start: int, stop: int) -> FloatArray:
        """Read-only view ``[stop - start, hidden]`` at the cut.

        It shows the rows as they are: positions that are truncated and extended again change
        under it.
        """
        assert 0 <= start <= stop <= self._positions
        view = self._boundaries[0][start:stop]
        view.flags.writeable = False
        return view

    def read_exit(self, index: int) -> FloatArray:
        """Logits ``[rows]`` of exit ``index`` at the last position."""
        self._fill_segments(index + 1)
        return self._read(self._exits[index], self._boundaries[index])

    def read_full(self) -> FloatArray:
        """Logits ``[vocabulary]`` of the full model at the last position.

        Raises:
            BundleError: the model was loaded without its full depth.
        """
        if self._head is None:
            raise BundleError("the edge was loaded without the layers above its last exit")
        self._fill_segments(len(self._segments))
        return self._read(self._head, self._boundaries[-1])

    def truncate(self, positions: int) -> None:
        """Forget every position from ``positions`` on, at every depth."""
        assert 0 <= positions <= self._positions
        self._positions = positions
        self._prefilled = min(self._prefilled, positions)
        self._read_positions = min(self._read_positions, positions)
        for run in [*self._segments, *self._exits]:
            run.cache.truncate(positions)

    def _fill_segments(self, count: int) -> None:
        """Run the pending positions of segments 1 to ``count - 1``, lowest first."""
        for index in range(1, count):
            run, source, out = self._segments[index], *self._boundaries[index - 1 : index + 1]
            for start, stop in chunks(run.cache.length, self._positions, CHUNK):
                run.run(source[start:stop], out[start:stop])

    def _read(self, run: StageRun, source: FloatArray) -> FloatArray:
        """Fill an exit's pending positions; logits of the last one."""
        last = self._positions - 1
        assert last >= 0, "nothing to read before the first token"
        if not run.stage.layers:
            run.cache.length = last  # no attention: earlier positions do not matter
        # a second reading of the same position runs that position again
        run.cache.truncate(last)
        logits = np.empty((1, run.stage.output_width), np.float32)
        for start, stop in chunks(run.cache.length, self._positions, CHUNK):
            run.run(source[start:stop], logits)
        if self._positions - self._read_positions >= CHUNK:  # a prompt: its buffers were large
            release_freed()
        self._read_positions = self._positions
        return logits.reshape(-1)


def physical_cores() -> int:
    """Cores this process may use, hyperthreads counted once where Linux tells."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1
    topology = Path("/sys/devices/system/cpu")
    siblings = set()
    for cpu in usable:
        try:
            siblings.add((topology / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(usable)
    return len(siblings)
