"""Headless Chromium for the tests of the page; without it they are skipped (in CI they fail)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tests.browser.page import CHROMEDRIVER, CHROMIUM, DESKTOP, Page, start_browser


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Debian's chromium and chromium-driver")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [path for path in (CHROMIUM, CHROMEDRIVER) if not Path(path).exists()]
    for item in items:
        if "browser" not in Path(item.path).parent.parts:
            continue
        item.add_marker(pytest.mark.browser)
        if missing and "CI" not in os.environ:
            reason = f"{' and '.join(missing)} missing: apt-get install chromium chromium-driver"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def open_page(chromium: webdriver.Chrome) -> Iterator[Callable[[str], Page]]:
    """Open a page in a tab of its own, which ends with the test; scripts must not have failed."""
    first = chromium.current_window_handle
    pages: list[Page] = []

    def opened(url: str) -> Page:
        chromium.switch_to.new_window("tab")
        chromium.set_window_size(*DESKTOP)
        pages.append(Page(chromium, url))
        return pages[-1]

    yield opened
    complaints = [line for page in pages for line in page.complaints()]
    for handle in chromium.window_handles:
        if handle != first:
            chromium.switch_to.window(handle)
            chromium.close()
    chromium.switch_to.window(first)
    assert complaints == []
