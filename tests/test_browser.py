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
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from cpo import site
from cpo.profiles import ROOT

pytestmark = pytest.mark.browser

METHOD, NEGATIVES = "00_the_method_by_hand", "02_negatives_one_by_one"
RANKING = "ranking (y1 best, then y2, y3, ...)"


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
def screenshot(tmp_path: Path) -> Callable[[str, Page | Locator], None]:
    folder = Path(os.environ.get("CPO_SCREENSHOTS") or tmp_path)

    def take(name: str, what: Page | Locator) -> None:
        what.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture
def context(browser, watch, screenshot, request) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    watch.over(context)
    yield context
    for page in context.pages:
        screenshot(f"{request.node.name}-at-the-end", page)
    context.close()


def test_notebook_00_in_the_lab(lab, context, watch, screenshot):
    notebook = NotebookPage(context, lab, METHOD)
    notebook.run_all()
    explorer = notebook.cell("explore-loss")
    loss, picture = explorer.locator("p b"), explorer.locator("img")
    at_first = picture.get_attribute("src")
    screenshot("00-loss-explorer", explorer)

    def handle(description: str) -> Locator:
        return notebook.control("explore-loss", description).locator(".noUi-handle")

    # With the keyboard: K = 2, and both log-ratios as high as they go. Equal rewards: ln 2 = 0.693.
    handle("candidates K").press("Home")
    handle("log-ratio of y1").press("End")
    handle("log-ratio of y2").press("End")
    expect(loss).to_have_text("Loss 0.693")
    expect(handle("log-ratio of y3")).to_be_hidden()
    expect(picture).not_to_have_attribute("src", at_first)
    # With the mouse: y2 down to its lowest. At beta = 1, as in every profile's start of the slider
    # or set here, ln(1 + e^(-3 - 3)) = 0.002.
    handle("beta").press("Home")
    for _ in range(3):
        handle("beta").press("ArrowRight")
    expect(notebook.control("explore-loss", "beta").locator(".widget-readout")).to_have_text("1")
    track = notebook.control("explore-loss", "log-ratio of y2").locator(".noUi-target")
    handle("log-ratio of y2").drag_to(track, target_position={"x": 1, "y": 2})
    expect(loss).to_have_text("Loss 0.002")
    # Ranking only two candidates changes the name of the equation, not the loss.
    notebook.control("explore-loss", RANKING).locator("input").check()
    expect(explorer).to_contain_text("Loss 0.002 (eq. 2, ranked; at the start ln K! = 0.693)")
    screenshot("00-loss-explorer-moved", explorer)

    notebook.restart_and_run_all()
    expect(picture).to_have_attribute("src", at_first)
    assert notebook.page.locator(".Toastify__toast").count() == 0  # it has nothing to tell or ask
    assert broken_pictures(notebook.page) == []
    watch.assert_quiet()


def test_notebook_02_in_the_lab(lab, context, watch, screenshot):
    notebook = NotebookPage(context, lab, NEGATIVES)
    notebook.run_all()
    viewer = notebook.cell("explore-negatives")
    table = viewer.locator("table")
    screenshot("02-negative-viewer", viewer)

    def choice(description: str) -> Locator:
        return notebook.control("explore-negatives", description).locator("select")

    at_first = table.inner_text()
    choice("prompt").press("ArrowDown")
    expect(table).not_to_have_text(at_first, use_inner_text=True)
    choice("kind").select_option("MN")
    kinds = table.locator("tbody td:nth-child(2)")
    expect(kinds).to_have_text(["truth", "MN", "MN", "MN"])
    expect(table.locator("mark").first).to_be_visible()
    screenshot("02-negative-viewer-MN", viewer)
    choice("colours show").select_option("reference log-probability")
    expect(table.locator("span").first).to_be_visible()
    expect(table.locator("mark")).to_have_count(0)
    screenshot("02-negative-viewer-surprise", viewer)

    notebook.restart_and_run_all()
    expect(table).to_have_text(at_first, use_inner_text=True)
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


def test_two_pages_of_the_site_open_without_a_network(context, watch, screenshot, tmp_path):
    assert site.build(ROOT / "figures" / "tiny", tmp_path / "site") == 0
    context.set_offline(True)
    page = context.new_page()
    page.goto((tmp_path / "site" / "index.html").as_uri())
    expect(page.locator("h1")).to_contain_text("CPO")
    assert broken_pictures(page) == []
    screenshot("site-start", page)
    page.get_by_role("link", name="00 · The method by hand").first.click()
    expect(page.locator("h1")).to_contain_text("The method by hand")
    assert page.locator("math").count() > 20
    for formula in page.locator("math[display=block]").all():
        assert formula.bounding_box()["height"] > 10
    assert broken_pictures(page) == []
    inside = (tmp_path / "site").as_uri()
    assert [url for url in watch.requests if not url.startswith((inside, "data:"))] == []
    watch.assert_quiet()
