"""Several processes: a real `accelerate launch` on the CPU, against one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from test_suite import SMALL

from cpo.negatives import SAMPLERS
from cpo_suite import launching
from cpo_suite.launching import LaunchError
from cpo_suite.profile import Processes
from cpo_suite.store import Store
from cpo_suite.suite import Suite

TESTS = [str(Path(__file__).parents[3] / name) for name in ("", "tests", "tests/cpo")]


def command_of(count: int, script: str, folder: Path) -> list[str]:
    """The command that runs a script in `count` processes."""
    path = folder / "script.py"
    header = f"import sys; sys.path[:0] = {TESTS!r}\n"
    footer = "\nfrom cpo.engine.processes import leave_together\nleave_together()\n"
    path.write_text(header + textwrap.dedent(script) + footer)
    command = [sys.executable]
    if count > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={count}"]
        command += ["--mixed_precision=no", "--dynamo_backend=no", "--num_machines=1"]
        command += ["--machine_rank=0", "--main_process_port=0"]  # tests beside have ports, too
    return [*command, str(path), str(folder)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_in(count: int, script: str, folder: Path) -> str:
    """Run a script in `count` processes; returns what they printed."""
    done = subprocess.run(
        command_of(count, script, folder),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_items_are_shared_out_and_come_back_in_order(tmp_path):
    script = """
        import os
        from pathlib import Path
        from cpo.engine.processes import from_main_process, is_main_process, shared_out
        done = []
        squares = shared_out(range(7), lambda one: done.append(one) or one * one)
        rank = os.environ["RANK"]
        assert squares == [0, 1, 4, 9, 16, 25, 36]
        assert done == list(range(int(rank), 7, 3)), done
        assert from_main_process(lambda: rank) == "0"
        assert is_main_process() == (rank == "0")
        Path(sys.argv[1], f"seen-{rank}").touch()
    """
    run_in(3, script, tmp_path)
    assert len(list(tmp_path.glob("seen-*"))) == 3


TRAINING = """
    import json
    from pathlib import Path
    import torch
    from models import tiny_model
    from test_training import random_groups, settings
    from cpo.scoring import GroupScorer, collate_groups
    from cpo.engine.processes import process_count
    from cpo.training import TrainingExample, train
    objective, dtype = {objective!r}, torch.{dtype}
    model = tiny_model("gpt2").to(dtype)
    groups = random_groups(8 * 20, 1 if objective == "mle" else 5)
    mask = [True, True, False, True, True]
    reference = [()] * len(groups)
    if objective != "mle":
        with torch.no_grad():
            reference = [GroupScorer(model)(**collate_groups([one]))[0].tolist() for one in groups]
    examples = [
        # A masked candidate here and there.
        TrainingExample(one, mask if row % 3 == 0 else [True] * 5, logps)
        if objective != "mle" else TrainingExample(one)
        for row, (one, logps) in enumerate(zip(groups, reference))
    ]
    out = Path(sys.argv[1]) / f"{{objective}}-{{process_count()}}"
    given = settings(objective, 20, micro_batch=2, mle_weight=0.3, learning_rate=1e-3,
                     checkpoint_minutes={minutes})
    train(model, examples, given, out, out.with_name(out.name + "-partial"))
"""


def training(objective: str, dtype: str, minutes: float = 10) -> str:
    return TRAINING.format(objective=objective, dtype=dtype, minutes=minutes)


@pytest.mark.parametrize(
    "objective",
    ["ranked_cpo", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cpo", "mle"))],
)
def test_a_training_ends_in_the_same_weights_on_any_number_of_processes(tmp_path, objective):
    for count in (1, 2, 4):
        run_in(count, training(objective, "float64"), tmp_path)
    alone = load_file(tmp_path / f"{objective}-1" / "model.safetensors")
    losses = _losses(tmp_path / f"{objective}-1")
    assert len(losses) == 20
    for count in (2, 4):
        folder = tmp_path / f"{objective}-{count}"
        for name, weights in load_file(folder / "model.safetensors").items():
            assert weights.dtype.is_floating_point and str(weights.dtype) == "torch.float64"
            np.testing.assert_allclose(weights, alone[name], rtol=0, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(_losses(folder), losses, rtol=1e-6)


def test_two_processes_resume_from_their_common_checkpoint(tmp_path):
    script = training("mle", "float64", minutes=1e-6)
    # Both stop with the step after which the tenth checkpoint stands.
    stop = """
    from cpo.engine.callbacks import TimedCheckpoints
    from cpo.engine.processes import leave_together
    sealed, saves = TimedCheckpoints.on_save, []
    def stopping(self, args, state, control, **kwargs):
        sealed(self, args, state, control, **kwargs)
        saves.append(state.global_step)
        if len(saves) == 10:
            leave_together()
            raise SystemExit(0)
    TimedCheckpoints.on_save = stopping
    """
    run_in(2, textwrap.dedent(stop) + textwrap.dedent(script), tmp_path)
    partial = tmp_path / "mle-2-partial"
    assert [path.name for path in partial.glob("checkpoint-*")] == ["checkpoint-10"]
    assert not (tmp_path / "mle-2").exists()
    run_in(2, script, tmp_path)
    run_in(1, training("mle", "float64"), tmp_path)
    alone = load_file(tmp_path / "mle-1" / "model.safetensors")
    for name, weights in load_file(tmp_path / "mle-2" / "model.safetensors").items():
        np.testing.assert_allclose(weights, alone[name], rtol=0, atol=1e-8, err_msg=name)
    assert len(_losses(tmp_path / "mle-2")) == 20


@pytest.mark.slow
def test_losses_in_fp32_agree_too(tmp_path):
    for count in (1, 2):
        run_in(count, training("ranked_cpo", "float32"), tmp_path)
    one, two = (_losses(tmp_path / f"ranked_cpo-{count}") for count in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-4)


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "history.jsonl").open()]


def test_launches_side_by_side_take_free_ports_unless_one_is_asked_for(tmp_path):
    def ports(**settings) -> list[str]:
        command = launching._command(Processes(count=2, **settings), tmp_path / "job")
        return [part for part in command if part.startswith("--main_process_port")]

    own = "--main_process_port=29511"
    assert ports() == ["--main_process_port=0"]  # 0 is "any free one"
    assert ports(options=[own])[-1] == own  # of several the launcher takes the last
    assert ports(machines=2, options=[own]) == [own]  # all machines meet at one


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def suites(tmp_path_factory) -> list[Suite]:
    """The same profile with one process and with two, each over a store of its own."""
    opened = []
    for count in (1, 2):
        root = tmp_path_factory.mktemp(f"suite{count}")
        suite = Suite.open("smoke", [*SMALL, f"processes.count={count}"], root / "figures")
        suite.store = Store(root / "artifacts")
        opened.append(suite)
    return opened


def test_a_row_is_made_alike_by_two_processes(suites, capfd):
    one, two = suites
    row = "t2/MixNR/0"
    alone, together = (suite.negatives(row) for suite in suites)
    for number in range(len(alone)):
        assert alone.candidates(number) == together.candidates(number)
    np.testing.assert_allclose(together.reference_logps, alone.reference_logps, atol=1e-3)
    assert np.array_equal(alone.order, together.order)
    np.testing.assert_allclose(
        *([line["loss"] for line in suite.history(row)] for suite in suites), rtol=1e-4
    )
    assert one.model(row).artifact.key == two.model(row).artifact.key
    assert len(two.generations(row)) == 12
    assert (
        sum(a == b for a, b in zip(one.generations(row), two.generations(row), strict=True)) >= 11
    )
    # One process alone speaks for all, and nothing else is left in the artifact.
    assert {path.name for path in two.model(row).path.iterdir()} == {
        path.name for path in one.model(row).path.iterdir()
    }


@pytest.mark.slow  # `test_make` has a launch of its own
def test_all_that_is_shared_out_is_made_in_one_launch(tmp_path):
    rows = "rows=[f1b/MLE, f1b/TNR]"
    arguments = [part for setting in (*SMALL, rows) for part in ("--set", setting)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no"]
    command += ["--num_machines=1", "--main_process_port=0", "-m", "cpo_suite", "make"]

    def launched(*more: str) -> str:
        done = subprocess.run(
            [*command, "--profile", "smoke", *arguments, *more],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CPO_ARTIFACTS": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    first, second = launched(), launched()
    suite = Suite.open("smoke", [*SMALL, rows], tmp_path / "figures")
    suite.store = Store(tmp_path)
    shared = [artifact for artifact in suite.artifacts() if artifact.shared]
    assert {artifact.stage for artifact in shared} == {
        "base_model",
        "model",
        "negatives",
        "generations",
    }
    for artifact in suite.artifacts():
        assert (suite.store.find(artifact) is not None) == artifact.shared, artifact.title
    for artifact in shared:
        assert suite.store.manifest(artifact)["processes"] == 2
        line = f"{artifact.title} ({artifact.stage} {artifact.key})"
        # Said by one process alone.
        assert first.count(f"build: {line}") == second.count(f"cached: {line}") == 1
    # The notebooks find it: nothing is left to build for them.
    assert len(suite.negatives("f1b/TNR")) == 2 * 8


BROKEN = """
from cpo.negatives import register

@register("XF")
def broken(planned, wanted, seed):
    raise RuntimeError("the sampler broke")
"""


def test_processes_that_fail_say_why_and_leave_nothing(suites, tmp_path, monkeypatch):
    two = suites[1]
    (tmp_path / "broken_sampler.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    import_module("broken_sampler")
    before = two.profile
    try:
        two.add_row("own/XF", like="t2/ANR", negatives={"XF": 1})
        artifact = two.negatives_artifact(two.row("own/XF"))
        with pytest.raises(LaunchError, match="the sampler broke"):
            two.store.get(artifact)
    finally:
        two.profile = before
        SAMPLERS.pop("XF")
    assert two.store.find(artifact) is None
    assert not list(two.store.path(artifact).parent.glob(".*"))
    assert not list((two.store.root / "partial").glob("*.job.json"))


@pytest.mark.slow
def test_several_nodes_are_reached_by_a_command_in_front(suites, tmp_path):
    # Two "nodes" of one process each, both on this machine, as srun would start them.
    both = tmp_path / "both.sh"
    both.write_text(
        '"$@" & first=$!\n"${@/machine_rank=0/machine_rank=1}" & second=$!\n'
        "wait $first && wait $second\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--rdzv_backend=c10d", "--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
    nodes = Processes(count=2, machines=2, before=["bash", str(both)], options=options)
    one, two = suites
    # Figures' rows have an artifact of their own: made by nobody yet.
    profile = two.profile.model_copy(update={"processes": nodes})
    over_nodes = Suite(profile, two.store, two.output)
    losses = [[line["loss"] for line in suite.history("f1b/BNR")] for suite in (one, over_nodes)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
