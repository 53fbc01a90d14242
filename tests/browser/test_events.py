"""The page's reading of server-sent events."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge.generation import Mode
from tests.browser.daemon import Daemon
from tests.browser.page import Page

READ = """
const [sent] = arguments;
const { events } = await import("/page/daemon.js");
const found = [];
for await (const event of events(new Response(sent))) found.push(event);
return found;
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_ends_no_line_is_text(open_page: Callable[[str], Page], end: str) -> None:
    """U+2028 and U+2029 end lines for JavaScript's expressions, not for events."""
    with Daemon(Mode.STANDALONE) as daemon:
        page = open_page(daemon.url)
        odd = "a\u2028b\u2029c: d"
        sent = f": note{end}{end}event: x{end}data: {odd}{end}{end}data: [DONE]{end}{end}"
        read = page.script(f"return (async (...arguments) => {{{READ}}})(...arguments)", sent)
        assert read == [
            {"event": "x", "data": odd},
            {"event": "message", "data": "[DONE]"},
        ]
