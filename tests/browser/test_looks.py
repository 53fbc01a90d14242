"""What the page is like to use: keyboard alone, on a phone, dark and light, at rest, in names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from edge.generation import Mode
from edge.page_routes import CONTENT_SECURITY_POLICY
from tests.browser.daemon import Daemon
from tests.browser.page import Page

OpenPage = Callable[[str], Page]
PHONE = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}

# contrast by WCAG 2: of every element's own text against what is painted behind it
CONTRASTS = """
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
      .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = (element) => {
      for (let e = element; e; e = e.parentElement) {
        const color = parse(getComputedStyle(e).backgroundColor);
        if (color.length < 4 || color[3] === 1) return color;
      }
      throw new Error("nothing is painted");
    };
    const found = [];
    for (const element of document.body.querySelectorAll("*")) {
      if (element.disabled || !element.checkVisibility()) continue;
      if (element.closest("label")?.querySelector(":disabled")) continue;
      const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!own) continue;
      const pair = [parse(getComputedStyle(element).color), behind(element)].map(light);
      const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
      found.push([ratio, element.tagName + "." + element.className + "#" + element.id]);
    }
    return found;
"""


def prefer(page: Page, **preferences: str) -> None:
    """What a system says that its user prefers, such as ``prefers_color_scheme="dark"``."""
    features = [{"name": n.replace("_", "-"), "value": v} for n, v in preferences.items()]
    page.emulate("Emulation.setEmulatedMedia", features=features)


def background(page: Page) -> str:
    return str(page.script("return getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_contrast(open_page: OpenPage, theme: str) -> None:
    with Daemon(Mode.AUTO) as daemon:
        page = open_page(daemon.url)
        prefer(page, prefers_color_scheme=theme)
        page.until(lambda: page.link() == "up")
        page.asked("Well?")
        page.choose_mode("collaborative")
        page.until(lambda: page.find("#basis option[value=threshold]").is_enabled())
        page.choose("#basis", "threshold")
        page.until(lambda: page.find("#level").is_displayed())
        contrasts = page.script(CONTRASTS)
        daemon.go_away()
        page.until(lambda: page.find("#banner").is_displayed())
        contrasts += page.script(CONTRASTS)
        assert page.script("return document.documentElement.scrollHeight <= innerHeight")
    names = {name for _, name in contrasts}
    assert {"SPAN.exit1#", "SPAN.exit2#", "SPAN.cloud#", "P.summary#"} <= names
    assert [(ratio, name) for ratio, name in contrasts if ratio < 4.5] == []


def test_dark_and_light_by_preference_or_by_choice(open_page: OpenPage) -> None:
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        page = open_page(daemon.url)
        prefer(page, prefers_color_scheme="light")
        light = background(page)
        prefer(page, prefers_color_scheme="dark")
        dark = background(page)
        assert light != dark
        page.choose("#theme", "light")
        assert background(page) == light
        page.driver.refresh()
        assert background(page) == light  # it is remembered
        page.choose("#theme", "")
        assert background(page) == dark


def test_the_keyboard_is_enough(open_page: OpenPage) -> None:
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "up")
        assert page.focused() == "question"
        page.press("two")
        page.press_with_shift(Keys.ENTER)
        page.press("lines", Keys.ENTER)
        page.until(lambda: page.states() == ["answering"])
        assert page.text(".question") == "two\nlines"
        page.until(lambda: page.answers() != [""])
        page.press(Keys.ESCAPE)
        page.until(lambda: page.states() == ["stopped"])
        assert page.focused() == "question"

        reached = []
        for _ in range(30):  # all the way round, or as far as the modes
            page.press(Keys.TAB)
            reached.append(page.focused())
            outline = page.script(
                """
                const e = document.activeElement;
                const shown = e.type === "radio" ? e.nextElementSibling : e;
                return getComputedStyle(shown).outlineStyle;
                """
            )
            assert outline != "none", f"{reached[-1]} does not show that it has the focus"
            if reached[-1] == "collaborative":
                break
        assert "send" in reached
        assert reached[-1] == "collaborative"
        page.press(Keys.ARROW_LEFT)
        page.until(lambda: daemon.service.controls.mode is Mode.AUTO)
        page.until(lambda: page.find("#aim").is_displayed())
        page.press(Keys.TAB)
        assert page.focused() == "basis"


def test_a_phone_has_room_for_it(open_page: OpenPage) -> None:
    fits = """
        const {scrollWidth, scrollHeight} = document.documentElement;
        return scrollWidth <= innerWidth && scrollHeight <= innerHeight;
    """
    small = """
        return [...document.querySelectorAll("button, select, textarea, .modes span, .check")]
          .filter((e) => e.checkVisibility())
          .filter((e) => e.getBoundingClientRect().height < 32)
          .map((e) => e.outerHTML);
    """
    with Daemon(max_tokens=120) as daemon:
        page = open_page(daemon.url)
        page.emulate("Emulation.setDeviceMetricsOverride", **PHONE)
        page.emulate("Emulation.setTouchEmulationEnabled", enabled=True)
        page.driver.refresh()
        page.until(lambda: page.link() == "up")
        assert page.script("return innerWidth") == PHONE["width"]
        page.asked("unbroken" * 12)
        assert page.script(fits)
        assert not page.find("#panel").is_displayed()
        assert page.find("#send").is_displayed()
        send = page.find("#send").rect
        assert send["y"] + send["height"] <= PHONE["height"]
        page.find("#panel-toggle").click()
        assert page.find("#panel").is_displayed()
        assert page.find("#panel-toggle").get_attribute("aria-expanded") == "true"
        assert page.script(fits)
        assert page.script(small) == []
        assert page.find("#send").is_displayed()
        page.choose_mode("standalone")
        page.until(lambda: daemon.service.controls.mode is Mode.STANDALONE)
        page.find("#panel-toggle").click()
        assert not page.find("#panel").is_displayed()


def test_reduced_motion_keeps_the_page_still(open_page: OpenPage) -> None:
    moving = "return document.getAnimations().length"
    with Daemon(threshold=1.0, piece_seconds=0.05, max_tokens=400) as daemon:
        page = open_page(daemon.url)
        page.ask("A long story")
        page.until(lambda: page.states() == ["answering"])
        page.until(lambda: page.script(moving) > 0)
        prefer(page, prefers_reduced_motion="reduce")
        page.until(lambda: page.script(moving) == 0)
        assert page.states() == ["answering"]


def test_everything_that_can_be_operated_has_a_name(open_page: OpenPage) -> None:
    def value(node: dict[str, Any], key: str) -> str:
        return str(node.get(key, {}).get("value", ""))

    with Daemon(threshold=0.5) as daemon:
        page = open_page(daemon.url)
        page.until(lambda: page.find("#level").is_displayed())
        tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})
    operable = {"button", "radio", "combobox", "slider", "textbox", "checkbox"}
    nodes = [n for n in tree["nodes"] if value(n, "role") in operable and not n["ignored"]]
    assert {value(node, "role") for node in nodes} == operable
    assert [node for node in nodes if not value(node, "name")] == []


def test_the_policy_forbids_what_is_not_the_pages_own(open_page: OpenPage) -> None:
    with Daemon(Mode.STANDALONE, has_cloud=False) as daemon:
        for path in ("", "page/page.js", "page/page.css", "page/icon.svg"):
            response = httpx.get(daemon.url + path)
            assert response.status_code == 200
            assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert response.headers["x-content-type-options"] == "nosniff"
        assert httpx.get(f"{daemon.url}page/nothing.js").status_code == 404
        assert httpx.get(f"{daemon.url}page/..%2fpage_routes.py").status_code == 404
        page = open_page(daemon.url)
        page.until(lambda: page.link() == "none")
        origins = page.script(
            "return performance.getEntriesByType('resource').map((e) => new URL(e.name).origin)"
        )
        assert set(origins) == {daemon.url.rstrip("/")}
        ran = page.script(
            """
            const script = document.createElement("script");
            try { script.textContent = "window.ran = 1"; } catch { return "refused"; }
            document.head.append(script);
            return String(window.ran);
            """
        )
        assert ran == "refused"
        page.complaints()  # that attempt was ours
