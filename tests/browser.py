"""A real JupyterLab and a real Chromium for `test_browser.py`, with nothing of the user's in them.

The lab is that of `./run_all.sh lab`, on copies of notebooks, with settings and artifacts of its
own. The browser writes down what its pages ask for and complain of, and finds no other host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright
from playwright.sync_api import TimeoutError as NotInTime

from cpo_suite.profile import ROOT

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
LOCAL = re.compile(r"(file|data|blob):|(https?|wss?)://(127\.0\.0\.1|localhost)[:/]")
# What JupyterLab asks its own server for where it means to call out: news, releases, extensions.
CALLS_OUT = re.compile(r"/lab/api/(news|update|extensions)\b")
# What a console may say without anything being wrong, each with the reason.
BENIGN: dict[str, str] = {}

# --- The browser ----------------------------------------------------------------------------------


def find_chromium() -> str | None:
    """The browser to test with: what CPO_BROWSER names, or one of the usual names; None if none.

    Raises:
        FileNotFoundError: CPO_BROWSER is set, and no program.
    """
    named = os.environ.get("CPO_BROWSER")
    if named and not shutil.which(named):
        raise FileNotFoundError(f"CPO_BROWSER={named}: no such program. Install Debian's chromium")
    return next(filter(None, map(shutil.which, [named] if named else CHROMIUMS)), None)


def launch(playwright: Playwright, program: str) -> Browser:
    """A headless browser for which there is no host but this machine."""
    return playwright.chromium.launch(
        executable_path=program,
        # As root, and in most containers, Chromium's sandbox does not start.
        chromium_sandbox=False,
        args=[
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
        ],
    )


@dataclass
class Watch:
    """What the pages of one browser context asked for, and what they complained of."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.benign = [re.compile(pattern) for pattern in BENIGN]

    def over(self, context: BrowserContext) -> None:
        """Begin to watch; call before the first page is opened."""
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("page", self._page)
        context.on("weberror", lambda one: self._complain(f"exception: {one.error}"))
        context.on(
            "console",
            lambda said: (
                said.type == "error"
                and self._complain(f"console: {said.text} ({said.location.get('url')})")
            ),
        )

    def _page(self, page: Page) -> None:
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("crash", lambda _: self._complain("the page crashed"))

    def _complain(self, text: str) -> None:
        if not any(pattern.search(text) for pattern in self.benign):
            self.complaints.append(text)

    def assert_quiet(self) -> None:
        """No errors in any console, and no request that left, or meant to leave, the machine."""
        assert self.requests, "nothing was asked for: the watch was set too late"
        assert [url for url in self.requests if not LOCAL.match(url)] == []
        assert [url for url in self.requests if CALLS_OUT.search(url)] == []
        assert self.complaints == []


def broken_pictures(page: Page) -> list[str]:
    """Addresses of pictures, in the page as it is shown now, that did not load."""
    return page.evaluate(
        """async () => {
          const broken = [];
          for (const picture of document.images) {
            picture.loading = 'eager';
            try { await picture.decode(); } catch { broken.push(picture.src.slice(0, 200)); }
          }
          return broken;
        }"""
    )


# --- The lab --------------------------------------------------------------------------------------


@dataclass
class Lab:
    """A JupyterLab that runs: where, and the folder with its `checkout/` and `artifacts/`."""

    folder: Path
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET") -> bytes:
        """One request to the server's own interface, such as `api/status`."""
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=20) as answer:
            return answer.read()

    def notebook(self, name: str) -> dict:
        """The notebook as it lies on the disk."""
        path = self.folder / "checkout" / "notebooks" / f"{name}.ipynb"
        return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def jupyter_lab(folder: Path, notebooks: Sequence[str], profile: str) -> Iterator[Lab]:
    """`./run_all.sh lab` on copies of some notebooks, until the end of the block.

    Args:
        folder: an empty folder for all that the lab reads and writes.
        notebooks: names, such as `00_the_method_by_hand`.
        profile: written into the notebooks' parameters, in the place of `tiny`.

    Raises:
        RuntimeError: the lab did not start; the message has the end of its log.
    """
    checkout = _copy_of_the_checkout(folder / "checkout", notebooks, profile)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Lab(folder, port, secrets.token_hex(16))
    log = folder / "lab.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [checkout / "run_all.sh", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
            + [f"--port={port}", "--ServerApp.port_retries=0"],
            cwd=checkout,
            env=_environment(lab),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(lab, process, log)
        yield lab
    finally:
        _stop(lab, process)


def _copy_of_the_checkout(checkout: Path, notebooks: Sequence[str], profile: str) -> Path:
    shutil.copytree(ROOT / "jupyter", checkout / "jupyter")
    for name in ("run_all.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "notebooks").mkdir()
    for name in notebooks:
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        [cell] = [
            one for one in notebook["cells"] if "parameters" in one["metadata"].get("tags", ())
        ]
        before = "".join(cell["source"])
        cell["source"] = before.replace('profile = "tiny"', f"profile = {json.dumps(profile)}")
        assert cell["source"] != before
        (checkout / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))
    return checkout


def _environment(lab: Lab) -> dict[str, str]:
    # run_all.sh takes this for an environment in which there is nothing left to install.
    python = lab.folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '  "-m pip "* | "-m ipykernel install "* | "-c import torch") exit 0 ;;\n'
        f'esac\nexec {shlex.quote(sys.executable)} "$@"\n'
    )
    python.chmod(0o755)
    own = lab.folder / "jupyter"
    kernel = own / "kernels" / "cpo" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": arguments, "display_name": "CPO", "language": "python"}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    kept.pop("CPO_PLAIN_PROGRESS", None)
    return kept | {
        "VIRTUAL_ENV": str(python.parent.parent),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CPO_ARTIFACTS": str(lab.folder / "artifacts"),
        "JUPYTER_TOKEN": lab.token,
        "JUPYTER_PATH": str(own),  # before the environment's and the user's
        "JUPYTER_DATA_DIR": str(own),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "IPYTHONDIR": str(own / "ipython"),
    }


def _wait_for(lab: Lab, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            lab.ask("api/status")
            return
        time.sleep(0.1)
    why = "took too long" if process.poll() is None else f"ended with {process.returncode}"
    raise RuntimeError(f"JupyterLab {why}. Its log ends:\n{log.read_text()[-3000:]}")


def _stop(lab: Lab, process: subprocess.Popen) -> None:
    """Ask it to end, with its kernels; end by force what is left of it."""
    started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    with contextlib.suppress(urllib.error.URLError, OSError):
        lab.ask("api/shutdown", "POST")
    _, left = psutil.wait_procs(started, timeout=15)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(timeout=15)


# --- A notebook in the lab ------------------------------------------------------------------------

# What is found when all code cells have run; null before. A cell that failed ends the waiting.
_FINISHED = """
expected => {
  const cells = [...document.querySelectorAll('.jp-Notebook .jp-Cell')];
  if (cells.length !== expected.length) return null;
  for (const [index, cell] of cells.entries()) {
    if (expected[index] === 'may fail') continue;
    const outputs = cell.querySelectorAll('.jp-OutputArea-child:not([data-stale])');
    for (const output of outputs) {
      const failed = output.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
      const said = output.querySelector('[data-mime-type="application/vnd.jupyter.stderr"]');
      const text = (failed ?? said)?.textContent ?? '';
      if (failed || text.includes('Traceback (most recent call last)')) return {index, text};
    }
  }
  if (document.querySelector('[data-stale]')) return null;
  // A cell whose source is hidden shows a placeholder, which has no number.
  const prompts = cells.filter((_, index) => expected[index])
    .map(cell => cell.querySelector('.jp-InputPlaceholder')
      ? 'hidden' : cell.querySelector('.jp-InputPrompt').textContent.trim());
  if (prompts.some(prompt => prompt !== 'hidden' && !/^\\[\\d+\\]:$/.test(prompt))) return null;
  const status = document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;
  return status === 'idle' ? {prompts} : null;
}
"""


class NotebookPage:
    """One notebook, open in JupyterLab: what a person does there."""

    def __init__(self, context: BrowserContext, lab: Lab, name: str) -> None:
        self.page = context.new_page()
        self.lab = lab
        self.name = name
        self.cells = lab.notebook(name)["cells"]
        # A workspace of its own: no tabs of other tests.
        self.page.goto(f"{lab.url}/lab/workspaces/{name}/tree/{name}.ipynb?token={lab.token}")
        self.page.locator(".jp-Notebook .jp-Cell").nth(len(self.cells) - 1).wait_for(
            state="attached", timeout=60_000
        )
        self.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(
            timeout=60_000
        )

    def cell(self, identity: str) -> Locator:
        """The cell with that id in the notebook's file."""
        [index] = [at for at, one in enumerate(self.cells) if one["id"] == identity]
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def show(self, identity: str) -> None:
        """Scroll the cell to the top of what is seen."""
        # Twice: what comes into sight is only then laid out, and moves the rest.
        for _ in range(2):
            self.cell(identity).evaluate(
                """cell => new Promise(done => {
                     cell.scrollIntoView({block: 'start'});
                     requestAnimationFrame(() => requestAnimationFrame(done));
                   })"""
            )

    def control(self, identity: str, description: str) -> Locator:
        """The control with that description among the widgets that a cell shows."""
        name = re.compile(f"^{re.escape(description)}$")
        label = self.page.locator(".widget-label", has_text=name)
        return self.cell(identity).locator(".widget-inline-hbox", has=label)

    def menu(self, *labels: str) -> None:
        """Choose from the menu bar, such as `menu("Run", "Run All Cells")`."""
        bar, *items = (re.compile(f"^{re.escape(label)}$") for label in labels)
        self.page.locator(".lm-MenuBar-itemLabel", has_text=bar).click()
        for item in items:
            self.page.locator(".lm-Menu-itemLabel:visible", has_text=item).click()

    def run_all(self) -> None:
        """Run all cells, and wait until they have run.

        Raises:
            AssertionError: a cell failed; the message has its code and its traceback.
        """
        self._mark_outputs()
        self.menu("Run", "Run All Cells")
        self._wait_until_run()

    def restart_and_run_all(self) -> None:
        """Restart the kernel and run all cells, and wait until they have run; raises as run_all."""
        self._mark_outputs()
        self.menu("Kernel", "Restart Kernel and Run All Cells…")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self._wait_until_run()

    def _mark_outputs(self) -> None:
        # Running a cell takes its outputs away: once no mark is left, all that is shown is new.
        self.page.evaluate(
            """() => document.querySelectorAll('.jp-Notebook .jp-OutputArea-child')
                 .forEach(output => { output.dataset.stale = 'yes'; })"""
        )

    def _wait_until_run(self, seconds: float = 150) -> None:
        def expected(cell: dict) -> str:
            if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
                return ""
            return "may fail" if "raises-exception" in cell["metadata"].get("tags", ()) else "runs"

        try:
            found = self.page.wait_for_function(
                _FINISHED,
                arg=[expected(cell) for cell in self.cells],
                timeout=seconds * 1000,
                polling=200,
            ).json_value()
        except NotInTime as error:
            shown = self.page.locator(".jp-InputPrompt, .jp-Dialog-content").all_text_contents()
            raise AssertionError(f"{self.name} did not end in {seconds} s: {shown}") from error
        if "prompts" not in found:
            failed = self.cells[found["index"]]
            source = "".join(failed["source"])
            text = f"cell '{failed['id']}' of {self.name} failed:\n{source}\n\n{found['text']}"
            raise AssertionError(text)
        # Other numbers: the kernel was not fresh, or cells ran in another order. A hidden cell
        # counts, so the numbers after it say whether it ran.
        wanted = [
            prompt if prompt == "hidden" else f"[{number}]:"
            for number, prompt in enumerate(found["prompts"], start=1)
        ]
        assert found["prompts"] == wanted
