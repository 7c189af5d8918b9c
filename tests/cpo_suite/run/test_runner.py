"""The runner on small notebooks: what counts as success, what is kept, what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from stand_ins import write_articles, write_dolly

from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT, ProfileError, load_profile
from cpo_suite.profile_files import parse_value
from cpo_suite.run import doctor
from cpo_suite.run.executed import make_portable, without_machine_paths
from cpo_suite.run.runner import BadInput, run_suite
from cpo_suite.suite import Suite

WRITE = "from pathlib import Path\nPath(output, {name!r}).write_text({text!r})"


# A dry run keeps what it measured of the machine, so that the run reckons with the same.
SPEEDS_ALONE = ["machine.json", "machine.json.lock"]


def write(name: str, text: str = "made") -> str:
    return WRITE.format(name=name, text=text)


@pytest.fixture
def suite(tmp_path, artifacts, monkeypatch):
    """Runs the test's notebooks at the size of `smoke`; returns the exit code."""

    def run(*settings: str, profile: str = "smoke", **options) -> int:
        return run_suite(
            profile,
            settings,
            root=tmp_path,
            plan=lambda profile, overrides, output: [],
            **options,
        )

    return run


@pytest.fixture
def output(artifacts):
    return artifacts / "figures" / "smoke"


def test_success_promotes_the_executed_copy_and_writes_the_record(suite, make_notebook, output):
    make_notebook("00_good", write("table.csv"), "print('seen')", outputs=["table.csv"])
    assert suite() == 0
    assert (output / "table.csv").read_text() == "made"
    copy = nbformat.read(output / "notebooks" / "00_good.ipynb", as_version=4)
    assert copy.cells[-1].outputs[0].text == "seen\n"
    assert os.listdir(output / "notebooks") == ["00_good.ipynb"]
    record = json.loads((output / "run.json").read_text())
    assert record["profile"] == "smoke"
    assert record["settings"]["models"]["llama"]["config"]["hidden_size"] == 64
    assert record["notebook_seconds"].keys() == {"00_good"}


def test_the_record_tells_of_each_artifact_what_it_took_and_its_content(
    make_notebook, tmp_path, artifacts, output
):
    def write_manifest(key: str, **values) -> Planned:
        (artifacts / "model" / key).mkdir(parents=True)
        manifest = {
            "recipe": {"seed": 7}, "seconds": 90.0, "made": "2026-01-01T00:00:00Z",
            "provenance": {"machine": "one", "git": {"revision": "abc", "clean": False}},
            "sha256": {"model.safetensors": "00"},
        }  # fmt: skip
        path = artifacts / "model" / key / "manifest.json"
        path.write_text(json.dumps(manifest | values))
        return Planned("model t1/ANR", "model", key, True, 0.0, 1.0, 1.0)

    # 90 s on 8 GPUs are 720 GPU-seconds, 0.2 hours; on none they are 0.
    planned = [
        write_manifest("aa", gpus=8),
        write_manifest("bb", gpus=0, sha256={"model.safetensors": "01"}),
        write_manifest("cc"),  # by a version that did not count
        Planned("model t1/MLE", "model", "dd", False, 9.0, 1.0, 1.0),
    ]
    make_notebook("00_one", "pass")
    run_suite("smoke", root=tmp_path, plan=lambda *_: planned)
    record = json.loads((output / "run.json").read_text())
    assert record["gpu_hours"] == 0.2 and record["seeds"] == [0]
    assert record["git"]["clean"] in (True, False)
    assert re.fullmatch("[0-9a-f]{64}", record["requirements_lock_sha256"])
    one, two, three, four = record["artifacts"]
    assert (one["seed"], one["seconds"], one["gpus"], one["gpu_hours"]) == (7, 90.0, 8, 0.2)
    assert one["git"] == {"revision": "abc", "clean": False} and one["recipe"] == "aa"
    assert (two["gpu_hours"], three["gpu_hours"], four["seconds"]) == (0.0, None, None)
    assert one["sha256"] == three["sha256"] != two["sha256"] and four["sha256"] is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('no such thing')", "cell 3: ValueError: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", "kernel died"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("pass", "declared output table.csv was not written"),
    ],
    ids=["exception", "dead kernel", "SystemExit(0)", "missing output"],
)
def test_a_failure_is_seen_kept_beside_and_does_not_stop_the_others(
    source, reason, suite, make_notebook, output, capsys
):
    make_notebook("00_bad", source, outputs=["table.csv"])
    make_notebook("01_good", "1 + 1")
    (output / "notebooks").mkdir(parents=True)
    (output / "notebooks" / "00_bad.ipynb").write_text("the last good copy")
    assert suite() == 1
    assert (output / "notebooks" / "00_bad.ipynb").read_text() == "the last good copy"
    assert (output / "notebooks" / "00_bad.failed.ipynb").is_file()
    assert (output / "notebooks" / "01_good.ipynb").is_file()
    assert not (output / "run.json").exists()
    summary = re.split("notebook +status", capsys.readouterr().out)[1]
    assert reason in summary
    bad, good = summary.splitlines()[1:3]
    assert bad.split()[:2] == ["00_bad", "FAILED"]
    assert good.split()[:2] == ["01_good", "ok"]


def test_a_notebook_that_reads_others_finds_the_record_of_their_run(suite, make_notebook, output):
    read = (
        "import json, pathlib\n"
        "record = json.loads((pathlib.Path(output) / 'run.json').read_text())\n"
        "assert list(record['notebook_seconds']) == ['00_first'], record"
    )
    make_notebook("00_first", "pass")
    make_notebook("01_report", read, after=["00"])
    assert suite() == 0
    record = json.loads((output / "run.json").read_text())
    assert list(record["notebook_seconds"]) == ["00_first", "01_report"]


def test_the_report_is_the_notebook_as_it_was_run(suite, make_notebook, output):
    make_notebook("00_report", "print('what came out')", outputs=["report.html"])
    assert suite() == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "what came out" in page and "print(" not in page


def test_an_output_of_an_earlier_run_is_not_taken_for_this_one(
    suite, make_notebook, output, capsys
):
    make_notebook("00_idle", "pass", outputs=["table.csv"])
    output.mkdir(parents=True)
    (output / "table.csv").write_text("old")
    assert suite() == 1
    assert "declared output table.csv was not written by this run" in capsys.readouterr().out


def test_a_later_success_takes_the_failed_copy_away(suite, make_notebook, output):
    make_notebook("00_unsteady", "assert 1 == 2")
    assert suite() == 1
    make_notebook("00_unsteady", "assert 1 == 1")
    assert suite() == 0
    assert os.listdir(output / "notebooks") == ["00_unsteady.ipynb"]


def test_what_comes_after_a_failure_is_skipped_and_named(suite, make_notebook, capsys):
    make_notebook("00_bad", "1 / 0", outputs=["table.csv"])
    make_notebook("01_reads_it", "print('ran')", after=["00"], outputs=["second.csv"])
    make_notebook("02_reads_that", "print('ran')", after=["01"])
    make_notebook("03_alone", "print('ran')")
    assert suite() == 1
    lines = capsys.readouterr().out.split("notebook       status")[1].splitlines()[1:5]
    assert [line.split()[1] for line in lines] == ["FAILED", "skipped", "skipped", "ok"]
    assert "needs outputs of notebook 00, which did not succeed" in lines[1]
    assert "ZeroDivisionError" in lines[0]


def test_only_a_full_unchanged_run_of_a_committed_profile_writes_to_figures(
    suite, make_notebook, tmp_path, artifacts
):
    make_notebook("00_one", write("one.txt"), outputs=["one.txt"])
    make_notebook("01_two", write("two.txt"), outputs=["two.txt"])
    profile = load_profile("tiny")
    assert profile.committed
    assert suite(profile="tiny", only=["1"]) == 0
    assert suite("seeds=2", profile="tiny") == 0
    assert suite() == 0  # smoke is not committed
    assert not (tmp_path / "figures").exists()
    assert suite(profile="tiny") == 0
    assert sorted(os.listdir(tmp_path / "figures")) == ["tiny"]
    assert sorted(os.listdir(tmp_path / "figures" / "tiny")) == [
        "notebooks",
        "one.txt",
        "run.json",
        "two.txt",
    ]
    names = sorted(os.listdir(artifacts / "figures"))
    assert names[:2] == ["smoke", "tiny"]
    assert names[2].startswith("tiny-")
    assert os.listdir(artifacts / "figures" / "tiny" / "notebooks") == ["01_two.ipynb"]


def test_a_users_profile_file_never_writes_to_figures(suite, make_notebook, tmp_path, artifacts):
    make_notebook("00_one", "pass")
    own = tmp_path / "tiny.yaml"
    own.write_text((ROOT / "profiles" / "tiny.yaml").read_text())
    assert suite(profile=str(own)) == 0
    assert not (tmp_path / "figures").exists()
    assert (artifacts / "figures" / "tiny" / "run.json").is_file()


def test_a_profile_beside_its_data_is_run_from_their_folder(
    make_notebook, tmp_path, artifacts, monkeypatch
):
    """README's own example: a copied profile with `path: my.jsonl`, all the way to a kernel."""
    world = "instructions:\n  source: world\n"
    text = (ROOT / "profiles" / "smoke.yaml").read_text()
    assert world in text
    own = tmp_path / "own"
    own.mkdir()
    data = "instructions:\n  source: jsonl\n  path: my.jsonl\n"
    text = text.replace(world, data).replace("train_rows: 400", "")
    # The oracle, which ranks this row, knows the embedded world alone.
    (own / "mine.yaml").write_text(f"{text}\nleaves_out: [x/ANR-oracle]\n")
    make_notebook(
        "01_reads",
        "from cpo_suite.suite import Suite\n"
        "suite = Suite.open(profile, overrides, output)\n"
        "assert suite.instructions.report.kept == 60\n"
        "assert suite.articles.report.kept == 70",
    )
    monkeypatch.chdir(own)

    def run() -> int:
        given = "articles={source: jsonl, path: ./articles.jsonl, test_articles: 24}"
        return run_suite("mine.yaml", [given], root=tmp_path)

    with pytest.raises(BadInput) as refused:
        run()
    for name in ("instructions data", "articles data"):
        file = own / ("my.jsonl" if name.startswith("i") else "articles.jsonl")
        assert f"{name}: {file} does not exist" in str(refused.value)
    with pytest.raises(ProfileError, match=re.escape(f"{own / 'my.jsonl'} does not exist")):
        Suite.open(str(own / "mine.yaml"))
    assert not artifacts.exists()
    write_dolly(own, 60).rename(own / "my.jsonl")
    write_articles(own, 70)
    assert run() == 0
    [output] = (artifacts / "figures").iterdir()
    record = json.loads((output / "run.json").read_text())
    assert record["settings"]["instructions"]["path"] == "my.jsonl"
    [override] = record["overrides"]
    assert parse_value(override.partition("=")[2])["path"] == "articles.jsonl"
    assert "own" not in json.dumps([record["settings"]["instructions"], record["overrides"]])
    # From elsewhere it is the same.
    monkeypatch.chdir("/")
    found = {one.what: one for one in doctor.inputs(str(own / "mine.yaml"))}
    assert found["instructions data"].ok
    assert found["instructions data"].detail == str(own / "my.jsonl")


def test_copies_of_notebooks_that_are_gone_are_removed_by_a_full_run(suite, make_notebook, output):
    path = make_notebook("00_first", "pass")
    make_notebook("01_second", "pass")
    assert suite() == 0
    path.unlink()
    assert suite() == 0
    assert os.listdir(output / "notebooks") == ["01_second.ipynb"]


def test_parameters_arrive_in_the_notebook(suite, make_notebook, artifacts):
    make_notebook("00_one", "assert overrides == ['seeds=2'] and profile == 'smoke'")
    make_notebook("01_fewer", "assert profile == 'smoke'", parameters="profile = ''")
    assert suite("seeds=2") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sedes=1"], "unknown key 'sedes'. Did you mean 'seeds'?"),
        (["seeds=many"], "seeds: Input should be a valid integer"),
        (["seeds"], "an override is dotted.key=value, not 'seeds'"),
        (["output=/somewhere"], "unknown key 'output'"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_refused(
    settings, message, suite, make_notebook, artifacts
):
    make_notebook("00_one", "pass")
    with pytest.raises(ProfileError) as refused:
        suite(*settings)
    assert message in str(refused.value)
    assert not artifacts.exists()


def test_an_unknown_key_in_a_group_names_the_nearest(suite, make_notebook):
    make_notebook("00_one", "pass")
    with pytest.raises(ProfileError, match="'continuation.betta'. Did you mean 'beta'"):
        suite("continuation.betta=1")


def test_an_unknown_notebook_is_refused_with_the_nearest(suite, make_notebook):
    make_notebook("00_one", "pass")
    make_notebook("06_ensembling", "pass")
    with pytest.raises(BadInput, match="unknown notebook '06_ensemble'. Did you mean '06_ens"):
        suite(only=["06_ensemble"])
    with pytest.raises(BadInput, match="unknown notebook '7'.*Known: 00_one, 06_ensembling"):
        suite(start_from="7")


def test_a_notebook_that_reads_what_is_not_there_is_refused(suite, make_notebook):
    make_notebook("00_one", write("one.csv"), outputs=["one.csv"])
    make_notebook("01_reader", "assert (Path := __import__('pathlib').Path)", after=["00"])
    with pytest.raises(BadInput, match="01 reads one.csv of notebook 00"):
        suite(only=["01"])
    assert suite(only=["00"]) == 0
    assert suite(only=["01"]) == 0


def test_missing_variables_and_files_are_said_together_before_anything_runs(
    suite, make_notebook, monkeypatch, artifacts
):
    make_notebook("00_one", "pass")
    monkeypatch.delenv("CPO_DATA", raising=False)
    with pytest.raises(BadInput, match="CPO_DATA, the data folder, is not set"):
        suite(profile="small")
    with pytest.raises(BadInput) as refused:
        suite("articles.source=jsonl", "articles.path=/no/such.jsonl", profile="small")
    assert "CPO_DATA" in str(refused.value)
    assert "articles data: /no/such.jsonl does not exist" in str(refused.value)
    assert not artifacts.exists()


def test_a_dry_run_says_what_it_takes_and_runs_nothing(make_notebook, tmp_path, artifacts, capsys):
    make_notebook("00_one", "pass", outputs=["one.csv"])
    planned = [
        Planned("reference/llama", "model", "a" * 16, False, 120, 1.5, 0.25),
        Planned("t2/ANR", "model", "b" * 16, False, 240, 2.5, 0.25, usd=1.5),
        Planned("base/llama", "base_model", "c" * 16, True, 0, 1.0, 0.1),
    ]
    code = run_suite(
        "smoke",
        dry_run=True,
        root=tmp_path,
        plan=lambda *arguments: planned,
    )
    shown = capsys.readouterr().out
    assert code == 0
    # 120 s + 240 s, the larger memory, 2 x 0.25 GB, 0 + 1.50 USD; what is made is free.
    assert "3 artifacts, 1 cached, 2 to build: about 6 min, up to 2.5 GB of memory" in shown
    assert "0.50 GB of disk, 1.50 USD" in shown
    assert "Besides, the notebook itself: up to 40 s." in shown
    assert re.search("00_one +one.csv", shown)
    assert sorted(os.listdir(artifacts)) == SPEEDS_ALONE


def test_a_dry_run_without_the_data_says_what_is_missing_and_counts_by_the_profile(
    make_notebook, tmp_path, artifacts, capsys, monkeypatch
):
    monkeypatch.delenv("CPO_DATA", raising=False)
    make_notebook("00_one", "pass")
    assert run_suite("small", dry_run=True, root=tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"Missing: instructions data: {ROOT / 'profiles' / 'dolly'} does not exist" in shown
    assert "CPO_DATA=/path ./run_all.sh --profile small" in shown
    assert "Estimated from the profile alone, with texts as long as Dolly's" in shown
    assert "model t2/MixNR/0.3" in shown
    # Its speeds are measured only where its GPU is.
    kept = os.listdir(artifacts) if artifacts.exists() else []
    assert set(kept) <= set(SPEEDS_ALONE)


def test_the_paper_is_counted_without_network_or_data(
    make_notebook, tmp_path, artifacts, capsys, monkeypatch
):
    monkeypatch.setattr(
        doctor, "_reach", lambda kind, name, *_: [doctor.Finding(name, False, "no hub", "")]
    )
    make_notebook("00_one", "pass")
    assert run_suite("paper", dry_run=True, root=tmp_path) == 0
    shown = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    # 2,000 steps of 64 of 97 + 73 tokens, the means of the stated lengths within the profile's
    # limits, and of 900 more for the step, on 8 GPUs at 13,300 tokens a second each: 221 s.
    # 8e-9 s for each of 1.56e9 weights, half a second and 15 s for the launch: 249 s, 0.55
    # GPU-hours.
    # 18 bytes of each weight are 28.08 GB; 2,048 tokens keep 47.4 x 1,600 x 49 bytes each, in 48
    # layers and one more, 7.61 GB; 1 GB is the process's own.
    line = lines["reference/gpt2"]
    assert re.match(r"reference/gpt2 +model +to build +4 min +0.55 +36.69 ", line), line
    # 1,000 verdicts of 60 + 97 + 2 x 73 tokens and 8 of the answer at most, at $0.4 and $1.6 a
    # million.
    assert lines["verdicts on t1/ANR"].split()[-3:] == ["1,000", "310,914", "0.13"]
    *_, total, gpt2, llama, besides = shown.splitlines()
    assert gpt2 == "Fits: training gpt2 takes 36.7 GB on each GPU, of 78 usable."
    assert llama == "Fits: training llama takes 73.2 GB on each GPU, of 78 usable."
    assert besides == "Besides, the notebook itself: up to 40 s."
    hours = r"about [\d.]+ h on 8 GPUs or [\d.]+ h on one, ([\d.]+) GPU-hours used, ([\d.]+) held"
    found = re.search(hours, total)
    assert found and "requests of" in total
    used, held = map(float, found.groups())
    assert used < held  # while a judge answers, and where one process works, the others wait
    assert not artifacts.exists()


def test_a_dry_run_says_what_does_not_fit_and_what_to_change(
    make_notebook, tmp_path, artifacts, capsys, monkeypatch
):
    monkeypatch.setattr(
        doctor, "_reach", lambda kind, name, *_: [doctor.Finding(name, False, "no hub", "")]
    )
    make_notebook("00_one", "pass")

    def said(*settings: str) -> list[str]:
        assert run_suite("paper", settings, dry_run=True, root=tmp_path) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith(("Does", "Fits: training llama"))]

    # OpenLlama-3B: 18 x 3.43 = 61.7 GB and 1; in each of 26 layers and one more a token keeps 54.8
    # bytes for each of 3,200 units, 4.73 MB. 8,192 of them are 38.8 GB, 101.5 in all. Of 85 GB, .92
    # are usable: 4,096 take 82.1, 2,048 fit.
    assert said("optimiser.micro_batch_tokens=8192", "processes.divide=never") == [
        "Does not fit: training llama takes 101.5 GB on each GPU, of 78 usable: "
        "set optimiser.micro_batch_tokens=2048."
    ]
    # 8 x 80 GB: a token's 4.73 MB x 2,048 are 9.7 GB. While gradients of 2 x 3.43 GB wait, three
    # eighths of them are left: 18 x 3.43 + 6.9 + 3.6 + 1 are 73.2.
    assert said() == ["Fits: training llama takes 73.2 GB on each GPU, of 78 usable."]
    # 8 x 40 GB: an eighth of 16 x 3.43 GB is 6.9. A layer has 12 x 3,200^2 weights, 0.123e9; 26
    # layers leave 0.235e9 for embedding and head, gathered with two layers at 8 bytes: 3.8 GB. The
    # bf16 copy of all weights has 6.9, and 1 GB is the process's. Activations have 8.4, as groups
    # in one row keep 47.5 bytes: 27.0.
    assert said("gpu_memory_gb=43") == [
        "Fits: training llama, divided among 8 GPUs, takes 27.0 GB on each, of 40 usable "
        "(73.2 whole)."
    ]
    assert said("gpu_memory_gb=39", "processes.divide=never") == [
        "Does not fit: training gpt2 takes 36.7 GB on each GPU, of 36 usable: "
        "set optimiser.micro_batch_tokens=1024.",
        "Does not fit: training llama takes 73.2 GB on each GPU, of 36 usable: "
        "set processes.divide=auto.",
    ]
    # 1 x 80 GB, and 1 x 40 GB, which GPT2-XL fits whole.
    alone = "gpus=1", "processes.count=1"
    assert said(*alone) == ["Fits: training llama takes 73.2 GB on each GPU, of 78 usable."]
    assert said(*alone, "gpu_memory_gb=43") == [
        "Does not fit: training llama takes 73.2 GB on each GPU, of 40 usable: set "
        "processes.count to several GPUs, among which it is divided, take one with more memory, or "
        "leave out the rows of models.llama.",
    ]
    assert said("gpu_memory_gb=27") == [
        "Does not fit: training llama, divided among 8 GPUs, takes 27.0 GB on each, of 25 usable "
        "(73.2 whole): set optimiser.micro_batch_tokens=1024."
    ]
    assert said("gpu_memory_gb=43", "rows=[t1/MLE]") == []


def run_in_background(tmp_path: Path, artifacts: Path) -> subprocess.Popen[str]:
    """The runner in a process of its own, on the test's notebooks."""
    code = (
        "import sys; from pathlib import Path; from cpo_suite import __main__ as command\n"
        "from cpo_suite.run import runner\n"
        "settled = runner.run_suite\n"
        "def on_these(*given):\n"
        "    return settled(*given, root=Path(sys.argv[1]), plan=lambda *_: [])\n"
        "runner.run_suite = on_these\n"
        "sys.exit(command.main(['run', '--profile', 'smoke']))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CPO_ARTIFACTS": str(artifacts)},
        # Tests that a script starts in the background ignore Ctrl-C, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_runner_leaves_no_kernel_and_no_half_copy(
    number, make_notebook, tmp_path, artifacts
):
    note = tmp_path / "pid"
    source = (
        f"import os, time, pathlib\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(120)"
    )
    make_notebook("00_long", source)
    make_notebook("01_never", "pass")
    process = run_in_background(tmp_path, artifacts)
    try:
        wait_until(lambda: note.exists() and note.read_text(), 60)
        kernel = int(note.read_text())
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Stopped." in said
    assert "[01_never]" not in said
    wait_until(lambda: not is_alive(kernel), 15)
    folder = artifacts / "figures" / "smoke" / "notebooks"
    assert not (folder / "00_long.ipynb").exists()
    if number != signal.SIGKILL:
        assert os.listdir(folder) == []


def test_a_kernel_streams_live(make_notebook, suite, capsys):
    make_notebook(
        "00_talks",
        "import sys\nprint('to stdout')\nprint('to stderr', file=sys.stderr)",
    )
    assert suite() == 0
    captured = capsys.readouterr()
    assert "to stdout" in captured.out
    assert "to stderr" in captured.err


def test_the_kernel_is_this_interpreter_whatever_kernelspecs_a_user_has(
    make_notebook, suite, tmp_path, monkeypatch
):
    spec = tmp_path / "user" / "kernels" / "cpo"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "CPO", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "user"))
    make_notebook("00_who", f"import sys\nassert sys.prefix == {sys.prefix!r}, sys.prefix")
    assert suite() == 0


def stream(name: str, text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_streams_are_joined_and_redrawn_lines_leave_no_debris():
    notebook = nbformat.v4.new_notebook()
    outputs = [
        stream("stdout", "one\n"),
        stream("stderr", "\rtraining:   0%|          | 0/9 [00:00<?, ?step/s]"),
        stream("stdout", "two\n"),
        stream("stderr", "\rtraining: 100%|##########| 9/9 [00:01<00:00, 9step/s]"),
        stream("stderr", "\r                                                     \r"),
        stream("stdout", "10\r9 \r8\n"),
        nbformat.v4.new_output("display_data", data={"text/plain": "a plot"}),
        stream("stderr", "UserWarning: a real one\n"),
    ]
    notebook.cells = [nbformat.v4.new_code_cell("f()", outputs=outputs, execution_count=1)]
    make_portable(notebook)
    # "10" overwritten by "9 " and then by "8" shows "8 ", the trailing blank taken off.
    assert [(item.get("name"), item.get("text")) for item in notebook.cells[0].outputs] == [
        ("stdout", "one\ntwo\n8\n"),
        (None, None),
        ("stderr", "UserWarning: a real one\n"),
    ]


def tagged_cell(source: str, tag: str) -> Any:
    return nbformat.v4.new_code_cell(source, metadata={"tags": [tag]})


@pytest.mark.parametrize(
    ("injected", "sources"),
    [
        (
            '# Parameters\nprofile = "tiny"\noutput = "figures/tiny"\n',
            ['# profile: smoke, tiny\nprofile = "tiny"\noutput = "figures/tiny"', "f()"],
        ),
        # A name that the notebook does not have must not be lost.
        (
            '# Parameters\nprofile = "tiny"\nother = 1\n',
            [
                '# profile: smoke, tiny\nprofile = "smoke"\noutput = ""',
                '# Parameters\nprofile = "tiny"\nother = 1\n',
                "f()",
            ],
        ),
    ],
)
def test_an_executed_copy_has_one_parameters_cell_with_the_values_that_ran(injected, sources):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        tagged_cell('# profile: smoke, tiny\nprofile = "smoke"\noutput = ""', "parameters"),
        tagged_cell(injected, "injected-parameters"),
        nbformat.v4.new_code_cell("f()"),
    ]
    make_portable(notebook)
    assert [cell.source for cell in notebook.cells] == sources


def test_no_path_of_this_machine_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("CPO_DATA", str(tmp_path / "data"))
    home = str(Path.home())
    texts = {
        f"{ROOT}/figures/tiny": "./figures/tiny",
        f"read {tmp_path}/data/dolly.jsonl": "read $CPO_DATA/dolly.jsonl",
        f"'{home}/cache'": "'~/cache'",
        "/tmp/ipykernel_123/4567.py:3: UserWarning": "<cell>:3: UserWarning",
        f"{sys.prefix}/lib/x.py": "<environment>/lib/x.py",
        f"https://arxiv.org{home}/x": f"https://arxiv.org{home}/x",
        f"{home}stead": f"{home}stead",
    }
    assert without_machine_paths(list(texts)) == list(texts.values())


def test_executed_copies_name_no_folder_of_this_machine(make_notebook, suite, output):
    make_notebook("00_tells", f"print({str(ROOT)!r}, profile)\noutput")
    assert suite() == 0
    text = (output / "notebooks" / "00_tells.ipynb").read_text()
    assert str(ROOT) not in text
    assert str(output) not in text
    assert "input_path" not in text
