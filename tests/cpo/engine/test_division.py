"""A model divided among real processes, against one whole: 20 steps end in the same weights."""

from __future__ import annotations

import shutil
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from test_processes import _losses, command_of, environment, run_in

Training = tuple[str, str, str, dict[str, Any]]  # architecture, objective, its folder, settings

TRAIN = """
    import sys
    from pathlib import Path
    import torch
    from models import tiny_model
    from test_training import random_groups, settings
    from transformers.models.llama import modeling_llama
    from cpo.engine.forward_pass import is_checkpointed
    from cpo.scoring import GroupScorer, collate_groups
    from cpo.training import TrainingExample, train

    def float64_norm(self, states):  # Llama's own rounds to fp32, which would hide a difference
        mean = states.pow(2).mean(-1, keepdim=True)
        return self.weight * states * torch.rsqrt(mean + self.variance_epsilon)

    modeling_llama.LlamaRMSNorm.forward = float64_norm

    def run(architecture, objective, name, options):
        model = tiny_model(architecture).double()
        groups = random_groups(8 * 20, 5 if objective == "ranked_cpo" else 1)
        examples = [TrainingExample(one) for one in groups]
        if objective == "ranked_cpo":
            with torch.no_grad():
                scorer = GroupScorer(model)
                reference = [scorer(**collate_groups([one]))[0].tolist() for one in groups]
            # A masked candidate here and there.
            masks = [[True, True, False, True, True] if row % 3 == 0 else [True] * 5
                     for row in range(len(groups))]
            examples = [TrainingExample(*row) for row in zip(groups, masks, reference)]
        out = Path(sys.argv[1]) / name
        options = dict(micro_batch=2, mle_weight=0.3, learning_rate=1e-3) | options
        train(model, examples, settings(objective, 20, **options), out,
              out.with_name(name + "-partial"))
        assert is_checkpointed(model) == (name == "recomputed")
"""


def script(trainings: list[Training], before: str = "") -> str:
    lines = [f"run(*{training!r})" for training in trainings]
    return "\n".join([textwrap.dedent(TRAIN), textwrap.dedent(before), *lines])


CASES = [("gpt2", "ranked_cpo"), ("llama", "ranked_cpo"), ("llama-tied", "ranked_cpo"),
         ("gpt2", "mle"), ("llama", "mle")]  # fmt: skip
PSS = {"sampling_probability": 0.5, "sampling_passes": 2}
RECOMPUTED = {"micro_batch": 1, "tokens_at_once": 8, "divided": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All trainings, by one process, two and four."""
    folder = tmp_path_factory.mktemp("divided")

    def cases(count: int) -> list[Training]:
        return [(*case, f"{'-'.join(case)}-{count}", {"divided": count > 1}) for case in CASES]

    run_in(1, script(cases(1)), folder)
    pss: list[Training] = [
        ("gpt2", "pss", "pss-whole", PSS),
        ("gpt2", "pss", "pss-divided", PSS | {"divided": True}),
    ]
    recomputed: Training = ("llama", "ranked_cpo", "recomputed", RECOMPUTED)
    run_in(2, script([*cases(2), *pss, recomputed]), folder)
    run_in(4, script(cases(4)[2:4]), folder)
    return folder


def assert_same(one: Path, other: Path) -> None:
    weights, expected = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert weights.keys() == expected.keys()  # tied weights once
    for name, weight in weights.items():
        assert str(weight.dtype) == "torch.float64"
        np.testing.assert_allclose(weight, expected[name], rtol=0, atol=1e-8, err_msg=name)
    assert len(_losses(one)) == 20
    np.testing.assert_allclose(_losses(one), _losses(other), rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "count"), [*((case, 2) for case in CASES), *((case, 4) for case in CASES[2:4])]
)
def test_a_divided_training_ends_in_the_weights_of_a_whole_one(trained, case, count):
    name = "-".join(case)
    assert_same(trained / f"{name}-{count}", trained / f"{name}-1")


def test_scheduled_sampling_draws_in_a_divided_training_as_in_a_whole_one(trained):
    # Each process draws for its own share, so that both have two.
    assert_same(trained / "pss-divided", trained / "pss-whole")


def test_groups_larger_than_a_micro_batch_recompute_their_layers(trained):
    assert_same(trained / "recomputed", trained / "llama-ranked_cpo-1")


def test_a_killed_training_resumes_on_another_number_of_processes(trained, tmp_path):
    """Two processes are killed with their fifth checkpoint in place and the sixth half-written;
    four resume, and one, which holds the whole model."""
    stop = """
        import os, signal
        from cpo.engine import division
        saved, saves = division.save_shards, []

        def killed(*arguments):
            saved(*arguments)
            saves.append(1)
            if len(saves) == 6:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        division.save_shards = killed
    """
    divided = {"divided": True, "checkpoint_minutes": 1e-6}
    resumed: Training = ("llama-tied", "ranked_cpo", "resumed", divided)
    done = subprocess.run(
        command_of(2, script([resumed], stop), tmp_path),
        env=environment(),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL
    partial = tmp_path / "resumed-partial"
    names = sorted(path.name for path in partial.glob("checkpoint-*"))
    assert names == ["checkpoint-5", "checkpoint-6"] and not (tmp_path / "resumed").exists()
    shutil.copytree(partial, tmp_path / "alone-partial")
    run_in(4, script([resumed]), tmp_path)
    output = run_in(1, script([("llama-tied", "ranked_cpo", "alone", {})]), tmp_path)
    assert "checkpoint-6 is not used" in output
    for name in ("resumed", "alone"):
        assert_same(tmp_path / name, trained / "llama-tied-ranked_cpo-1")


@pytest.mark.slow
def test_a_checkpoint_of_a_whole_training_is_refused_by_a_divided_one(tmp_path):
    stop = """
        from cpo.engine.callbacks import TimedCheckpoints
        sealed = TimedCheckpoints.on_save

        def stopping(self, *arguments, **others):
            sealed(self, *arguments, **others)
            raise SystemExit(0)

        TimedCheckpoints.on_save = stopping
    """
    minutes = {"checkpoint_minutes": 1e-6}
    run_in(1, script([("gpt2", "mle", "refused", minutes)], stop), tmp_path)
    refused: Training = ("gpt2", "mle", "refused", {"divided": True})
    with pytest.raises(AssertionError, match=r"not divided among its processes: set processes\.di"):
        run_in(2, script([refused]), tmp_path)
