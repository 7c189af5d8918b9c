"""The book: executed notebooks, results and pages of text as one site that opens offline.

`gather` lays the pages out as the checkout has them, so that links hold; Sphinx, with MyST-NB, Furo
and the settings of `docs/conf.py`, makes the site of them. Nothing is executed. This module is also
a Sphinx extension: formulas become MathML here, since Sphinx's own way fetches MathJax.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode
from PIL import Image

from cpo_suite.profile import ROOT
from cpo_suite.report.claims import CLAIMS

if TYPE_CHECKING:
    from docutils.nodes import math, math_block
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

PAGES = (".ipynb", ".md")
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")


def build(results: Path, output: Path, root: Path = ROOT) -> int:
    """Build the site from a run's results; returns Sphinx's exit code.

    Args:
        results: the run's output folder; notebooks without an executed copy there are shown as
            they are written, with a note.
        output: a folder for the site, replaced when all went well and left alone otherwise.
        root: the checkout, with `README.md`, `notebooks/`, `docs/` and `figures/`.
    """
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as folder:
        source, pages = Path(folder, "source"), Path(folder, "pages")
        gather(results, source, root)
        settings = ["-c", str(ROOT / "docs"), "-d", str(Path(folder, "parsed"))]
        strict = ["--quiet", "--fail-on-warning", "--keep-going"]
        code = build_main(["-b", "html", *settings, *strict, str(source), str(pages)])
        if code == 0:
            shutil.copytree(source / "figures", pages / "figures")
            shutil.rmtree(output, ignore_errors=True)
            shutil.move(pages, output)
    return code


# --- Pages ----------------------------------------------------------------------------------------


def gather(results: Path, source: Path, root: Path = ROOT) -> None:
    """Write all pages of the site, and the files that they link to, into the folder `source`."""
    (source / "notebooks").mkdir(parents=True)
    (source / "docs").mkdir()
    notebooks = sorted((root / "notebooks").glob("[0-9A][0-9]_*.ipynb"))
    for path in notebooks:
        nbformat.write(notebook_page(path, results), source / "notebooks" / path.name)
    texts = sorted((root / "docs").glob("*.md"))
    for path in texts:
        page = _relinked(path.read_text(encoding="utf-8"), path, root)
        (source / "docs" / path.name).write_text(page, encoding="utf-8")
    # Reports and tables as files: of this run, and of those that the README speaks of.
    runs = {path.parent.name: path.parent for path in (root / "figures").glob("*/report.html")}
    for name, run in (runs | {results.name: results}).items():
        if run.is_dir():
            without = shutil.ignore_patterns("notebooks")
            shutil.copytree(run, source / "figures" / name, ignore=without)
    (source / "figures").mkdir(exist_ok=True)
    (source / "results.md").write_text(results_page(results), encoding="utf-8")
    readme = root / "README.md"
    contents = {
        "Course": [f"notebooks/{path.stem}" for path in notebooks if path.stem[0] != "A"],
        "Appendix": [f"notebooks/{path.stem}" for path in notebooks if path.stem[0] == "A"],
        "Results": ["results"],
        "More": [f"docs/{path.stem}" for path in texts],
    }
    start = _relinked(readme.read_text(encoding="utf-8"), readme, root)
    (source / "index.md").write_text(start + _contents(contents), encoding="utf-8")


def notebook_page(path: Path, results: Path) -> NotebookNode:
    """A notebook made ready to be shown: its executed copy, where the run has one.

    Pictures get an alternative text: the description that their cell saved them with, or the one
    in the cell's metadata (`mystnb: {image: {alt: ...}}`), or the section that they stand in.
    """
    written = nbformat.read(path, as_version=4)
    executed = results / "notebooks" / path.name
    notebook = nbformat.read(executed, as_version=4) if executed.is_file() else written
    notebook.metadata.pop("widgets", None)  # a live widget needs a kernel; its picture is shown
    described = {cell.get("id"): cell.metadata.get("mystnb") for cell in written.cells}
    section = path.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ (.+)", cell.source, re.MULTILINE) or [section])[-1]
        elif any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            seen = f"Figure of the section “{section}”; the text beside it says what is seen."
            alt = {"image": {"alt": _saved_description(cell.source, results) or seen}}
            cell.metadata["mystnb"] = described.get(cell.get("id")) or alt
    note = ""
    if notebook is written:
        note = f"This notebook was not run in the run shown here, `{results.name}`: no outputs."
    elif _code(written) != _code(notebook):
        note = "This page shows the notebook as it was run; it has changed since."
    if note:
        cell = nbformat.v4.new_markdown_cell(f"```{{note}}\n{note}\n```")
        notebook.cells.insert(1, cell)
    return notebook


def _code(notebook: NotebookNode) -> list[str]:
    """The sources of a notebook's code cells, without the parameters that a run puts in."""
    return [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]


def _saved_description(code: str, results: Path) -> str:
    """What a cell says of the figure that it saves, read from the file that it wrote."""
    saved = re.search(r"figures\.save\(.*?suite\.output / \"(\w+)\"", code, re.DOTALL)
    return _described(results / f"{saved[1]}.png") if saved else ""


def _described(picture: Path) -> str:
    if not picture.is_file():
        return ""
    with Image.open(picture) as image:
        return " ".join(str(image.info.get("Description", "")).split())


def results_page(results: Path) -> str:
    """Claims, tables and figures of a run, with links to its report and to all its files."""
    folder = f"figures/{results.name}"
    parts = [f"# Results: {results.name}"]
    if not results.is_dir():
        return f"{parts[0]}\n\nNothing was run at this profile yet.\n"
    if (results / "report.html").is_file():
        parts.append(
            f"All of a run on one page, with samples and settings: {_anchor('the report', folder)}"
            f" (`{folder}/report.html`). Here are its claims, tables and figures."
        )
    if (results / "claims.csv").is_file():
        parts += ["## The paper's claims", _claims(results / "claims.csv")]
    tables = sorted(results.glob("table*.md"))
    for path in tables:
        link = _anchor(f"{path.stem}.csv", folder, f"{path.stem}.csv")
        name = path.stem.replace("table", "Table ")
        text = re.sub(r"(?<=\d), (?=-?[\d.]+\])", ",\u00a0", path.read_text(encoding="utf-8"))
        parts += [f"## {name}", text, f"As numbers: {link}."]
    pictures = sorted(results.glob("*.png"))
    if pictures:
        parts.append("## Figures")
    for path in pictures:
        text = _described(path) or path.stem
        # A figure leads to its PDF, which prints at any size.
        lines = [f"```{{figure}} {folder}/{path.name}", f":alt: {text}"]
        if path.with_suffix(".pdf").is_file():
            lines.append(f":target: {folder}/{path.stem}.pdf")
        parts.append("\n".join([*lines, "", text, "```"]))
    if not tables and not pictures:
        parts.append("This run made no table and no figure.")
    return "\n\n".join(parts) + "\n"


def _claims(path: Path) -> str:
    header = ["claim", "the paper says", "verdict", "comparison that decided", "effect"]
    lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        effect = ""
        if row["low"]:
            value, low, high = (f"{float(row[name]):.3f}" for name in ("effect", "low", "high"))
            effect = f"{value} [{low},\u00a0{high}]"
        says = CLAIMS.get(int(row["claim"]), "")
        cells = (row["claim"], says, f"**{row['verdict']}**", f"`{row['comparison']}`", effect)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _contents(parts: dict[str, list[str]]) -> str:
    """The tables of contents that the sidebar is made of."""
    blocks = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])
        for title, pages in parts.items()
        if pages
    ]
    return "\n\n" + "\n\n".join(blocks) + "\n"


def _relinked(text: str, page: Path, root: Path) -> str:
    """The text of a page with links that hold in the site, too.

    Links to other pages and to other hosts stay; a link to a file of results becomes one to its
    copy, to a folder of results one to its report; what the site does not have stays as text.
    """

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        file = (page.parent / target.partition("#")[0]).resolve()
        inside = Path(os.path.relpath(file, root.resolve()))
        place = inside.parts[:1]
        if place in (("notebooks",), ("docs",)) and inside.suffix in PAGES and file.is_file():
            return match[0]
        if place == ("figures",):
            path = inside / "report.html" if file.is_dir() else inside
            if (root / path).is_file():
                up = "../" * (len(page.resolve().relative_to(root.resolve()).parts) - 1)
                return _anchor(label, up + path.parent.as_posix(), path.name)
        return label

    return _LINK.sub(link, text)


def _anchor(label: str, folder: str, name: str = "report.html") -> str:
    """A link as HTML: to Sphinx the file is none of its pages."""
    return f'<a href="{folder}/{name}">{label}</a>'


# --- Formulas -------------------------------------------------------------------------------------

# docutils knows \bigl( and \bigr), but not \big( and \big), whose side follows from what they size;
# and it leaves out the thin space that TeX sets between the name of a function and what is beside.
_REWRITTEN = [
    (re.compile(r"\\(big|Big|bigg|Bigg)(?=\s*(?:[(\[]|\\\{|\\langle))"), r"\\\1l"),
    (re.compile(r"\\(big|Big|bigg|Bigg)(?=\s*(?:[)\]]|\\\}|\\rangle))"), r"\\\1r"),
    (re.compile(r"\\dots(?![A-Za-z])"), r"\\ldots"),
    (re.compile(r"(\\(?:log|ln|exp))\s*\\!"), r"\1"),  # takes away a space that is not there
    (re.compile(r"(?<=[\w)}\]])\s*(\\(?:log|ln|exp)(?![A-Za-z]))"), r"\\,\1"),
    (re.compile(r"(\\(?:log|ln|exp)(?![A-Za-z]))(?!\s*(?:[(\[^_}&,.]|\\[bB]ig|\\left|\\,|$))"),
     r"\1\\,"),
]  # fmt: skip


def mathml(formula: str, block: bool = False) -> str:
    """LaTeX as MathML, which browsers draw by themselves.

    Raises:
        ValueError: something in it that docutils' converter does not know; the message names it.
    """
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml

    for pattern, known in _REWRITTEN:
        formula = pattern.sub(known, formula)
    try:
        return str(tex2mathml(formula, as_block=block))
    except MathError as error:
        raise ValueError(f"no MathML for the formula {formula!r}: {error}") from error


def _draw(translator: HTML5Translator, node: math | math_block, block: bool) -> None:
    from docutils.nodes import SkipNode
    from sphinx.util.logging import getLogger

    try:
        drawn = mathml(node.astext(), block)
    except ValueError as error:
        getLogger(__name__).warning("%s", error, location=node)
        drawn = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(f'<div class="math">{drawn}</div>\n' if block else drawn)
    raise SkipNode


def _draw_inline(translator: HTML5Translator, node: math) -> None:
    _draw(translator, node, block=False)


def _draw_block(translator: HTML5Translator, node: math_block) -> None:
    _draw(translator, node, block=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls: registers the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (_draw_inline, None), (_draw_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# --- Command --------------------------------------------------------------------------------------


def results_of(profile: str, folders: Iterable[Path]) -> Path:
    """The results of a profile, a name or a YAML file: those of the first folder that has any."""
    name = Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile
    places = [folder / name for folder in folders]
    return next((place for place in places if (place / "notebooks").is_dir()), places[0])
