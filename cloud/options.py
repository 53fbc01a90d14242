"""The command line's flags, made from the settings: one for each, on every command that takes them.

Flags have no defaults of their own, so that what was not said leaves room for the environment and
the configuration file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo

from cloud.settings import CONFIG_VARIABLE, CloudSettings, Effective, flag_of, load_settings

_CONFIG = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar=CONFIG_VARIABLE,
        help="File of these settings (TOML or JSON): `max-sessions` is max_sessions there, and "
        "TANDEM_CLOUD_MAX_SESSIONS in the environment. Flags win, then the environment.",
    ),
]


def takes_settings(command: Callable[[Effective], None]) -> Callable[..., None]:
    """Give ``command`` a flag for every setting, and call it with what all sources say."""

    @wraps(command)
    def run(config: Path | None, **flags: Any) -> None:
        command(load_settings(flags, config=config, environment=os.environ))

    parameters = [_parameter("config", _CONFIG)]
    for name, field in CloudSettings.model_fields.items():
        kind: Any = field.annotation
        if int in get_args(kind):  # or the word "none", which the settings understand
            kind = str
        parameters.append(_parameter(name, Annotated[kind | None, _option(name, field)]))
    del run.__wrapped__  # whose signature would be looked at
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _option(name: str, field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    shown, flag = extra.get("shown", field.default), flag_of(name)
    default = "" if shown is None or shown is False else f" (default: {shown})"
    return typer.Option(
        f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag,
        help=f"{field.description}{default}",
        show_default=False,
        rich_help_panel=str(extra["panel"]),
    )
