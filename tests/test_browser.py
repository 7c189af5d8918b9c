"""The project as a person uses it: JupyterLab, the report and the site, in a real browser.

Needs a Chromium; skipped where none is found, unless CPO_BROWSER says that there must be one.
CPO_SCREENSHOTS names a folder for pictures of what was seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import (
    Lab,
    NotebookPage,
    Watch,
    broken_pictures,
    find_chromium,
    jupyter_lab,
    launch,
)
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from cpo.profiles import ROOT

pytestmark = pytest.mark.browser

METHOD, NEGATIVES = "00_the_method_by_hand", "02_negatives_one_by_one"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(
            "no Chromium: install it, as with `apt-get install chromium`, or set CPO_BROWSER"
        )
    with sync_playwright() as playwright:
        started = launch(playwright, program)
        yield started
        started.close()


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with jupyter_lab(folder, [METHOD, NEGATIVES], profile="smoke") as started:
        yield started


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def context(browser: Browser, watch: Watch) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    watch.over(context)
    yield context
    context.close()


@pytest.fixture
def screenshot(tmp_path: Path) -> Callable[[str, object], None]:
    folder = Path(os.environ.get("CPO_SCREENSHOTS") or tmp_path)

    def take(name: str, what: object) -> None:
        what.screenshot(path=folder / f"{name}.png")

    return take


def test_notebook_00_in_the_lab(lab, context, watch, screenshot):
    notebook = NotebookPage(context, lab, METHOD)
    screenshot("00-opened", notebook.page)
    notebook.run_all()
    screenshot("00-run", notebook.page)
    notebook.restart_and_run_all()
    assert notebook.page.locator(".Toastify__toast").count() == 0  # it has nothing to tell or ask
    assert broken_pictures(notebook.page) == []
    watch.assert_quiet()


def test_notebook_02_in_the_lab(lab, context, watch, screenshot):
    notebook = NotebookPage(context, lab, NEGATIVES)
    notebook.run_all()
    screenshot("02-run", notebook.page)
    notebook.restart_and_run_all()
    assert notebook.page.locator(".Toastify__toast").count() == 0  # it has nothing to tell or ask
    assert broken_pictures(notebook.page) == []
    watch.assert_quiet()


def test_the_report_opens_from_a_file_without_a_network(context, watch, screenshot, tmp_path):
    alone = tmp_path / "report.html"
    alone.write_bytes((ROOT / "figures" / "tiny" / "report.html").read_bytes())
    context.set_offline(True)
    page = context.new_page()
    page.goto(alone.as_uri())
    screenshot("report", page)
    assert broken_pictures(page) == []
    assert [url for url in watch.requests if not url.startswith("data:")] == [alone.as_uri()]
    watch.assert_quiet()
