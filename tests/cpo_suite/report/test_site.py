"""The site: pages that open offline, with formulas, pictures and links that hold."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("myst_nb")

from PIL import Image, PngImagePlugin  # noqa: E402

from cpo_suite.profile import ROOT  # noqa: E402
from cpo_suite.report import formulas, site  # noqa: E402

# A picture of one pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
EXERCISE = """## Exercises

<details><summary>Solution</summary>

```python
folded_away = 1
```

</details>
"""


class Page(HTMLParser):
    """What a page fetches, what it links to, its headings and pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(found)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        for name in ("src", "href", "srcset", "data", "poster", "xlink:href"):
            if found.get(name):
                (self.links if tag == "a" else self.fetched).append(str(found[name]))


def pages_of(folder: Path) -> list[Page]:
    return [Page(path) for path in sorted(folder.rglob("*.html"))]


def check_site(folder: Path) -> None:
    """Nothing comes from another host, every link leads somewhere, headings are in order."""
    pages = {page.path.resolve(): page for page in pages_of(folder)}
    for path, page in pages.items():
        for target in page.fetched:
            assert not re.match(r"(?!data:)[a-z]+:|//", target), f"{path} fetches {target}"
        for target in page.fetched + page.links:
            if re.match(r"[a-z]+:|//", target):
                continue
            place, _, anchor = target.partition("#")
            file = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            assert file.exists(), f"{path.name} links to {target}"
            if anchor and file in pages and file.name not in ("search.html", "genindex.html"):
                assert anchor in pages[file].ids, f"{path.name} links to {target}"
        if "figures" not in path.parts[-3:] and path.name != "search.html":
            steps = zip(page.headings, page.headings[1:], strict=False)
            assert page.headings.count(1) == 1 and page.headings[0] == 1, path
            assert all(after <= before + 1 for before, after in steps), (path, page.headings)
    for sheet in folder.rglob("*.css"):
        for target in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", sheet.read_text()):
            assert not re.match(r"(?!data:)[a-z]+:|//", target), f"{sheet} fetches {target}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout: a notebook that was run, one that was changed since, one that was not."""
    root = tmp_path_factory.mktemp("checkout")
    run = root / "figures" / "trial"
    for folder in (root / "notebooks", root / "docs", run / "notebooks"):
        folder.mkdir(parents=True)

    def notebook(title: str, number: int) -> nbformat.NotebookNode:
        cells = [
            new_markdown_cell(f"# 0{number} · {title}\n\nInline $\\pi_\\theta(y_1 \\dots y_K)$."),
            new_markdown_cell("## 1. The loss\n\n$$\\mathcal{L} = -\\log\\big(w_1\\big)$$"),
            new_code_cell("widget"),
            new_code_cell('plots.save(figure, suite.output / "curve", "What is seen.")\nfigure'),
            new_code_cell("another_figure", metadata={"mystnb": {"image": {"alt": "Bars."}}}),
            new_markdown_cell(EXERCISE),
        ]
        for index, cell in enumerate(cells):
            cell["id"] = f"cell-{index}"
        return new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})

    executed = notebook("Made up", 0)
    picture = {"image/png": PIXEL, "text/plain": "<Figure size 640x480 with 1 Axes>"}
    view = {"model_id": "abc", "version_major": 2, "version_minor": 0}
    widget = {
        "application/vnd.jupyter.widget-view+json": view,
        "text/html": "<p>A still of the slider.</p>",
        "text/plain": "IntSlider(value=3)",
    }
    state = {"state": {"abc": {"model_name": "IntSliderModel", "state": {}}}}
    executed.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    for index, data in ((2, widget), (3, picture), (4, picture)):
        executed.cells[index].outputs = [new_output("display_data", data=data)]
    parameters = new_code_cell("seeds = 3", metadata={"tags": ["injected-parameters"]})
    del executed.cells[4].metadata["mystnb"]  # run before the text was written
    nbformat.write(notebook("Made up", 0), root / "notebooks" / "00_made_up.ipynb")
    executed.cells.insert(1, parameters)
    nbformat.write(executed, run / "notebooks" / "00_made_up.ipynb")
    changed = notebook("Changed since", 1)
    nbformat.write(changed, run / "notebooks" / "01_changed.ipynb")
    changed.cells[2].source = "another_widget"
    nbformat.write(changed, root / "notebooks" / "01_changed.ipynb")
    nbformat.write(notebook("Not run", 2), root / "notebooks" / "02_not_run.ipynb")

    description = PngImagePlugin.PngInfo()
    description.add_text("Description", "What is seen.")
    Image.new("RGB", (8, 8)).save(run / "curve.png", pnginfo=description)
    (run / "curve.pdf").write_bytes(b"%PDF-1.4")
    (run / "report.html").write_text("<!DOCTYPE html><h1>Report</h1>")
    (run / "table1.md").write_text(
        "Caption of it.\n\n| row | ours |\n| --- | --- |\n| a | 0.471 |\n"
    )
    (run / "table1.csv").write_text("row,ours\na,0.471\n")
    (root / "docs" / "more.md").write_text("# More\n\n[Report](../figures/trial/report.html)\n")
    (root / "README.md").write_text(
        "# Start\n\n![Curve](figures/trial/curve.png)\n\n## Links\n\n"
        "[`00`](notebooks/00_made_up.ipynb) [more](docs/more.md) [results](figures/trial) "
        "[paper](https://arxiv.org/abs/2502.16433) [licence](LICENSE) [here](#links)\n"
    )
    return root


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output") / "site"
    output.mkdir()
    (output / "left_from_before.html").write_text("old")
    assert site.build(checkout / "figures" / "trial", output, checkout) == 0
    return output


def test_nothing_is_fetched_from_elsewhere_and_links_hold(built: Path) -> None:
    check_site(built)
    names = {path.relative_to(built).as_posix() for path in built.rglob("*.html")}
    assert {"index.html", "docs/more.html", "notebooks/02_not_run.html"} <= names
    # Results as files: tables as numbers, figures that print at any size.
    for name in ("report.html", "table1.csv", "curve.pdf"):
        assert (built / "figures" / "trial" / name).is_file()
    assert "left_from_before.html" not in names
    source = "".join(page.source for page in pages_of(built)).lower()
    assert "mathjax" not in source and "require.min.js" not in source


def test_the_check_sees_what_is_fetched_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    head = "<h1>Title</h1>"
    for bad in (
        "<script src='https://cdn.example/x.js'></script>",
        "<img src='//cdn.example/x.png'>",
        "<link rel='stylesheet' href='http://fonts.example/a.css'>",
        "<a href='missing.html'>there</a>",
        "<a href='#nothing'>there</a>",
        "<h3>Too deep</h3>",
    ):
        page.write_text(head + bad)
        with pytest.raises(AssertionError):
            check_site(tmp_path)
    page.write_text(head + "<a href='https://arxiv.org'>a link is followed by a person alone</a>")
    check_site(tmp_path)
    (tmp_path / "a.css").write_text("@font-face { src: url(https://fonts.example/a.woff) }")
    with pytest.raises(AssertionError):
        check_site(tmp_path)


def test_formulas_are_drawn_by_the_browser_itself(built: Path) -> None:
    source = (built / "notebooks" / "00_made_up.html").read_text(encoding="utf-8")
    assert source.count("<math ") == 2
    assert 'display="block"' in source and "<mi>θ</mi>" in source and "…" in source
    assert "\\log" not in source and "$" not in re.sub(r"<script.*?</script>", "", source)


def test_pictures_and_stills_of_widgets(built: Path) -> None:
    page = Page(built / "notebooks" / "00_made_up.html")
    assert [image["alt"] for image in page.images] == ["What is seen.", "Bars."]
    for image in page.images:
        picture = (page.path.parent / str(image["src"])).read_bytes()
        assert picture == base64.b64decode(PIXEL)
    assert "A still of the slider." in page.source
    assert "widget-view" not in page.source and "widget-state" not in page.source
    assert "IntSlider" not in page.source


def test_a_notebook_that_was_not_run_or_has_changed_says_so(built: Path) -> None:
    said = {path.stem: path.read_text() for path in (built / "notebooks").glob("*.html")}
    assert "was not run in the run shown here" in said["02_not_run"]
    assert (
        "it has changed since" in said["01_changed"] and "another_widget" not in said["01_changed"]
    )
    assert "was not run" not in said["00_made_up"] and "has changed" not in said["00_made_up"]


def test_solutions_are_folded(built: Path) -> None:
    source = (built / "notebooks" / "00_made_up.html").read_text()
    (folded,) = re.findall(r"<details>(.*?)</details>", source, re.DOTALL)  # not `<details open>`
    assert "<summary>Solution</summary>" in folded and "folded_away" in folded


def test_start_page_leads_to_pages_files_and_other_hosts(built: Path) -> None:
    page = Page(built / "index.html")
    assert {
        "notebooks/00_made_up.html", "docs/more.html", "figures/trial/report.html",
        "https://arxiv.org/abs/2502.16433", "#links",
    } <= set(page.links)  # fmt: skip
    assert not [link for link in page.links if "LICENSE" in link]  # no page of the site: text


@pytest.mark.slow
def test_a_formula_that_cannot_be_drawn_stops_the_build(checkout: Path, tmp_path: Path) -> None:
    (checkout / "docs" / "bad.md").write_text("# Bad\n\n$$\\unheardof{x}$$\n")
    output = tmp_path / "site"
    output.mkdir()
    (output / "index.html").write_text("the last good one")
    try:
        assert site.build(checkout / "figures" / "trial", output, checkout) != 0
    finally:
        (checkout / "docs" / "bad.md").unlink()
    assert (output / "index.html").read_text() == "the last good one"


def test_the_whole_site(tmp_path: Path) -> None:
    assert site.build(ROOT / "figures" / "tiny", tmp_path / "site") == 0
    check_site(tmp_path / "site")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = Page(tmp_path / "site" / "notebooks" / f"{path.stem}.html")
        assert all(image["alt"] for image in page.images)


# --- Text, formulas and pictures of the checkout --------------------------------------------------


def test_links_of_the_readme_and_the_pages_of_text_hold() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^()\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("#"):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_the_page_to_cite_from_agrees_with_citation_cff() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "cite.md").read_text(encoding="utf-8")
    paper = cited["preferred-citation"]
    names = (f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    for expected in (
        f"title     = {{{paper['title']}}}",
        f"author    = {{{' and '.join(names)}}}",
        f"booktitle = {{{paper['collection-title']}}}",
        f"pages     = {{{paper['start']}--{paper['end']}}}",
        f"year      = {{{paper['year']}}}",
        f"url       = {{{paper['url']}}}",
        f"title   = {{{cited['title']}}}",
        f"author  = {{{{{cited['authors'][0]['name']}}}}}",
        f"version = {{{cited['version']}}}",
        f"license = {{{cited['license']}}}",
    ):
        assert expected in page


def test_mathml() -> None:
    assert "<mi>β</mi>" in formulas.mathml(r"\beta") and "display" not in formulas.mathml(r"\beta")
    assert 'display="block"' in formulas.mathml("x", block=True)
    assert "…" in formulas.mathml(r"y_1 \dots y_K")
    sized = formulas.mathml(r"\Big\{\big(x\big)\Big\}")
    assert re.findall(r'minsize="(.*?)".*?>(.)<', sized) == [
        ("1.623em", "{"), ("1.2em", "("), ("1.2em", ")"), ("1.623em", "}"),
    ]  # fmt: skip
    # A thin space beside the name of a function, as TeX has it, but none before a bracket.
    spaced = formulas.mathml(r"\beta \log \frac{a}{b}")
    parts = re.findall(r"<(mi|mspace|mfrac)\b", spaced)
    assert parts[:5] == ["mi", "mspace", "mi", "mspace", "mfrac"]
    for tight in (r"-\log(x)", r"-\log\left(x\right)", r"\log_2(x)", r"\exp\!\big(r\big)"):
        assert "mspace" not in formulas.mathml(tight)
    with pytest.raises(ValueError, match=r"'\\\\unheardof x'.*Unknown"):
        formulas.mathml(r"\unheardof x")


def test_every_formula_of_the_notebooks_and_pages_can_be_drawn() -> None:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt().enable("table").use(dollarmath_plugin)
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    drawn = 0
    for token in (token for text in texts for token in parser.parse(text)):
        for part in [token, *(token.children or [])]:
            if part.type.startswith("math_"):
                assert formulas.mathml(part.content, part.type == "math_block").startswith("<math")
                drawn += 1
    assert drawn > 100


def test_every_figure_of_the_notebooks_is_described() -> None:
    lacking = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (one for one in cells if one["cell_type"] == "code"):
            code = "".join(cell["source"])
            drawn = re.search(
                r"^\s*(plt\.show\(\)|display\((figure|plots|Image)\b.*|figure)$", code, re.MULTILINE
            )
            described = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
            if drawn and "plots.save(" not in code and not described:
                lacking.append(f"{path.stem}: {cell['id']}")
    assert not lacking
