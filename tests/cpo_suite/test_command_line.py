"""Bad input through the command line: refused with exit code 2, the nearest valid name offered."""

from __future__ import annotations

import pytest

from cpo.evaluation.judge_prompts import INVALID_KINDS
from cpo_suite.__main__ import main
from cpo_suite.run import command_line, runner


@pytest.fixture(autouse=True)
def notebooks(make_notebook, tmp_path, artifacts, monkeypatch):
    """The command runs the test's own two notebooks, and must not start either."""
    make_notebook("00_the_method", "raise SystemError('it ran')")
    make_notebook("03_ablation", "raise SystemError('it ran')")
    real = runner.run_suite

    def on_these(*given):
        return real(*given, root=tmp_path, plan=lambda *_: [])

    monkeypatch.setattr(runner, "run_suite", on_these)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "tinny"], "unknown profile 'tinny'. Did you mean 'tiny'?"),
        (["run", "--profile", "none.yaml"], "no profile file"),
        (["run", "--set", "sedes=3"], "unknown key 'sedes'. Did you mean 'seeds'?"),
        (["--set", "sedes=3"], "unknown key 'sedes'. Did you mean 'seeds'?"),
        (["run", "--set", "continuation.betta=3"], "Did you mean 'beta'?"),
        (["run", "--set", "seeds=three"], "seeds: Input should be a valid integer"),
        (["run", "--set", "seeds"], "an override is dotted.key=value, not 'seeds'"),
        (["run", "--only", "30"], "unknown notebook '30'"),
        (["run", "--from", "03_ablaton"], "Did you mean '03_ablation'?"),
        (["run", "--onyl", "03"], "unknown argument '--onyl'. Did you mean '--only'?"),
        (["run", "--profile"], "expected one argument"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["verdicts", "--forget", "none"], "invalid choice: 'none'"),
        (["diff", "figures/tiny"], "required: after"),
        (["lab"], "start it with `./run_all.sh lab`"),
        (["site", "--profile", "tinny"], "unknown profile 'tinny'. Did you mean 'tiny'?"),
        (["doctor", "--profile", "smal"], "unknown profile 'smal'. Did you mean 'small'?"),
        (["run", "--profile", "small"], "not set: `CPO_DATA=/path ./run_all.sh --profile small`"),
        (["run", "--profile", "small", "--dry-run", "--only", "9"], "unknown notebook '9'"),
    ],
)
def test_bad_input_is_refused_and_nothing_runs(arguments, message, capsys, monkeypatch, artifacts):
    monkeypatch.delenv("CPO_DATA", raising=False)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not artifacts.exists()


def test_a_failing_notebook_gives_exit_code_1(capsys):
    assert main(["run", "--profile", "smoke"]) == 1
    assert capsys.readouterr().out.count("SystemError: it ran") == 4  # as it fails, and at the end


def test_a_hub_that_cannot_be_reached_is_said_before_anything_runs(capsys, monkeypatch, artifacts):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setenv("HF_HUB_CACHE", str(artifacts))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("dataset_info", "model_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, unreachable)
    assert main(["run", "--profile", "paper"]) == 2
    said = capsys.readouterr().err
    for name in ("databricks/databricks-dolly-15k", "openai-community/gpt2-xl"):
        assert f"{name} from the hub: not reachable (ConnectionError)" in said
    assert "--set models.gpt2.pretrained=/path" in said
    assert not artifacts.exists()


def test_the_kinds_of_invalid_verdicts_are_those_of_the_store():
    assert set(command_line.FORGETTABLE) == set(INVALID_KINDS)


def test_profiles_are_listed_with_what_they_need(capsys):
    assert main(["profiles"]) == 0
    said = capsys.readouterr().out
    for name in ("paper", "small", "smoke", "tiny"):
        assert name in said
    assert "2 CPU cores" in said
    assert "minutes" in said


def test_the_doctor_ends_with_1_where_something_is_missing(capsys, monkeypatch):
    monkeypatch.delenv("CPO_DATA", raising=False)
    assert main(["doctor", "--profile", "small"]) == 1
    assert "CPO_DATA=/path ./run_all.sh --profile small" in capsys.readouterr().out
