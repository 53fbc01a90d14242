"""The token embedding: rows read from the bundle's file when they are looked up.

Neither loaded nor mapped.  A text needs a few hundred of the tens of thousands of rows, and a
touched page of a mapped file brings its neighbours into the process (64 KiB at a time on Linux),
so that a long text would end up holding the whole table.  A read costs a microsecond, and the
system keeps what is read often in its own cache.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from edge.kv_cache import FloatArray
from shared.embedding_file import EMBEDDING_BLOCK, quantized_record
from shared.errors import BundleError
from shared.model_bundle import Architecture


class EmbeddingTable:
    """An open embedding file (see :mod:`shared.embedding_file`); lookups are thread-safe.

    The file stays open, so a bundle that is replaced meanwhile does not mix with this one.

    Raises:
        BundleError: the file is no such table, or not of this architecture.
    """

    def __init__(self, path: Path, arch: Architecture) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            self._refuse(str(error))
        weakref.finalize(self, self._file.close)
        shape, dtype = self._read_header()
        quantized = quantized_record(arch.hidden_size)
        plain = np.dtype("<f4")
        if (shape, dtype) not in (
            ((arch.vocabulary_size,), quantized),
            ((arch.vocabulary_size, arch.hidden_size), plain),
        ):
            self._refuse(
                f"it holds {dtype} {list(shape)}, not {arch.vocabulary_size} rows of "
                f"{arch.hidden_size}"
            )
        self._quantized = dtype == quantized
        row = quantized if self._quantized else np.dtype((plain, (arch.hidden_size,)))
        self._row, self._start = row, self._file.tell()
        size, wanted = path.stat().st_size, self._start + arch.vocabulary_size * row.itemsize
        if size != wanted:
            self._refuse(f"it has {size} bytes instead of {wanted}")

    def rows(self, token_ids: npt.NDArray[np.int64]) -> FloatArray:
        """Embeddings ``[n, hidden]`` of ``token_ids`` ``[n]``, each in ``[0, vocabulary)``.

        Raises:
            BundleError: the file can no longer be read.
        """
        size = self._row.itemsize
        data = np.empty((len(token_ids), size), np.uint8)
        with self._lock:
            for token_id, row in zip(token_ids.tolist(), data, strict=True):
                try:
                    self._file.seek(self._start + token_id * size)
                    got = self._file.readinto(row.data)
                except OSError as error:
                    self._refuse(str(error))
                if got != size:
                    self._refuse("it has become shorter")
        if not self._quantized:
            return data.view("<f4").astype(np.float32, copy=False)
        records = data.view(self._row)[:, 0]
        codes = records["codes"].astype(np.float32)
        codes *= np.repeat(records["scale"], EMBEDDING_BLOCK, axis=1)[:, : codes.shape[1]]
        return codes

    def _read_header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype; leaves the file at its first row."""
        try:
            np.lib.format.read_magic(self._file)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(self._file)
        except Exception as error:  # numpy lets errors of Python's own tokenizer through
            self._refuse(f"its header cannot be read ({error})")
        if by_columns:
            self._refuse("it is stored column by column")
        return shape, dtype

    def _refuse(self, why: str) -> NoReturn:
        raise BundleError(
            f"{self._path} cannot be used as embedding: {why}; run `tandem prepare --force`"
        ) from None
