"""Self-contained pages: the report (notebook 09 as executed) and samples."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from nbformat import NotebookNode
from PIL import Image

from cpo.evaluation.judging import Judged
from cpo_suite.report.formulas import with_mathml

# Cells of a notebook that are for its reader at work.
NOT_IN_REPORT = {"exercise", "not-in-report"}
_HTML = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
_HTML.trim_blocks = _HTML.keep_trailing_newline = True


def write_report(notebook: NotebookNode, path: Path) -> None:
    """Write an executed notebook as one page, without code, exercises and cells `not-in-report`.

    Pictures are inside the page; it asks for nothing from anywhere.
    """
    from nbconvert import HTMLExporter

    shown = copy.deepcopy(notebook)
    describe_pictures(shown, path.parent, shown)
    shown.cells = [
        cell
        for cell in shown.cells
        if NOT_IN_REPORT.isdisjoint(cell.metadata.get("tags", []))
        and (cell.cell_type == "markdown" or cell.get("outputs"))
    ]
    for cell in shown.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    hidden = ("input", "output_prompt", "input_prompt", "anchor_links")
    options = {f"exclude_{part}": True for part in hidden}
    body, _ = HTMLExporter(template_name="basic", **options).from_notebook_node(shown)
    titles, number = re.findall(r"<h2>(.*?)</h2>", body), itertools.count(1)
    body = re.sub("<h2>", lambda _: f'<h2 id="section-{next(number)}">', body)
    title = f"Contrastive Preference Optimization: {path.parent.name}"
    path.write_text(page(title, body, titles), encoding="utf-8")


def describe_pictures(notebook: NotebookNode, results: Path, written: NotebookNode) -> None:
    """Give each picture an alternative text, in place.

    It is the description that the cell saved its figure with, or that in the cell's metadata as
    it is `written` now (`mystnb: {image: {alt: ...}}`), or the section that the picture stands in.
    """
    by_cell = {cell.get("id"): cell.metadata.get("mystnb") for cell in written.cells}
    section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ (.+)", cell.source, re.MULTILINE) or [section])[-1]
        elif any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            saved = re.search(r"\.save\(.*?suite\.output / \"(\w+)\"", cell.source, re.DOTALL)
            text = f"Figure of the section “{section}”; the text beside it says what is seen."
            if saved and (results / f"{saved[1]}.png").is_file():
                text = description_of(results / f"{saved[1]}.png")
            described = by_cell.get(cell.get("id")) or {"image": {"alt": text}}
            cell.metadata["mystnb"] = described  # where MyST-NB reads it; and nbconvert:
            cell.metadata["alt"] = described.get("image", {}).get("alt", text)


def description_of(picture: Path) -> str:
    """The description that `plots.save` wrote into a PNG, else its name."""
    with Image.open(picture) as image:
        return " ".join(str(image.info.get("Description", picture.stem)).split())


def page(title: str, body: str, sections: Iterable[str] = ()) -> str:
    """A page (HTML) in the report's style, which it holds.

    Args:
        body: HTML.
        sections: their titles (HTML), for a list of contents; the n-th has the id `section-n`.
    """
    template = _HTML.get_template("page.html")
    return template.render(title=title, body=Markup(body), sections=list(map(Markup, sections)))


def chosen_by_rule(
    gains: Sequence[float], best: int = 3, worst: int = 3, drawn: int = 4, seed: int = 0
) -> dict[int, str]:
    """Prompts to show, each with the reason: the largest gains, the largest losses, and a draw.

    Args:
        gains: `[n]`, by prompt, of one model over another; equal ones stay in the prompts' order.
            No prompt counts as a gain below or at 0, or as a loss above it.
        best, worst: of gains and losses shown, at most.
        drawn: of prompts drawn from all others, at most.
        seed: of the draw.
    """
    order = sorted(range(len(gains)), key=lambda at: -gains[at])
    better = {at: f"{gains[at]:+.2f}, largest gain" for at in order[:best] if gains[at] > 0}
    order = sorted(range(len(gains)), key=lambda at: gains[at])
    worse = {at: f"{gains[at]:+.2f}, largest loss" for at in order[:worst] if gains[at] < 0}
    others = [at for at in range(len(gains)) if at not in better and at not in worse]
    some = random.Random(seed).sample(others, min(drawn, len(others)))
    return better | worse | {at: f"{gains[at]:+.2f}, drawn" for at in sorted(some)}


def samples(
    examples: Sequence[Judged], texts: Mapping[str, Sequence[str]], attribution: str,
    count: int = 20, level: int = 2, chosen: Mapping[int, str] | None = None, rule: str = "",
) -> str:  # fmt: skip
    """Prompts (HTML), each with its recorded response and every model's, side by side.

    Args:
        examples: prompts; those shown are `chosen`, or else spread evenly over them.
        texts: for each name of a model its responses, aligned with `examples`.
        attribution: whose the prompts and recorded responses are, and under what licence.
        count: of prompts shown, at most.
        level: of a prompt's heading; a response's is one lower.
        chosen: numbers of the prompts shown, each with the reason, as from `chosen_by_rule`.
        rule: how they were chosen, in words.

    Raises:
        ValueError: a list of responses that is not aligned.
    """
    for name, responses in texts.items():
        if len(responses) != len(examples):
            raise ValueError(f"{name}: {len(responses)} responses to {len(examples)} prompts")
    if chosen is None:
        shown = min(count, len(examples))
        chosen = {number * len(examples) // shown: "" for number in range(shown)}
    every = {"recorded": [example.continuation for example in examples], **texts}
    return _HTML.get_template("samples.html").render(
        samples=[
            (examples[at], why, {name: every[name][at] for name in every})
            for at, why in chosen.items()
        ],
        rule=rule or "evenly spaced, none chosen",
        total=len(examples),
        attribution=attribution,
        level=level,
    )
