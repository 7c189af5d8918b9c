"""Pages that need nothing else: the report, which is notebook 09 as it was run, and samples."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image

from cpo.evaluation.judging import Judged
from cpo_suite.report.formulas import with_mathml

# Cells of a notebook that are for its reader at work.
NOT_IN_REPORT = {"exercise", "not-in-report"}


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
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_output_prompt=True,
        exclude_input_prompt=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(shown)
    links = ""
    for number, title in enumerate(re.findall(r"<h2>(.*?)</h2>", body), start=1):
        links += f'<li><a href="#section-{number}">{title}</a></li>'
        body = body.replace("<h2>", f'<h2 id="section-{number}">', 1)
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
    title = f"Contrastive Preference Optimization: {path.parent.name}"
    path.write_text(page(title, contents + body), encoding="utf-8")


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
    """What a PNG that `plots.save` wrote says of itself; its name where it says nothing."""
    with Image.open(picture) as image:
        return " ".join(str(image.info.get("Description", picture.stem)).split())


def page(title: str, body: str) -> str:
    """A page (HTML) in the report's style, which it holds."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def samples(
    examples: Sequence[Judged], texts: Mapping[str, Sequence[str]], attribution: str,
    count: int = 20, level: int = 2,
) -> str:  # fmt: skip
    """Prompts (HTML), each with its recorded response and every model's, side by side.

    Args:
        examples: prompts; those shown are spread evenly over them, not chosen.
        texts: for each name of a model its responses, aligned with `examples`.
        attribution: whose the prompts and recorded responses are, and under what licence.
        count: of prompts shown, at most.
        level: of a prompt's heading; a response's is one lower.

    Raises:
        ValueError: a list of responses that is not aligned.
    """
    for name, responses in texts.items():
        if len(responses) != len(examples):
            raise ValueError(f"{name}: {len(responses)} responses to {len(examples)} prompts")
    shown = min(count, len(examples))
    parts = [
        f"<p>{shown} of {len(examples):,} held-out prompts, evenly spaced, none chosen. "
        f"{html.escape(attribution)}</p>"
    ]
    for index in (number * len(examples) // shown for number in range(shown)):
        example = examples[index]
        columns = {"recorded": example.continuation}
        columns |= {name: responses[index] for name, responses in texts.items()}
        cells = "".join(
            f"<div><h{level + 1}>{html.escape(name)}</h{level + 1}>"
            f"<pre>{html.escape(text) or '<i>(empty)</i>'}</pre></div>"
            for name, text in columns.items()
        )
        parts.append(
            f"<h{level}>{html.escape(example.id)}</h{level}>"
            f'<pre class="prompt">{html.escape(example.prefix)}</pre>'
            f'<div class="side">{cells}</div>'
        )
    return "\n".join(parts)
