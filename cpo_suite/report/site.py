"""The book: executed notebooks, results and pages of text as one site that opens offline.

`gather` lays the pages out as the checkout has them, so that links hold; Sphinx, with MyST-NB, Furo
and the settings of `docs/conf.py`, makes the site of them. Nothing is executed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from cpo_suite.profile import ROOT
from cpo_suite.report.page import describe_pictures

CONTENTS = {"Course": "notebooks/[0-9]*", "Appendix": "notebooks/A*", "More": "docs/*"}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")

_PARAMETERS = {"parameters", "injected-parameters"}
_DRAWING = re.compile(r"!\[[^\]]*\]\(([^()\s:]+\.svg)\)")  # of the project, not of a run


def results_of(profile: str, folders: Iterable[Path]) -> Path:
    """The results of a profile, a name or a YAML file: those of the first folder that has any."""
    name = Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile
    candidates = [folder / name for folder in folders]
    return next((path for path in candidates if (path / "notebooks").is_dir()), candidates[0])


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


def gather(results: Path, source: Path, root: Path = ROOT) -> None:
    """Write all pages of the site, and the files that they link to, into the folder `source`."""
    for name in ("notebooks", "docs", "figures"):
        (source / name).mkdir(parents=True)
    for path in (root / "notebooks").glob("[0-9A][0-9]_*.ipynb"):
        nbformat.write(notebook_page(path, results), source / "notebooks" / path.name)
    for path in [*(root / "docs").glob("*.md"), root / "README.md"]:
        text = _relinked(path.read_text(encoding="utf-8"), path, root)
        (source / path.relative_to(root)).write_text(text, encoding="utf-8")
        for drawing in _DRAWING.findall(text):
            kept = source / os.path.relpath(path.parent / drawing, root)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path.parent / drawing, kept)
    # Reports and tables as files: of this run, and of those that the README speaks of.
    marks = chain(*((root / "figures").glob(f"*/{name}") for name in ("report.html", "claims.csv")))
    runs = {path.parent.name: path.parent for path in marks}
    for name, run in (runs | {results.name: results}).items():
        if run.is_dir():
            without = shutil.ignore_patterns("notebooks")
            shutil.copytree(run, source / "figures" / name, ignore=without)
    start = (source / "README.md").rename(source / "index.md")
    with start.open("a", encoding="utf-8") as page:
        for title, pages in CONTENTS.items():
            if any(source.glob(f"{pages}.*")):
                options = f":hidden:\n:glob:\n:caption: {title}"
                page.write(f"\n```{{toctree}}\n{options}\n\n{pages}\n```\n")


def notebook_page(path: Path, results: Path) -> NotebookNode:
    """A notebook as a page: its executed copy, where the run has one."""
    written = nbformat.read(path, as_version=4)
    executed = results / "notebooks" / path.name
    notebook = nbformat.read(executed, as_version=4) if executed.is_file() else written
    notebook.metadata.pop("widgets", None)  # a live widget needs a kernel; its picture is shown
    describe_pictures(notebook, results, written)
    note = "This page shows the notebook as it was run; it has changed since."
    if notebook is written:
        note = f"This notebook was not run in the run shown here, `{results.name}`: no outputs."
    if notebook is written or _code(written) != _code(notebook):
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"```{{note}}\n{note}\n```"))
    return notebook


def _code(notebook: NotebookNode) -> list[str]:
    """The sources of a notebook's code cells but its parameters, whose values a run changes."""
    return [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and _PARAMETERS.isdisjoint(cell.metadata.get("tags", []))
    ]


def _relinked(text: str, page: Path, root: Path) -> str:
    """The text of a page with links that hold in the site, too.

    Links to other pages and to other hosts stay; a link to a file of results becomes one to its
    copy, to a folder of results one to its report; what the site does not have stays as text.
    """

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        file = page.parent / target.partition("#")[0]
        kind = os.path.relpath(file, root).split(os.sep)[0]
        if kind in ("notebooks", "docs") and file.suffix in (".ipynb", ".md") and file.is_file():
            return match[0]
        if kind == "figures" and file.is_dir():
            file, target = file / "report.html", f"{target.rstrip('/')}/report.html"
        # Not a page of Sphinx's, so the link is HTML.
        return f'<a href="{target}">{label}</a>' if kind == "figures" and file.is_file() else label

    return _LINK.sub(link, text)
