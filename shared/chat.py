"""Chat messages as the text that the model was trained on (the bundle's Jinja template)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import BundleError


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template, run in Jinja's sandbox since bundles come from elsewhere."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BundleError(f"the chat template does not compile: {error}") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, ending where the assistant's next words begin."""
        try:
            return self._template.render(
                messages=[asdict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise BundleError(f"the chat template fails on this conversation: {error}") from None


def _refuse(message: str) -> None:
    raise TemplateError(message)
