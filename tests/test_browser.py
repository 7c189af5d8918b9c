"""The project as a person uses it: JupyterLab, the report and the site, in a real browser.

Needs a Chromium; skipped where none is found, unless CPO_BROWSER says that there must be one.
CPO_SCREENSHOTS names a folder for pictures of what was seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pandas as pd
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

from cpo_suite.profile import ROOT
from cpo_suite.report import site
from cpo_suite.report.page import write_report
from cpo_suite.teaching.optimum import optimum_explorer

pytestmark = pytest.mark.browser

METHOD, NEGATIVES = "00_the_method_by_hand", "02_negatives_one_by_one"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(
            "no Chromium: install it, as with `apt-get install chromium`, or set CPO_BROWSER"
        )
    expect.set_options(timeout=30_000)  # other tests may run beside
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
def screenshot(tmp_path: Path) -> Callable[[str, Page], None]:
    folder = Path(os.environ.get("CPO_SCREENSHOTS") or tmp_path)

    def take(name: str, page: Page) -> None:
        page.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture
def context(browser, watch, screenshot, request) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(30_000)
    watch.over(context)
    yield context
    for page in context.pages:
        screenshot(f"{request.node.name}-at-the-end", page)
    context.close()


def test_the_watch_sees_what_calls_out_and_what_complains(context, watch, tmp_path):
    empty = tmp_path / "empty.html"
    empty.write_text("<!DOCTYPE html><title>Empty</title>")
    page = context.new_page()
    page.goto(empty.as_uri())
    watch.assert_quiet()
    for where, event, script in (
        (context, "requestfailed", "fetch('https://nowhere.example/fetched').catch(() => {})"),
        (page, "websocket", "new WebSocket('wss://nowhere.example/socket')"),
        (context, "console", "console.error('as a test')"),
        (context, "weberror", "setTimeout(() => { throw Error('as a test') })"),
    ):
        with where.expect_event(event):
            page.evaluate(f"() => {{ {script}; }}")
    assert {f"{name}://nowhere.example/{path}" for name, path in
            (("https", "fetched"), ("wss", "socket"))} <= set(watch.requests)  # fmt: skip
    for kind in ("console", "exception"):
        assert any(re.match(f"{kind}: .*as a test", one) for one in watch.complaints)
    own = "http://127.0.0.1:8888"
    Watch([f"{own}/lab/api/settings", "data:,"], []).assert_quiet()
    for seen in (Watch(["https://nowhere.example/"]), Watch([f"{own}/lab/api/update?1"]),
                 Watch([own + "/"], ["console: as a test"]), Watch()):  # fmt: skip
        with pytest.raises(AssertionError):
            seen.assert_quiet()


def test_notebook_00_in_the_lab(lab, context, watch, screenshot):
    notebook = NotebookPage(context, lab, METHOD)
    page = notebook.page
    notebook.run_all()
    explorer = notebook.cell("explore-loss")
    loss, picture = explorer.locator("p b"), explorer.locator("img")
    at_first = picture.get_attribute("src")
    notebook.show("explore-loss")
    screenshot("00-loss-explorer", page)

    def handle(description: str) -> Locator:
        return notebook.control("explore-loss", description).locator(".noUi-handle")

    def readout(description: str) -> Locator:
        return notebook.control("explore-loss", description).locator(".widget-readout")

    # The keyboard. K = 2, and both log-ratios as high as they go: equal rewards, ln 2 = 0.693.
    handle("candidates K").press("Home")
    handle("log-ratio of y1").press("End")
    handle("log-ratio of y2").press("End")
    expect(loss).to_have_text("Loss 0.693")
    expect(handle("log-ratio of y3")).to_be_hidden()
    expect(picture).not_to_have_attribute("src", at_first)
    handle("beta").focus()
    for key in ("Home", "ArrowRight", "ArrowUp", "ArrowRight"):  # 0.1, 0.2, 0.5, 1
        page.keyboard.press(key)
    expect(readout("beta")).to_have_text("1")
    # The mouse: y2 from 3 down to -3. ln(1 + exp(-3 - 3)) = 0.002.
    track = notebook.control("explore-loss", "log-ratio of y2").locator(".noUi-target")
    handle("log-ratio of y2").drag_to(track, target_position={"x": 1, "y": 2})
    expect(loss).to_have_text("Loss 0.002")
    # With two candidates, ranking is another equation with the same value: ln 2! = ln 2.
    explorer.get_by_role("checkbox").press("Space")
    expect(explorer).to_contain_text("Loss 0.002 (eq. 2, ranked; at the start ln K! = 0.693)")
    screenshot("00-loss-explorer-moved", page)

    notebook.restart_and_run_all()
    expect(picture).to_have_attribute("src", at_first)
    assert page.locator(".Toastify__toast").count() == 0  # it has nothing to tell or to ask
    assert broken_pictures(page) == []
    watch.assert_quiet()


def test_notebook_02_in_the_lab(lab, context, watch, screenshot):
    notebook = NotebookPage(context, lab, NEGATIVES)
    page = notebook.page
    notebook.run_all()
    viewer = notebook.cell("explore-negatives-2")
    table, prefix = viewer.locator("table"), viewer.locator("p", has_text="Prefix.")
    first_table, first_prefix = table.text_content(), prefix.text_content()
    notebook.show("explore-negatives-2")
    screenshot("02-negative-viewer", page)

    def choose_next(description: str, times: int = 1) -> None:
        """By keyboard; the arrow keys alone would take JupyterLab to the next cell."""
        choice = notebook.control("explore-negatives-2", description).locator("select")
        choice.press("Space")
        expect(viewer.locator("select:open")).to_be_visible()
        for key in ["ArrowDown"] * times + ["Enter"]:
            page.keyboard.press(key)
        expect(viewer.locator("select:open")).to_have_count(0)

    choose_next("prompt")
    expect(prefix).not_to_have_text(first_prefix)
    choose_next("kind", 2)  # all, AN, MN
    expect(table.locator("tbody td:nth-child(2)")).to_have_text(["truth", "MN", "MN", "MN"])
    expect(table.locator("mark").first).to_be_visible()
    screenshot("02-negative-viewer-MN", page)
    notebook.control("explore-negatives-2", "colours show").locator("select").select_option(
        "reference log-probability"
    )
    expect(table.locator("mark")).to_have_count(0)
    expect(table.locator("span[style*=background]").first).to_be_visible()
    screenshot("02-negative-viewer-log-probability", page)

    notebook.restart_and_run_all()
    expect(prefix).to_have_text(first_prefix)
    expect(table).to_have_text(first_table)
    assert broken_pictures(page) == []
    watch.assert_quiet()


def test_the_report_opens_from_a_file_without_a_network(context, watch, screenshot, tmp_path):
    alone = tmp_path / "report.html"
    alone.write_bytes((ROOT / "figures" / "tiny" / "report.html").read_bytes())
    context.set_offline(True)
    page = context.new_page()
    page.goto(alone.as_uri())
    screenshot("report", page)
    says = page.get_by_role("columnheader", name="the paper says", exact=True)
    claims = page.locator("table", has=says).locator("tbody tr > :first-child")
    numbers = pd.read_csv(ROOT / "figures" / "tiny" / "claims.csv")["claim"].unique()
    expect(claims).to_have_text([str(number) for number in numbers])
    for number in range(1, 5):
        heading = page.get_by_role("heading", name=re.compile(rf"^Table {number}\b"))
        expect(heading).to_be_visible()
    assert page.locator("img").count() >= 8
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
    heights = "all => all.map(one => one.getBoundingClientRect().height)"
    assert min(page.locator("math[display=block]").evaluate_all(heights)) > 15  # drawn
    assert broken_pictures(page) == []
    inside = (tmp_path / "site").as_uri()
    assert [url for url in watch.requests if not url.startswith((inside, "data:"))] == []
    watch.assert_quiet()


def notebook_with_a_piece(folder: Path) -> Path:
    """A checkout with one notebook, executed: a piece, stored twice."""
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": str(optimum_explorer().stored())})
        for _ in range(2)
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# A piece"),
        nbformat.v4.new_markdown_cell("## Where the policy goes"),
        nbformat.v4.new_code_cell("piece", outputs=outputs, execution_count=1),
    ]
    executed = folder / "figures" / "tiny" / "notebooks" / "00_piece.ipynb"
    for path in (folder / "notebooks" / executed.name, executed):
        path.parent.mkdir(parents=True)
        metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    (folder / "docs").mkdir()
    (folder / "README.md").write_text("# Pieces\n")
    return executed


@pytest.mark.parametrize("where", ["report", "site"])
def test_a_stored_piece_without_javascript_on_a_phone(browser, watch, screenshot, tmp_path, where):
    executed = notebook_with_a_piece(tmp_path / "checkout")
    address = tmp_path / "site" / "notebooks" / "00_piece.html"
    if where == "site":
        assert site.build(executed.parents[1], tmp_path / "site", tmp_path / "checkout") == 0
    else:
        address = tmp_path / "report.html"
        write_report(nbformat.read(executed, as_version=4), address)
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 375, "height": 667}, offline=True
    )
    watch.over(context)
    page = context.new_page()
    page.goto(address.as_uri())
    first, second = page.get_by_role("group", name="Optimum explorer").all()
    words, states = first.locator(".state:visible p b:visible"), first.locator(".state:visible")
    expect(states).to_have_count(1)
    # ln 3.
    expect(words).to_contain_text("K = 3, beta = 1: loss 1.099 at the start")
    expect(first.get_by_role("radio", checked=True)).to_have_count(1)
    first.scroll_into_view_if_needed()
    screenshot(f"piece-{where}", page)
    # By finger, and by keyboard: the next one; the other piece stays where it is.
    first.locator("label", has_text="TN, beta 1").click()
    expect(states).to_have_count(1)
    expect(states).to_contain_text("There is no optimum")
    first.get_by_role("radio", name=re.compile("^TN, beta 1")).press("ArrowRight")
    expect(words).to_contain_text("K = 3, beta = 5")
    expect(first.get_by_role("radio", name=re.compile("^TN, beta 5"))).to_be_focused()
    screenshot(f"piece-{where}-moved", page)
    expect(second.locator(".state:visible")).to_have_count(1)
    expect(second.locator(".state:visible")).to_contain_text("beta = 1: loss 1.099")
    wider = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wider) <= 0
    assert first.bounding_box()["width"] <= 375
    watch.assert_quiet()
    context.close()
