"""Executed notebooks: check that every cell ran, and remove what is specific to a machine."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbconvert.filters import strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

from cpo_suite.profile import ROOT

KERNEL_DIED = "the kernel died, perhaps for lack of memory"

# A progress bar of tqdm, with or without a total.
_PROGRESS_BAR = re.compile(r"\d+%\|.*\||\[(\d+:)?\d\d:\d\d[,<]")
_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-HJKf]")
_CELL_FILE = re.compile(r"<temporary>/ipykernel_\d+/\d+\.py")
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# Base64: large, and free of paths.
_PICTURES = ("image/png", "image/jpeg", "image/gif")


def failure_in(notebook: NotebookNode) -> str:
    """Why an executed notebook failed, in one line; empty if it succeeded.

    Success: every non-empty code cell has an execution count, and none holds an error.
    """
    for position, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                message = " ".join(strip_ansi(f"{output.ename}: {output.evalue}").split())
                return f"cell {cell.execution_count}: {message}"
        if cell.execution_count is None:
            return f"the cell at position {position} was not run: {KERNEL_DIED}"
    return ""


def make_portable(notebook: NotebookNode) -> None:
    """Leave one parameters cell, with the values that ran; tidy streams, drop widgets that need a
    kernel, and remove or shorten paths of this machine.

    Changes the notebook in place.
    """
    _fold_injected_parameters(notebook)
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _tidy_streams(cell)
            _drop_widget_views(cell)
    notebook.update(without_machine_paths({"cells": notebook.cells, "metadata": notebook.metadata}))


def _fold_injected_parameters(notebook: NotebookNode) -> None:
    """Put the values of papermill's injected cell into the parameters cell, and drop the former."""
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    injected, parameters = tagged.get("injected-parameters"), tagged.get("parameters")
    if injected is None or parameters is None:
        return
    values = dict(re.findall(r"^(\w+) = (.*)$", injected.source, re.MULTILINE))
    lines = parameters.source.splitlines()
    for place, line in enumerate(lines):
        name, assigned, _ = line.partition(" = ")
        if assigned and name in values:
            lines[place] = f"{name} = {values.pop(name)}"
    if not values:  # a list over several lines, or a name of one's own, stays where it is
        parameters.source = "\n".join(lines)
        notebook.cells.remove(injected)


def _tidy_streams(cell: NotebookNode) -> None:
    """Join stream outputs; keep only the last state of redrawn lines, and no progress bar."""
    join = CoalesceStreamsPreprocessor().preprocess_cell
    join(cell, {}, 0)
    for output in cell.outputs:
        if output.output_type == "stream":
            lines = _CURSOR.sub("", output.text).splitlines(keepends=True)
            output.text = "".join(line for line in lines if not _PROGRESS_BAR.search(line))
    cell.outputs = [item for item in cell.outputs if item.get("text", "text").strip()]
    join(cell, {}, 0)  # outputs on either side of a dropped bar


def _drop_widget_views(cell: NotebookNode) -> None:
    """Replace a widget by its static fallback; drop it if that is only its name.

    Viewers prefer the widget's view, which needs a kernel or remote scripts.
    """
    for output in list(cell.outputs):
        data = output.get("data", {})
        if data.pop(_WIDGET_VIEW, None) and data.keys() <= {"text/plain"}:
            cell.outputs.remove(output)


def without_machine_paths(value: Any) -> Any:
    """The same value, with folders of this machine shortened in every text.

    Inner folders are replaced first: an environment inside the checkout is not shown as a folder of
    the checkout.
    """
    names = {str(ROOT): ".", sys.prefix: "<environment>", str(Path.home()): "~"}
    names[tempfile.gettempdir()] = "<temporary>"
    for variable in ("CPO_DATA", "CPO_ARTIFACTS"):
        if os.environ.get(variable):
            names[str(Path(os.environ[variable]).resolve())] = f"${variable}"
    names |= {str(Path(folder).resolve()): name for folder, name in names.items()}
    longest_first = sorted(names.keys() - {"/"}, key=len, reverse=True)
    folders = re.compile(rf"(?<![\w/.-])({'|'.join(map(re.escape, longest_first))})(?![\w.-])")

    def shorten(text: str) -> str:
        return _CELL_FILE.sub("<cell>", folders.sub(lambda match: names[match[1]], text))

    return map_texts(value, shorten)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of nested dictionaries and lists, with `change` applied to every text but pictures."""
    if isinstance(value, dict):
        return type(value)(
            {k: v if k in _PICTURES else map_texts(v, change) for k, v in value.items()}
        )
    if isinstance(value, (list, tuple)):
        return [map_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
