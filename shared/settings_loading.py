"""What a service is told: one field a setting, from a file, the environment and flags.

A setting has one name: ``budget_mb`` in the file, ``TANDEM_CLOUD_BUDGET_MB`` in a cloud's
environment, ``--budget-mb`` on the command line.  A flag wins over the environment, and that over
the file.  Where a setting may be without a value, the word ``none`` takes away what a weaker source
says.  A setting of type ``SecretStr`` is never printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, Field, SecretStr, ValidationError

from shared.config_file import first_problem, read_table
from shared.errors import ConfigurationError

NONE = "none"

S = TypeVar("S", bound=BaseModel)


def setting(default: Any, panel: str, text: str, **bounds: Any) -> Any:
    """A field of a settings model: ``text`` and ``panel`` are for the command line's help."""
    return Field(default, description=text, json_schema_extra={"panel": panel}, **bounds)


def flag_of(key: str) -> str:
    """The setting's name on the command line."""
    return f"--{key.replace('_', '-')}"


@dataclass(frozen=True)
class Effective(Generic[S]):
    """Settings, and where each that is not a default came from."""

    settings: S
    origins: Mapping[str, str]

    def __str__(self) -> str:
        """A configuration file that gives the same settings, but for secrets: those are left out,
        and files that hold secrets are named, not read."""
        lines = []
        for name, value in self.settings:
            if value is None:
                lines.append(f"# {name} is not set" + self._from(name))
            elif isinstance(value, SecretStr):
                lines.append(f"# {name} is set and not shown" + self._from(name))
            else:
                # JSON's scalars and arrays are TOML's
                text = json.dumps(_plain(value), ensure_ascii=False)
                lines.append(f"{name} = {text}  # {self.origins.get(name, 'default')}")
        return "\n".join(lines)

    def _from(self, name: str) -> str:
        return f" ({self.origins[name]})" if name in self.origins else ""


@dataclass(frozen=True)
class SettingsSources(Generic[S]):
    """Where the settings of one kind come from.

    Attributes:
        model: the settings; each field made by :func:`setting`.
        prefix: how the names of its environment variables begin.
        aliases: further variables, and the settings that they stand for where the variable of
            that setting itself says nothing.
    """

    model: type[S]
    prefix: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def config_variable(self) -> str:
        """The variable that names the configuration file."""
        return f"{self.prefix}CONFIG"

    def load(
        self,
        flags: Mapping[str, Any],
        *,
        config: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Effective[S]:
        """Settings from ``flags`` (``None`` is one that was not given), then from the variables of
        ``environment``, then from the file ``config``, whose relative paths start at its folder.

        Raises:
            ConfigurationError: names the flag, variable or key and what is wrong with it.
        """
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        if config is not None:
            paths = self._fields_with(Path)
            for key, value in read_table(config).items():
                is_path = key in paths and isinstance(value, str) and value.lower() != NONE
                values[key] = config.absolute().parent / value if is_path else value
                origins[key] = f"{config.name}: {key}"
        for variable, key, text in self._variables(environment or {}):
            values[key], origins[key] = text, variable
        for key, value in flags.items():
            if value is not None:
                values[key], origins[key] = value, flag_of(key)
        for key in values.keys() & self._fields_with(type(None)):
            if str(values[key]).lower() == NONE:
                values[key] = None
        try:
            return Effective(self.model(**values), origins)
        except ValidationError as error:
            key, problem = first_problem(error)
            origin = origins.get(key.partition(".")[0], key)
            raise ConfigurationError(f"{origin}: {problem}") from None

    def _variables(self, environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """``(variable, setting, text)`` of all that are set, the stronger ones last."""
        aliases = [(name, self.aliases[name]) for name in environment if name in self.aliases]
        own = [
            (name, name.removeprefix(self.prefix).lower())
            for name in environment
            if name.startswith(self.prefix) and name != self.config_variable
        ]
        return [(name, key, environment[name]) for name, key in aliases + own if environment[name]]

    def _fields_with(self, kind: type) -> frozenset[str]:
        """Settings that may be a ``kind``."""
        return frozenset(
            name
            for name, info in self.model.model_fields.items()
            if kind in (info.annotation, *get_args(info.annotation))
        )


def _plain(value: Any) -> Any:
    """``value`` as a configuration file has it."""
    if isinstance(value, Path):
        return str(value.absolute())
    return value.value if isinstance(value, Enum) else value
