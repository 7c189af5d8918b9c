"""Training: where the loss starts, what it moves, and that it resumes exactly."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from models import ARCHITECTURES, VOCABULARY, tiny_model
from safetensors.torch import load_file, save_file

from cpo.engine.files import checksums_of
from cpo.objectives import NEXT_TOKEN_OBJECTIVES, OBJECTIVES
from cpo.scoring import Group, score_groups
from cpo.training import (
    TrainingError,
    TrainingExample,
    TrainingSettings,
    micro_batch,
    train,
)


def random_groups(rows: int, k: int, seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    return [Group(ids(1, 12), [ids(1, 12) for _ in range(k)]) for _ in range(rows)]


def contrasted(model, groups, precision="fp32", micro=4) -> list[TrainingExample]:
    reference_logps = score_groups(model, groups, precision, micro, "reference")
    return [
        TrainingExample(group, (True,) * len(group.continuations), logps.tolist())
        for group, logps in zip(groups, reference_logps, strict=True)
    ]


def settings(objective: str, steps: int, **kwargs) -> TrainingSettings:
    defaults = {"batch": 8, "learning_rate": 1e-2, "beta": 1.0, "micro_batch": 4}
    return TrainingSettings(objective, steps, **{**defaults, **kwargs})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.1)])
@pytest.mark.parametrize("objective", ["cpo", "ranked_cpo"])
def test_first_loss_is_ln_k(tmp_path, architecture, precision, bound, objective):
    k = 5
    model = tiny_model(architecture)
    examples = contrasted(model, random_groups(16, k), precision)
    history = train(
        model,
        examples,
        settings(objective, 2, precision=precision),
        tmp_path / "out",
        tmp_path / "part",
    )
    expected = math.log(k) if objective == "cpo" else math.log(math.factorial(k))
    assert history[0]["loss"] == pytest.approx(expected, abs=bound)
    assert history[1]["loss"] != history[0]["loss"]


@pytest.mark.parametrize("objective", ["cpo", "lipo_lambda"])
def test_a_reference_scored_otherwise_is_refused(tmp_path, objective):
    model = tiny_model("gpt2")
    examples = contrasted(tiny_model("gpt2", seed=1), random_groups(8, 3))
    examples = [dataclasses.replace(one, scores=[1.0, 0.2, 0.6]) for one in examples]
    with pytest.raises(TrainingError, match="scored differently"):
        train(model, examples, settings(objective, 1), tmp_path / "out", tmp_path / "part")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "objective",
    sorted(set(OBJECTIVES) - {*NEXT_TOKEN_OBJECTIVES, "dpo"}),  # DPO takes pairs alone
)
def test_every_objective_starts_at_its_reference(tmp_path, objective):
    """Policy and reference differ by rounding, which must not stop any of them."""
    model = tiny_model("gpt2")
    # One after the other, about a unit in the last place too high or too low.
    rounded = torch.tensor([1, -1, -1, 1, -1]) * 1e-7 + 1
    examples = [
        dataclasses.replace(
            one,
            reference_logps=(torch.tensor(one.reference_logps) * rounded).tolist(),
            scores=[1.0, 0.2, 0.6, 0.5, 0.9],
        )
        for one in contrasted(model, random_groups(16, 5))
    ]
    given = settings(objective, 2)
    assert len(train(model, examples, given, tmp_path / "out", tmp_path / "part")) == 2


def test_cpo_raises_the_margin_and_reports_it(tmp_path):
    model = tiny_model("llama")
    groups = random_groups(8, 4) * 10
    history = train(
        model, contrasted(model, groups), settings("cpo", 10), tmp_path / "out", tmp_path / "part"
    )
    first, last = history[0], history[-1]
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["margin"] > 1 and last["accuracy"] > first["accuracy"] and last["loss"] < 0.5
    reward_gap = last["reward_chosen"] - last["reward_rejected"]
    assert last["margin"] == pytest.approx(reward_gap, abs=1e-4)


@pytest.mark.parametrize("objective", ["cpo", "dpo"])
def test_the_reference_of_a_masked_column_changes_nothing(tmp_path, objective):
    groups = random_groups(8, 2)
    histories = []
    for value in (0.0, -math.inf):
        model = tiny_model("gpt2")
        examples = contrasted(model, groups)
        for row in (0, 3):
            logps = [examples[row].reference_logps[0], value]
            examples[row] = TrainingExample(groups[row], (True, False), logps)
        name = f"{objective}{value}"
        train(model, examples, settings(objective, 1), tmp_path / name, tmp_path / f"{name}.part")
        [step] = map(json.loads, (tmp_path / name / "history.jsonl").read_text().splitlines())
        histories.append({key: number for key, number in step.items() if key != "seconds"})
    assert histories[0] == histories[1]
    assert math.isfinite(histories[0]["grad_norm"]) and math.isfinite(histories[0]["margin"])


def test_mle_is_a_mean_over_the_tokens_of_the_global_batch(tmp_path):
    # Two micro-batches of unequal length: a mean of their means would differ.
    model = tiny_model("gpt2")
    groups = [*random_groups(4, 1, seed=3), *(Group([1], [[2]]) for _ in range(4))]
    expected_sum = score_groups(model, groups, "fp32", 8, "mle").sum()
    tokens = sum(len(group.continuations[0]) for group in groups)
    history = train(
        model,
        [TrainingExample(group) for group in groups],
        settings("mle", 1),
        tmp_path / "out",
        tmp_path / "part",
    )
    assert history[0]["loss"] == pytest.approx(float(-expected_sum / tokens), abs=1e-5)


@pytest.mark.parametrize("objective", ["mle", "ranked_cpo"])
def test_micro_batches_do_not_change_the_result(tmp_path, objective):
    ends = []
    for micro in (2, 8):
        model = tiny_model("llama")
        groups = random_groups(24, 1 if objective == "mle" else 3)
        examples = (
            [TrainingExample(group) for group in groups]
            if objective == "mle"
            else contrasted(model, groups, micro=micro)
        )
        train(
            model,
            examples,
            settings(objective, 3, micro_batch=micro, learning_rate=1e-3),
            tmp_path / f"out{micro}",
            tmp_path / f"part{micro}",
        )
        ends.append(load_file(tmp_path / f"out{micro}" / "model.safetensors"))
    for name, weights in ends[0].items():
        torch.testing.assert_close(weights, ends[1][name], atol=2e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = tiny_model("gpt2")
    examples = contrasted(model, random_groups(16, 3))
    with torch.no_grad():
        model.transformer.wte.weight[3] = math.nan
    with pytest.raises(TrainingError, match=r"loss is nan at step 1, .*batch-1\.jsonl"):
        train(model, examples, settings("cpo", 2), tmp_path / "out", tmp_path / "part")
    saved = (tmp_path / "part" / "batch-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["group"]["prefix_ids"] for line in saved] == [
        one.group.prefix_ids for one in examples[:8]
    ]


def test_rewards_that_explode_stop_the_run(tmp_path):
    model = tiny_model("gpt2")
    examples = [
        dataclasses.replace(one, reference_logps=[value - 2e4 for value in one.reference_logps])
        for one in contrasted(model, random_groups(16, 3))
    ]
    with pytest.raises(TrainingError, match=r"rewards of up to 2e\+04"):
        train(model, examples, settings("cpo", 2), tmp_path / "out", tmp_path / "part")


def test_wrong_plans_and_objectives_are_refused(tmp_path):
    examples = [TrainingExample(group) for group in random_groups(8, 1)]
    with pytest.raises(ValueError, match="2 steps of 8"):
        train(tiny_model("gpt2"), examples, settings("mle", 2), tmp_path, tmp_path)
    with pytest.raises(ValueError, match="unknown objective 'symposium'"):
        train(tiny_model("gpt2"), examples, settings("symposium", 1), tmp_path, tmp_path)


@pytest.mark.parametrize("objective", ["nca", "simpo", "swepo"])
def test_objectives_of_lengths_and_scores_train_alike_in_any_micro_batch(tmp_path, objective):
    losses = []
    for micro in (2, 8):
        model = tiny_model("llama")
        examples = [
            dataclasses.replace(one, scores=(1.0, 0.7, 0.2))
            for one in contrasted(model, random_groups(16, 3), micro=micro)
        ]
        name = f"{objective}{micro}"
        chosen = settings(objective, 2, micro_batch=micro, learning_rate=1e-3)
        history = train(model, examples, chosen, tmp_path / name, tmp_path / f"{name}.part")
        losses.append([step["loss"] for step in history])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][0] != pytest.approx(losses[0][1], abs=1e-3)


@pytest.mark.parametrize("spoil", ["a weight less", "a weight more", "another model"])
def test_a_checkpoint_that_does_not_fit_is_refused(spoil, tmp_path):
    """Sealed with its checksums, as one is that a run left."""
    checkpoint = tmp_path / "part" / "checkpoint-1"
    tiny_model("gpt2" if spoil == "another model" else "llama").save_pretrained(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    if spoil == "a weight less":
        del weights["model.norm.weight"]
    if spoil == "a weight more":
        weights["model.other.weight"] = torch.ones(1)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "sha256.json").write_text(json.dumps(checksums_of(checkpoint)))
    examples = [TrainingExample(group) for group in random_groups(16, 1)]
    with pytest.raises(TrainingError, match="checkpoint-1 does not fit the model; remove it"):
        train(tiny_model("llama"), examples, settings("mle", 2), tmp_path, tmp_path / "part")


def test_micro_batch_is_the_largest_divisor_that_fits():
    assert micro_batch(64, 1200, 20_000) == 16  # 16 x 1,200 = 19,200
    assert micro_batch(64, 1200, 100) == 1
    assert micro_batch(64, 100, 10**9, processes=4) == 16


SCRIPT = """
    import resource
    import sys
    from pathlib import Path
    sys.path[:0] = {tests!r}
    from test_training import contrasted, random_groups, settings
    from models import tiny_model
    from cpo.training import train
    root = Path({root!r})
    if len(sys.argv) > 2:  # a disk that takes no file of more bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    model = tiny_model("gpt2")
    examples = contrasted(model, random_groups(8 * 60, 3))
    train(model, examples, settings("cpo", 60, learning_rate=1e-3, checkpoint_minutes=1e-6),
          root / sys.argv[1], root / ("part-" + sys.argv[1]))
"""


def test_resumes_bit_for_bit_after_kill_9_and_a_full_disk(tmp_path: Path):
    script = tmp_path / "run.py"
    tests = [str(Path(__file__).parents[2] / name) for name in ("", "tests", "tests/cpo")]
    script.write_text(textwrap.dedent(SCRIPT.format(tests=tests, root=str(tmp_path))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*given: str, **options) -> subprocess.Popen:
        command = [sys.executable, str(script), *given]
        return subprocess.Popen(command, env=environment, **options)

    assert start("whole").wait(300) == 0
    # The weights fit, 110 kB or so, but not the optimizer's two moments of each.
    full = start("full", "150000", stderr=subprocess.PIPE, text=True)
    _, said = full.communicate(timeout=300)
    assert full.returncode == 1 and "optimizer" in said
    assert not (tmp_path / "full").exists()
    assert start("full").wait(300) == 0
    same_ends(tmp_path, "full")
    killed = start("killed")
    deadline = time.monotonic() + 120
    # Somewhere between its first checkpoints and its end.
    while not list((tmp_path / "part-killed").glob("checkpoint-*/sha256.json")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed").exists()
    # One that was being written when the kill came is passed over, and one that was damaged.
    unfinished = tmp_path / "part-killed" / "checkpoint-59"
    unfinished.mkdir(exist_ok=True)
    (unfinished / "trainer_state.json").write_text('{"global_step": 5')
    good = next((tmp_path / "part-killed").glob("checkpoint-*/sha256.json")).parent
    damaged = tmp_path / "part-killed" / "checkpoint-58"
    shutil.copytree(good, damaged)
    with open(damaged / "optimizer.pt", "r+b") as file:
        file.truncate(1000)
    again = start("killed", stdout=subprocess.PIPE, text=True)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    assert "checkpoint-59 is not used: was not completely written" in said
    assert "checkpoint-58 is not used: optimizer.pt was altered or cut short" in said
    same_ends(tmp_path, "killed")


def same_ends(tmp_path: Path, name: str) -> None:
    """The weights and losses of the training called `name` are those of the one called whole."""
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / name / "model.safetensors")
    for key, weights in whole.items():
        assert torch.equal(weights, resumed[key]), key
    lines = [
        [json.loads(line)["loss"] for line in (tmp_path / one / "history.jsonl").open()]
        for one in ("whole", name)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 60
