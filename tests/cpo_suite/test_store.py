"""A recipe names an artifact by all that determines it; the store makes it once, whole or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo.engine.files import MANIFEST, hash_file, hash_folder, write_atomically
from cpo_suite import provenance
from cpo_suite.store import Artifact, Store, how, walk


def nothing(folder: Path) -> None:
    """Builds an empty artifact."""


@dataclass(frozen=True)
class Inner(Artifact):
    stage: ClassVar[str] = "inner"
    version: ClassVar[int] = 1

    size: int = 1
    make: Callable[[Path], object] = how(default=nothing)

    def build(self, folder: Path, store: Store) -> None:
        self.make(folder)


@dataclass(frozen=True)
class Outer(Artifact):
    stage: ClassVar[str] = "outer"
    version: ClassVar[int] = 1

    start: Inner = Inner()
    rate: float = 0.5
    counts: tuple[int, ...] = (1, 2)
    kinds: dict[str, int] | None = None
    name: str = "a"
    micro_batch: int = how(default=8)
    make: Callable[[Path], object] = how(default=nothing)

    def build(self, folder: Path, store: Store) -> None:
        self.make(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"start": Inner(2)},
        {"rate": 0.25},
        {"counts": (2, 1)},
        {"kinds": {"BN": 3}},
        {"name": "b"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_that_says_what_changes_the_key(change):
    assert replace(Outer(), **change).key != Outer().key


def test_a_field_that_says_how_does_not_change_the_key():
    assert replace(Outer(), micro_batch=1).key == Outer().key


def test_a_new_version_of_a_stage_is_another_artifact():
    @dataclass(frozen=True)
    class Newer(Inner):
        version: ClassVar[int] = 2

    assert Newer().key != Inner().key
    assert Outer(start=Newer()).key != Outer().key


@given(st.dictionaries(st.text(max_size=3), st.integers(), min_size=2, max_size=4))
def test_the_order_of_a_mapping_does_not_matter(kinds):
    backwards = dict(reversed(kinds.items()))
    assert Outer(kinds=kinds).key == Outer(kinds=backwards).key


def test_a_recipe_holds_plain_values_only():
    with pytest.raises(TypeError, match="not PosixPath"):
        _ = Outer(name=Path("x")).key


def test_an_artifact_is_made_once_and_found_again(tmp_path):
    store, calls = Store(tmp_path), []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "part").mkdir()
        (folder / "part" / "x.txt").write_text("content")

    assert store.find(Inner()) is None
    with pytest.raises(FileNotFoundError, match="has not been built"):
        store.manifest(Inner())
    path = store.get(Inner(make=make))
    assert store.get(Inner(make=make)) == path == store.find(Inner())
    assert len(calls) == 1
    manifest = store.manifest(Inner())
    # A field at its default stays out, so that a field added later does not rename older artifacts.
    assert manifest["recipe"] == {"stage": "inner", "version": 1}
    assert Inner(size=2).describe() == {"stage": "inner", "version": 1, "size": 2}
    assert manifest["sha256"] == {"part/x.txt": hash_file(path / "part" / "x.txt")}
    assert manifest["seconds"] >= 0


def test_what_an_artifact_needs_is_built_before_it_and_each_has_its_own_seconds(
    tmp_path, monkeypatch
):
    store, order = Store(tmp_path), []

    def inner(folder: Path) -> None:
        order.append("inner")
        time.sleep(0.2)

    def outer(folder: Path) -> None:
        order.append("outer")
        time.sleep(0.05)

    provenance.provenance()  # is kept, and is to tell of this machine
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    whole = Outer(start=Inner(make=inner), make=outer)
    assert walk(whole, whole.start) == [whole.start, whole]
    store.get(whole)
    assert order == ["inner", "outer"]
    part = store.manifest(whole.start)
    assert 0.2 <= part["seconds"] < 0.35 and (part["processes"], part["gpus"]) == (1, 1)
    assert 0.05 <= store.manifest(whole)["seconds"] < 0.2
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    store.get(Inner(3))
    assert store.manifest(Inner(3))["gpus"] == 0


def test_what_is_built_elsewhere_is_not_built_here(tmp_path):
    store, asked = Store(tmp_path), []

    def elsewhere(artifact: Artifact) -> bool:
        asked.append(artifact)
        if isinstance(artifact, Outer):
            return False
        Store(tmp_path).get(artifact)
        return True

    store.elsewhere = elsewhere
    here = []
    store.get(Outer(start=Inner(make=nothing), make=here.append))
    assert asked == [Inner(), Outer()] and len(here) == 1 and store.find(Inner())


def test_a_make_that_fails_leaves_only_its_partial_work(tmp_path):
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        store.partial(Inner()).mkdir(parents=True)
        (store.partial(Inner()) / "checkpoint").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(Inner(make=fail))
    assert store.find(Inner()) is None
    assert [path.name for path in (tmp_path / "inner").iterdir()] == [f"{Inner().key}.lock"]
    assert (store.partial(Inner()) / "checkpoint").exists()
    store.get(Inner())
    assert not store.partial(Inner()).exists()


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path):
    store = Store(tmp_path)
    store.path(Inner()).mkdir(parents=True)
    (store.path(Inner()) / "stray").write_text("x")
    path = store.get(Inner(make=lambda folder: (folder / "x").write_text("y")))
    assert sorted(item.name for item in path.iterdir()) == sorted([MANIFEST, "x"])


MAKER = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from cpo_suite.store import Artifact, Store

@dataclass(frozen=True)
class Inner(Artifact):
    stage: ClassVar[str] = "inner"
    version: ClassVar[int] = 1
    size: int = 1

    def build(self, folder, store):
        (folder / "first").write_text("x")
        with open(sys.argv[2], "a") as calls:
            calls.write("made\\n")
        time.sleep(float(sys.argv[3]))
        (folder / "second").write_text("x")

print(Store(sys.argv[1]).get(Inner()))
"""


def start(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    calls = str(tmp_path / "calls")
    arguments = [sys.executable, "-c", MAKER, str(tmp_path / "store"), calls, str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def test_kill_in_the_middle_leaves_nothing_and_the_next_call_makes_it(tmp_path):
    process = start(tmp_path, 60)
    wait_for(tmp_path / "calls")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    store = Store(tmp_path / "store")
    assert store.find(Inner()) is None
    assert not store.path(Inner()).exists()

    def make(folder: Path) -> None:
        assert os.listdir(folder) == []  # nothing of the killed one
        (folder / "second").write_text("y")

    path = store.get(Inner(make=make))
    assert sorted(os.listdir(path)) == sorted([MANIFEST, "second"])
    # No temporary folder stays beside it.
    assert sorted(os.listdir(tmp_path / "store" / "inner")) == [path.name, f"{path.name}.lock"]


def test_two_processes_share_one_artifact(tmp_path):
    both = [start(tmp_path, 1.0), start(tmp_path, 1.0)]
    said = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] == str(Store(tmp_path / "store").find(Inner()))
    assert (tmp_path / "calls").read_text() == "made\n"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "a.txt").write_text("other"), "a.txt was altered or cut short"),
        (lambda folder: (folder / "a.txt").write_text("on"), "a.txt was altered or cut short"),
        (lambda folder: (folder / "a.txt").unlink(), "a.txt is missing"),
        (lambda folder: (folder / MANIFEST).write_text('{"sha'), "its manifest cannot be read"),
    ],
    ids=["altered", "truncated", "lost", "manifest"],
)
def test_a_damaged_artifact_is_made_again_and_said(tmp_path, capsys, damage, said):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "a.txt").write_text("one")

    folder = Store(tmp_path).get(Inner(make=make))
    assert Store(tmp_path).get(Inner(make=make)) == folder and len(made) == 1
    damage(folder)
    assert Store(tmp_path).get(Inner(make=make)) == folder and len(made) == 2
    assert f"inner {Inner().key}: {said}; rebuilding it" in capsys.readouterr().out
    assert (folder / "a.txt").read_text() == "one"
    assert Store(tmp_path).get(Inner(make=make)) == folder and len(made) == 2


def test_hashes_follow_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = hash_folder(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")  # says about the folder, is not of it
    assert hash_folder(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = hash_folder(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, hash_folder(tmp_path)}) == 3


def test_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(path, json.dumps([1]))
    write_atomically(path, json.dumps([2]))
    assert json.loads(path.read_text()) == [2]
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_manifest_names_no_host_and_no_folder(tmp_path):
    store = Store(tmp_path)
    path = store.get(Inner())
    text = (path / MANIFEST).read_text()
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text
    assert str(Path.home()) + "/" not in text


def test_results_under_figures_do_not_make_a_checkout_unclean(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "cpo").mkdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "cpo" / "provenance.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "cpo" / "provenance.py"))
    (tmp_path / "figures" / "table.csv").write_text("x")
    revision = provenance.git_revision()
    assert revision["clean"]
    assert len(revision["revision"]) == 40
    (tmp_path / "cpo" / "losses.py").write_text("x")
    assert not provenance.git_revision()["clean"]
