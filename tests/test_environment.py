"""The environment: one lock that pip and conda share, and a start script that can be relied on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cpo_suite.profile import ROOT
from cpo_suite.run import doctor

SCRIPT = ROOT / "run_all.sh"
PROMISED = [
    "jupyterlab", "papermill", "torch", "transformers", "datasets", "sentence-transformers",
    "mauve-text", "matplotlib", "openai",
]  # fmt: skip


def lock_lines() -> list[str]:
    text = (ROOT / "requirements.lock").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def locked() -> dict[str, Version]:
    requirements = [Requirement(line) for line in lock_lines()]
    return {canonicalize_name(one.name): Version(str(one.specifier)[2:]) for one in requirements}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_line_of_the_lock_is_a_pin_that_any_machine_can_follow():
    for line in lock_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line
    names = [line.split("==")[0] for line in lock_lines()]
    assert lock_lines() == sorted(lock_lines(), key=str.upper)
    assert len({canonicalize_name(name) for name in names}) == len(names)


def test_the_lock_is_for_every_accelerator(locked):
    # pip takes the build of torch that fits, and with it the CUDA packages where there is a GPU.
    assert not [name for name in locked if name.startswith(("nvidia", "triton", "cuda"))]
    assert locked["torch"].local is None
    assert "cpo-reference" not in locked


def test_the_lock_has_what_is_promised(locked):
    assert [name for name in PROMISED if name not in locked] == []


def test_the_lock_satisfies_every_dependency_of_the_project(project, locked):
    wanted = [*project["dependencies"]]
    for group in project["optional-dependencies"].values():
        wanted += group
    for text in wanted:
        requirement = Requirement(text)
        pinned = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned, prereleases=True), (text, pinned)


def test_conda_installs_the_same_pins(project, locked):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    by_conda = [one for one in environment["dependencies"] if isinstance(one, str)]
    by_pip = next(one["pip"] for one in environment["dependencies"] if isinstance(one, dict))
    assert "-r requirements.lock" in by_pip
    assert "python=3.11" in by_conda
    assert Requirement(f"python{project['requires-python']}").specifier.contains("3.11")
    for text in [*by_conda, *(one for one in by_pip if not one.startswith("-r"))]:
        name, _, pin = text.replace("==", "=").partition("=")
        if canonicalize_name(name) in locked:
            assert Version(pin) == locked[canonicalize_name(name)], text


def test_the_installed_versions_are_the_locked_ones():
    [packages] = doctor._packages()
    assert packages.ok, packages.detail


def test_the_doctor_names_a_version_that_differs(monkeypatch):
    real = doctor.package_version
    changed = {"torch": "0.1+cpu", "numpy": None}
    monkeypatch.setattr(doctor, "package_version", lambda name: changed.get(name, real(name)))
    [finding] = doctor._packages()
    assert not finding.ok
    expected = r"numpy absent instead of [\d.]+; torch 0\.1 instead of [\d.]+"
    assert re.fullmatch(expected, finding.detail)
    assert "requirements.lock" in finding.remedy


def test_the_doctor_finds_everything_that_is_missing_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CPO_DATA", raising=False)
    assert doctor.print_findings("small", ["memory_gb=1e6", "disk_gb=1e9", "gpus=99"]) == 1
    *lines, total = capsys.readouterr().out.splitlines()
    missing = [number for number, line in enumerate(lines) if line.startswith("MISSING")]
    named = {lines[number].split()[1].rstrip(":") for number in missing}
    assert named >= {"memory", "disk", "GPU", "instructions", "articles"}
    assert all(re.match("         -> .", lines[number + 1]) for number in missing)
    assert total == f"{len(missing)} of {len(lines) - len(missing)} missing"
    # With a folder that is not there, the paths in it are named as well.
    monkeypatch.setenv("CPO_DATA", str(tmp_path / "nowhere"))
    models = ["models.llama.pretrained=org/name", "judge={kind: none}"]
    findings = [item for item in doctor.inputs("small", models) if not item.ok]
    details = [item.detail for item in findings if not item.what.startswith("model")]
    assert len(details) == 2
    assert all(f"nor does {tmp_path / 'nowhere'}" in detail for detail in details)


def test_the_doctor_asks_the_hub_only_for_what_a_profile_takes_from_it(monkeypatch, tmp_path):
    asked = []

    def hub(kind: str, name: str, key: str, longest: int | None) -> list[doctor.Finding]:
        asked.append((kind, name))
        return [doctor.Finding(name, False, "not reachable", f"--set {key}=/path")]

    monkeypatch.setattr(doctor, "_reach", hub)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    list(doctor.inputs("tiny"))
    assert asked == []
    list(doctor.inputs("paper", ["models.gpt2.pretrained=/no/folder"]))
    assert asked == [
        ("dataset", "databricks/databricks-dolly-15k"),
        ("dataset", "wikimedia/wikipedia"),
        ("model", "openlm-research/open_llama_3b"),
    ]


# --- run_all.sh -----------------------------------------------------------------------------------


def start(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("script", [SCRIPT, ROOT / ".ci" / "run"])
def test_the_scripts_are_executable_and_parse(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("asked", [["help"], ["--help"], ["-h"], ["doctor", "--help"]])
def test_help_works_from_anywhere_and_installs_nothing(asked, tmp_path):
    done = start(*asked, cwd=tmp_path, VIRTUAL_ENV=str(tmp_path))
    assert done.returncode == 0
    for word in ("--profile", "--set", "--dry-run", "--from", "--only", "lab", "test", "doctor"):
        assert word in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profle", "tiny"], "unknown argument '--profle'. Did you mean '--profile'?"),
        (["run", "tiny"], "unknown argument 'tiny'"),
        (["train"], "invalid choice: 'train' (choose from 'run', 'make'"),
        (["--profile"], "argument --profile: expected one argument"),
        (["--dry-run", "--only"], "argument --only: expected one argument"),
        (["verdicts", "--forget", "none"], "invalid choice: 'none'"),
    ],
)
def test_unknown_arguments_are_refused_before_anything_is_installed(arguments, message, tmp_path):
    done = start(*arguments, VIRTUAL_ENV=str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.fixture
def environment(tmp_path) -> Path:
    """An environment whose Python writes down how it is called; VIRTUAL_ENV points to it."""
    prefix = tmp_path / "environment"
    (prefix / "bin").mkdir(parents=True)
    python = prefix / "bin" / "python"
    python.write_text(
        f'#!/bin/bash\ncase "$*" in\n'
        f'  *sys.exit* | *command_line.py*) exec {sys.executable} "$@" ;;\n'
        f'  *"import torch"*) [[ -z ${{NO_TORCH:-}} ]]; exit ;;\nesac\n'
        f'echo "$@" >>"{tmp_path}/calls"\n'
        f'[[ "$*" != *"${{FAIL_AT:-nothing}}"* ]]\n'
    )
    python.chmod(0o755)
    return prefix


def calls(tmp_path: Path) -> list[str]:
    """What the recording Python was asked since the last time."""
    file = tmp_path / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line for line in lines if not line.startswith("-c")]


def test_an_environment_is_installed_into_once(environment, tmp_path):
    first = start("--profile", "smoke", "--set", "seeds=2", VIRTUAL_ENV=str(environment))
    assert first.returncode == 0, first.stderr
    assert "once" in first.stdout
    made = calls(tmp_path)
    assert "install" in made[0] and "-r" in made[0] and "requirements.lock" in made[0]
    assert "--no-deps" in made[1] and "-e" in made[1]
    assert "ipykernel install --sys-prefix --name cpo" in made[2]
    assert made[3:] == ["-m cpo_suite --profile smoke --set seeds=2"]
    second = start("doctor", VIRTUAL_ENV=str(environment))
    assert second.stdout == ""
    assert calls(tmp_path) == ["-m cpo_suite doctor"]


def test_an_interrupted_installation_is_done_again(environment, tmp_path):
    broken = start("profiles", VIRTUAL_ENV=str(environment), FAIL_AT="ipykernel")
    assert broken.returncode != 0
    assert not [call for call in calls(tmp_path) if call.startswith("-m cpo_suite")]
    assert start("profiles", VIRTUAL_ENV=str(environment)).returncode == 0
    again = calls(tmp_path)
    assert "requirements.lock" in again[0]
    assert again[-1] == "-m cpo_suite profiles"


CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"


def machine(tmp_path: Path, system: str, gpu: bool = False) -> str:
    """A PATH on which `uname` says the system; `nvidia-smi` is there only with a GPU."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "grep", "rm", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    scripts = {"uname": f"echo {system}"} | ({"nvidia-smi": "exit 0"} if gpu else {})
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    return str(tools)


@pytest.mark.parametrize("system", ["Linux x86_64", "Linux aarch64"])
@pytest.mark.parametrize("reached", [True, False])
def test_without_a_gpu_the_cpu_build_is_tried_first(environment, tmp_path, system, reached):
    failing = {"FAIL_AT": "download.pytorch.org"} if not reached else {}
    path = machine(tmp_path, system)
    done = start("profiles", VIRTUAL_ENV=str(environment), PATH=path, NO_TORCH="1", **failing)
    assert done.returncode == 0, done.stderr
    assert ("CPU build is not available" in done.stdout) is not reached
    made = calls(tmp_path)
    [pin] = [line for line in lock_lines() if line.startswith("torch==")]
    assert CPU_INDEX in made[0] and made[0].endswith(pin)
    assert "--timeout 10 --retries 1" in made[0]  # where it is not reached, seconds are lost
    # The lock is installed all the same, from the default index.
    assert "requirements.lock" in made[1] and "index-url" not in made[1]
    assert made[-1] == "-m cpo_suite profiles"


@pytest.mark.parametrize(
    ("system", "gpu", "torch"),
    [("Linux x86_64", True, False), ("Linux x86_64", False, True), ("Darwin arm64", False, False)],
)
def test_with_a_gpu_or_a_torch_or_on_a_mac_the_lock_alone_is_installed(
    environment, tmp_path, system, gpu, torch
):
    missing = {} if torch else {"NO_TORCH": "1"}
    path = machine(tmp_path, system, gpu)
    done = start("profiles", VIRTUAL_ENV=str(environment), PATH=path, **missing)
    assert done.returncode == 0, done.stderr
    assert "CPU build" not in done.stdout
    made = calls(tmp_path)
    assert "requirements.lock" in made[0]
    assert not [call for call in made if CPU_INDEX in call]


def test_the_exit_code_is_handed_on(environment):
    assert start("profiles", VIRTUAL_ENV=str(environment)).returncode == 0
    failed = start("doctor", VIRTUAL_ENV=str(environment), FAIL_AT="doctor")
    assert failed.returncode == 1


def test_relative_data_folders_mean_where_the_command_was_typed(environment, tmp_path):
    (tmp_path / "here" / "data").mkdir(parents=True)
    python = environment / "bin" / "python"
    text = python.read_text().replace('echo "$@"', 'echo "$CPO_DATA" "$CPO_ARTIFACTS"')
    python.write_text(text)
    done = start(
        "profiles",
        cwd=tmp_path / "here",
        VIRTUAL_ENV=str(environment),
        CPO_DATA="data",
        CPO_ARTIFACTS="made",
    )
    assert done.returncode == 0
    here = tmp_path / "here"
    assert calls(tmp_path)[-1] == f"{here / 'data'} {here / 'made'}"


def test_an_environment_of_another_python_is_refused(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    done = start("profiles", VIRTUAL_ENV=str(tmp_path))
    assert done.returncode == 2
    assert "has no Python 3.11, 3.12 or 3.13" in done.stderr
