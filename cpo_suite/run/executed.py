"""Executed notebooks: did every cell run, and nothing in them that belongs to one machine."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from cpo_suite.profile import ROOT

# A line drawn by tqdm, with a total or without.
_PROGRESS_BAR = re.compile(r"\d+%\|.*\||\[(\d+:)?\d\d:\d\d[,<]")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-HJKf]")
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_CELL_FILE = re.compile(r"\S*/ipykernel_\d+/\d+\.py")


def failure_in(notebook: NotebookNode) -> str:
    """Why an executed notebook does not count as done, in one line; empty where it does.

    It counts when every code cell with code in it has an execution count and none holds an error.
    Cells tagged `raises-exception` show an error on purpose.
    """
    for position, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        name = f"cell {cell.execution_count or f'at position {position}'}"
        if "raises-exception" not in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if output.output_type == "error":
                    message = _ESCAPE.sub("", f"{output.ename}: {output.evalue}")
                    return f"{name}: {' '.join(message.split())}"
        if cell.execution_count is None:
            return f"{name} was not run: the kernel died, of too little memory perhaps"
    return ""


def make_portable(notebook: NotebookNode) -> None:
    """Tidy streams, leave of widgets what is read without a kernel, and take out or shorten every
    path of this machine, in place."""
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _without_widgets(_tidy_streams(cell.outputs))
    cleaned = without_machine_paths({"cells": notebook.cells, "metadata": notebook.metadata})
    notebook.cells, notebook.metadata = cleaned["cells"], cleaned["metadata"]


def without_machine_paths(value: Any) -> Any:
    """The same value with the folders of this machine shortened in all its texts."""
    return _shorten(value, _machine_folders())


def _machine_folders() -> list[tuple[str, str]]:
    folders = {str(ROOT): ".", sys.prefix: "<environment>", str(Path.home()): "~"}
    folders[tempfile.gettempdir()] = "<temporary>"
    for name in ("CPO_DATA", "CPO_ARTIFACTS"):
        if os.environ.get(name):
            folders[str(Path(os.environ[name]).resolve())] = f"${name}"
    folders |= {str(Path(folder).resolve()): short for folder, short in folders.items()}
    # The deepest first: an environment in the checkout is not a folder of the checkout.
    usable = [(folder, short) for folder, short in folders.items() if len(folder) > 1]
    return sorted(usable, key=lambda item: -len(item[0]))


def _shorten(value: Any, folders: list[tuple[str, str]]) -> Any:
    if isinstance(value, NotebookNode):
        return NotebookNode({key: _shorten(item, folders) for key, item in value.items()})
    if isinstance(value, dict):
        # Pictures are base64: nothing to find, and much to search.
        return {
            key: item
            if str(key).startswith("image/") and key != "image/svg+xml"
            else _shorten(item, folders)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_shorten(item, folders) for item in value]
    if not isinstance(value, str):
        return value
    # Looking first is cheap; the expressions are slow on the long lines of an embedded picture.
    if "/ipykernel_" in value:
        value = _CELL_FILE.sub("<cell>", value)
    for folder, short in folders:
        if folder in value:
            value = re.sub(rf"(?<![\w/.-]){re.escape(folder)}(?![\w.-])", short, value)
    return value


def _tidy_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of a stream; of redrawn lines stays what a terminal would show."""
    tidy: list[NotebookNode] = []
    run: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type != "stream":
            run = {}
            tidy.append(output)
        elif output.name in run:
            run[output.name].text += output.text
        else:
            run[output.name] = output
            tidy.append(output)
    for output in tidy:
        if output.output_type == "stream":
            output.text = _as_shown(output.text)
    return [item for item in tidy if item.output_type != "stream" or item.text.strip()]


def _without_widgets(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Of a widget stays what stands in for it; of one with nothing but its name, nothing.

    A widget's view is preferred by whatever shows a notebook, and needs a kernel, or scripts from
    elsewhere.
    """
    kept = []
    for output in outputs:
        views = output.get("data", {})
        if _WIDGET_VIEW in views:
            del views[_WIDGET_VIEW]
            if views.keys() <= {"text/plain"}:
                continue
        kept.append(output)
    return kept


def _as_shown(text: str) -> str:
    lines = []
    for line in _CURSOR.sub("", text).split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece) :]
        redrawn = "\r" in line
        if _PROGRESS_BAR.search(shown) or (redrawn and not shown.strip()):
            continue
        lines.append(shown.rstrip() if redrawn else shown)
    return "\n".join(lines)
