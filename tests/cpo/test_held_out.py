"""The objective on held-out prompts: hand-derived values, and what a training writes."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from models import tiny_model
from test_training import contrasted, random_groups, settings

from cpo.evaluation.statistics import mean_estimate
from cpo.held_out import FILE, HeldOutContrast, HeldOutLoss, contrast_on
from cpo.scoring import Group, score_groups
from cpo.training import TrainingExample, train

ALL = torch.ones(2, 2, dtype=torch.bool)


def test_contrast_by_hand():
    # K = 2, beta = 1, log-ratios (ln 3, 0) and (0, ln 3): the truth's share is 3/4 and 1/4, so the
    # losses are ln 4/3 and ln 4, against ln 2 at the reference. Their mean change is
    # (ln 4/3 + ln 4) / 2 - ln 2, and its interval that of `mean_estimate` on the two changes.
    reference = torch.tensor([[-5.0, -7.0], [-1.0, -2.0]])
    policy = reference + torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    measured = contrast_on(policy, reference, ALL, settings("cpo", 1))
    change = (math.log(4 / 3) + math.log(4)) / 2 - math.log(2)
    assert measured["contrast_loss"] == pytest.approx(change + math.log(2), abs=1e-6)
    assert measured["change"] == pytest.approx(change, abs=1e-6)
    interval = mean_estimate([math.log(4 / 3) - math.log(2), math.log(4) - math.log(2)])
    assert measured["low"] == pytest.approx(interval.low, 1e-5)
    assert measured["high"] == pytest.approx(interval.high, 1e-5)
    assert measured["accuracy"] == 0.5


def test_masked_columns_take_no_part():
    reference = torch.zeros(2, 2)
    policy = torch.tensor([[1.0, 50.0], [1.0, 0.0]])
    mask = torch.tensor([[True, False], [True, True]])
    measured = contrast_on(policy, reference, mask, settings("cpo", 1))
    # The first row has no usable negative: its loss is 0, as at the reference.
    expected = (0.0 + math.log(1 + math.exp(-1.0))) / 2
    assert measured["contrast_loss"] == pytest.approx(expected, abs=1e-6)
    assert measured["accuracy"] == 1.0


@pytest.mark.parametrize("objective", ["cpo", "ranked_cpo", "dpo"])
def test_a_training_measures_start_middle_and_end(tmp_path, objective):
    k = 2 if objective == "dpo" else 4
    model = tiny_model("gpt2")
    seen, unseen = (
        contrasted(model, random_groups(rows, k, seed)) for rows, seed in ((32, 0), (12, 1))
    )
    chosen = settings(objective, 4)
    (tmp_path / "out").mkdir()
    callback = HeldOutContrast(unseen, chosen, tmp_path / "out")
    train(model, seen, chosen, tmp_path / "out", tmp_path / "part", [callback])
    start, middle, end = map(json.loads, (tmp_path / "out" / FILE).read_text().splitlines())
    assert [line["step"] for line in (start, middle, end)] == [0, 2, 4]
    at_reference = math.log(math.factorial(k)) if objective == "ranked_cpo" else math.log(k)
    assert start["contrast_loss"] == pytest.approx(at_reference, abs=1e-5)
    assert start["change"] == start["low"] == start["high"] == 0
    for line in (middle, end):
        assert line["low"] < line["change"] < line["high"]
        assert line["change"] == pytest.approx(line["contrast_loss"] - at_reference, abs=1e-5)
    # The end is what scoring the trained model afterwards gives, in any order of the prompts.
    after = contrasted(model, [example.group for example in unseen])
    policy, reference = (
        torch.tensor([list(row.reference_logps) for row in rows]) for rows in (after, unseen)
    )
    expected = contrast_on(policy, reference, torch.ones_like(policy, dtype=torch.bool), chosen)
    for name, value in expected.items():
        # The bootstrap draws prompts by their place.
        tolerance = 0.1 * (end["high"] - end["low"]) if name in ("low", "high") else 1e-4
        assert end[name] == pytest.approx(value, abs=tolerance), name


def mle_examples(seed: int, rows: int) -> list[TrainingExample]:
    return [
        TrainingExample(Group(group.prefix_ids, group.continuations[:1]))
        for group in random_groups(rows, 2, seed)
    ]


def mle_losses(output: Path) -> dict[int, float]:
    lines = map(json.loads, (output / FILE).read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


def test_the_loss_of_mle_is_that_of_the_trained_model(tmp_path):
    model, chosen = tiny_model("llama"), settings("mle", 4)
    unseen = mle_examples(1, 12)
    (tmp_path / "out").mkdir()
    callback = HeldOutLoss(unseen, chosen, tmp_path / "out", every=3)
    train(model, mle_examples(0, 32), chosen, tmp_path / "out", tmp_path / "part", [callback])
    losses = mle_losses(tmp_path / "out")
    assert [*losses] == [3, 4]  # every third step, and the last
    scores = score_groups(model, [one.group for one in unseen], "fp32", 4, "scoring")
    tokens = sum(len(one.group.continuations[0]) for one in unseen)
    assert losses[4] == pytest.approx(-float(scores.sum()) / tokens, abs=1e-5)


@pytest.mark.parametrize(("rate", "ends"), [(1.0, True), (1e-6, False)])
def test_mle_ends_once_its_held_out_loss_has_risen(tmp_path, rate, ends):
    model = tiny_model("gpt2")
    chosen = dataclasses.replace(settings("mle", 8), learning_rate=rate)
    (tmp_path / "out").mkdir()
    # A rate of 1 ruins the model at once; at 1e-6 the loss on the examples trained on only falls.
    seen = mle_examples(0, 64)
    callback = HeldOutLoss(seen, chosen, tmp_path / "out", every=1)
    history = train(model, seen, chosen, tmp_path / "out", tmp_path / "part", [callback])
    losses = [*mle_losses(tmp_path / "out").values()]
    assert len(losses) == len(history)
    if ends:
        assert len(losses) < 8
        assert losses[-1] > min(losses[:-1]) and losses[:-1] == sorted(losses[:-1], reverse=True)
    else:
        assert len(losses) == 8


def test_measuring_changes_no_weight(tmp_path):
    trained = []
    for number, measures in enumerate((False, True)):
        model = tiny_model("llama")
        seen, unseen = (contrasted(model, random_groups(16, 3, seed)) for seed in (0, 1))
        output = tmp_path / f"out{number}"
        output.mkdir()
        callbacks = [HeldOutContrast(unseen, settings("cpo", 2), output)] if measures else []
        train(model, seen, settings("cpo", 2), output, tmp_path / f"part{number}", callbacks)
        trained.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert torch.equal(*trained)


def test_a_resumed_training_keeps_the_middle(tmp_path):
    """The middle's measurement lies in the checkpoint, and is not lost with the process."""
    model = tiny_model("gpt2")
    seen, unseen = (contrasted(model, random_groups(32, 3, seed)) for seed in (0, 1))
    chosen = settings("cpo", 4, checkpoint_minutes=1e-9)
    whole, half = tmp_path / "whole", tmp_path / "half"
    lines = []
    for output, stop in ((whole, False), (half, True)):
        output.mkdir()
        if stop:

            class Stop(HeldOutContrast):
                def on_save(self, args, state, control, **kwargs):
                    if state.global_step == 3:
                        raise KeyboardInterrupt

            # The project's own callback seals the checkpoint after this one: interrupt at the next.
            with pytest.raises(KeyboardInterrupt):
                callback = Stop(unseen, chosen, output)
                train(tiny_model("gpt2"), seen, chosen, output, tmp_path / "part", [callback])
            assert not (output / FILE).exists()
        partial = tmp_path / ("part" if stop else "other")
        callback = HeldOutContrast(unseen, chosen, output)
        train(tiny_model("gpt2"), seen, chosen, output, partial, [callback])
        lines.append((output / FILE).read_text())
    assert lines[0] == lines[1]
