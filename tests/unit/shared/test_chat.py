from __future__ import annotations

import pytest

from shared.chat import ChatTemplate, Message
from shared.errors import BundleError

SOURCE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}" + (
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_renders_a_conversation() -> None:
    messages = [Message("system", "s"), Message("user", "u")]
    assert ChatTemplate(SOURCE).render(messages) == "<system>s<user>u<assistant>"
    assert ChatTemplate(SOURCE).render(messages, add_generation_prompt=False) == "<system>s<user>u"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception('no') }}",
        "{{ undefined_thing.attribute }}",
    ],
)
def test_a_template_that_reaches_out_or_fails_is_a_bundle_error(source: str) -> None:
    with pytest.raises(BundleError):
        ChatTemplate(source).render([Message("user", "u")])


def test_a_template_that_does_not_compile_is_a_bundle_error() -> None:
    with pytest.raises(BundleError, match="compile"):
        ChatTemplate("{% for %}")
