"""What several test files share: small notebooks to run, and a place for artifacts of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nbformat
import pytest

from cpo.engine import precision
from cpo_suite import calibration

PARAMETERS = 'profile = "tiny"\noverrides = []\noutput = ""'

MakeNotebook = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: every notebook through the real runner; minutes")
    config.addinivalue_line("markers", "browser: a real browser; skipped where none is found")


# Files of a minute and more, the longest first. Begun last, one of them would run on alone.
LONGEST = (
    *("test_smoke", "test_processes", "test_killed_run", "test_division", "test_browser"),
    *("test_paper_smoke", "test_reply_store"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files come first; slow tests run when a marker expression asks for them, such as
    `-m slow`."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if not config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(scope="session", autouse=True)
def unmeasured_machine() -> Iterator[None]:
    """Suites of this process take fp32 for `auto` and plan by the speeds that a profile states:
    none spends time on measuring."""
    with pytest.MonkeyPatch.context() as patch:
        measured = precision.Measured("cpu", "a processor without bf16", fp32=50.0, bf16=1.0)
        patch.setattr(precision, "measure", lambda width: measured)
        patch.setattr(calibration, "measurable", lambda profile, model: False)
        patch.setattr(calibration, "_embedding", lambda characters, precision: 430.0)
        yield


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`CPO_ARTIFACTS`, in the test's own folder."""
    folder = tmp_path / "artifacts"
    monkeypatch.setenv("CPO_ARTIFACTS", str(folder))
    return folder


@pytest.fixture
def make_notebook(tmp_path: Path) -> MakeNotebook:
    """Writes `notebooks/<name>.ipynb`: a parameters cell, and one cell for each source given."""

    def make(
        name: str,
        *sources: str,
        outputs: Sequence[str] = (),
        after: Sequence[str] = (),
        parameters: str = PARAMETERS,
    ) -> Path:
        notebook = nbformat.v4.new_notebook()
        notebook.metadata["kernelspec"] = {
            "name": "cpo",
            "display_name": "CPO",
            "language": "python",
        }
        notebook.metadata["cpo"] = {"outputs": list(outputs), "after": list(after)}
        cell = nbformat.v4.new_code_cell(parameters)
        cell.metadata["tags"] = ["parameters"]
        notebook.cells = [cell, *(nbformat.v4.new_code_cell(source) for source in sources)]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return make
