"""Records of a journal as the dataclasses that they were written from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from shared.errors import ConfigurationError

T = TypeVar("T")


def read_stored(kind: type[T], record: Mapping[str, Any], what: str) -> T:
    """``record`` as the dataclass ``kind``.

    Raises:
        ConfigurationError: a field is missing, unknown (where ``kind`` forbids that) or of another
            type; ``what`` names the record.
    """
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"{what} cannot be read ({where}: {first['msg']}): another version of Tandem wrote it; "
            "name another --out"
        ) from None
    return found


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
