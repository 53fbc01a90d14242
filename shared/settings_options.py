"""The command line's flags, made from settings: one for each, on every command that takes them.

Flags have no defaults of their own, so that what was not said leaves room for the environment and
the configuration file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from shared.settings_loading import Effective, SettingsSources, flag_of

S = TypeVar("S", bound=BaseModel)


def takes_settings(
    sources: SettingsSources[S], example: str
) -> Callable[[Callable[[Effective[S]], None]], Callable[..., None]]:
    """Give a command a flag for every setting, and call it with what all sources say.

    Args:
        example: the setting that the help of ``--config`` explains the names with.
    """
    config = Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=sources.config_variable,
            help=f"File of these settings (TOML or JSON): `{flag_of(example)[2:]}` is {example} "
            f"there, and {sources.prefix}{example.upper()} in the environment. Flags win, then the "
            "environment.",
        ),
    ]
    parameters = [_parameter("config", config)]
    for name, field in sources.model.model_fields.items():
        kind: Any = _kind(field)
        parameters.append(_parameter(name, Annotated[kind | None, _option(name, field)]))

    def decorate(command: Callable[[Effective[S]], None]) -> Callable[..., None]:
        @wraps(command)
        def run(config: Path | None, **flags: Any) -> None:
            command(sources.load(flags, config=config, environment=os.environ))

        del run.__wrapped__  # whose signature would be looked at
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _kind(field: FieldInfo) -> Any:
    """What the command line takes: numbers that may be the word "none", lists with commas and
    secrets are text there, which the settings understand."""
    kind: Any = field.annotation
    kinds = (kind, *get_args(kind))
    as_text = get_origin(kind) is tuple or SecretStr in kinds or {int, float} & set(kinds[1:])
    return str if as_text else kind


def _option(name: str, field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    shown, flag = extra.get("shown", field.default), flag_of(name)
    shown = shown.value if isinstance(shown, Enum) else shown
    default = "" if shown is None or shown is False or shown == () else f" (default: {shown})"
    return typer.Option(
        f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag,
        help=f"{field.description}{default}",
        show_default=False,
        rich_help_panel=str(extra["panel"]),
    )
