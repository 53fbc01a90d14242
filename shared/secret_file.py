"""Secrets that lie in files of their own, where no process list or shell history shows them."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from shared.errors import ConfigurationError

_MAX_BYTES = 4096


def read_secret(path: Path) -> str:
    """The one line of ``path``, white space around it taken off.

    Raises:
        ConfigurationError: it cannot be read, is empty or holds more than one line.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode().strip()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    if not text or len(text) > _MAX_BYTES or len(text.splitlines()) > 1:
        raise ConfigurationError(f"{path} must hold one secret, on one line")
    return text


def secret_of(given: SecretStr | None, path: Path | None) -> str | None:
    """A secret that was given as it is or by its file; ``None`` where neither was."""
    if given is not None:
        return given.get_secret_value()
    return None if path is None else read_secret(path)
