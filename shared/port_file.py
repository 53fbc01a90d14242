"""A file that says where a service listens, for as long as it does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import ConfigurationError


@contextmanager
def port_file(path: Path | None, address: str) -> Iterator[None]:
    """Within the block ``path`` (if there is one) holds ``address``; nobody sees half of it.

    Raises:
        ConfigurationError: it cannot be written.
    """
    if path is None:
        yield
        return
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{address}\n")
        os.replace(name, path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
