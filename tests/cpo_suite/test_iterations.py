"""Negatives drawn anew while a row trains, from the policy or, as a control, from the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_suite import SMALL

from cpo.scoring import Group, score_groups
from cpo_suite.paper import continued_mle
from cpo_suite.profile import ProfileError
from cpo_suite.report.objectives import GAIN_COLUMNS, gains, moved
from cpo_suite.store import Store
from cpo_suite.suite import Suite

STEPS = "continuation.steps={long: 3, short: 2, ablation: 4, articles: 2}"


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    """Four steps, in two passes over the prompts of two; a rate that moves the policy."""
    folder = tmp_path_factory.mktemp("iterations")
    changes = [STEPS, "continuation.passes=2", "continuation.learning_rate={mle: 1e-3, cpo: 1e-2}"]
    rows = "rows=[f1b/MLE, f1b/ANR]"
    opened = Suite.open("smoke", [*SMALL, *changes, rows], folder / "figures")
    opened.store = Store(folder / "artifacts")
    for name, fields in {
        "own/redrawn": {},
        "own/moving": {"moving_reference": True},
        "own/control": {"redraw_from": "reference"},
    }.items():
        opened.add_row(name, like="f1b/ANR", redraw=2, **fields)
    opened.add_row("own/each", like="f1b/ANR", redraw=1)
    return opened


def logps(suite: Suite, model_folder: Path, row_id: str) -> np.ndarray:
    """Log-probabilities `[N, K]` of a row's last candidates under a model, where usable."""
    drawn = suite.negatives(row_id)
    groups = [Group(prefix, drawn.candidates(row)) for row, prefix in enumerate(drawn.prefixes)]
    model = suite.model_artifact("f1b/ANR").load(model_folder)
    scored = torch.cat([score_groups(model, [group], "fp32", 1, "scoring") for group in groups])
    return scored.numpy()[drawn.mask]


def test_pieces_follow_each_other_over_the_passes(suite: Suite) -> None:
    pieces = suite.model_artifact("own/each").pieces
    assert [piece.steps for piece in pieces] == [1, 1, 1, 1]
    # Two passes over the prompts of two steps.
    assert [piece.negatives.first_step for piece in pieces] == [0, 1, 0, 1]
    assert [piece.start for piece in pieces[1:]] == pieces[:-1]
    once = suite.model_artifact("f1b/ANR")
    assert once.pieces == [once] and pieces[0].start == once.start
    prompts = [row.prefix_ids for row in once.negatives._planned()]
    later = [row.prefix_ids for row in pieces[3].negatives._planned()]
    assert later == prompts[len(prompts) // 2 :]


def test_the_first_draw_is_that_of_the_row_without_redrawing(suite: Suite) -> None:
    first, second = suite.model_artifact("own/redrawn").pieces
    assert first.negatives.key == suite.model_artifact("f1b/ANR").negatives.key
    assert second.negatives.policy == first and second.negatives.reference == first.start
    control = suite.model_artifact("own/control").pieces[1]
    assert control.negatives.policy is None and control.negatives.reference == first.start
    assert control.negatives.key != first.negatives.key
    moving = suite.model_artifact("own/moving").pieces[1]
    assert moving.negatives.policy is None and moving.negatives.reference == moving.start


def test_the_reference_stays_or_moves(suite: Suite) -> None:
    for row_id in ("own/redrawn", "own/moving", "own/control"):
        suite.model(row_id)
    first = suite.model_artifact("own/redrawn").pieces[0]
    policy, reference = (suite.store.get(one) for one in (first, first.start))
    for row_id, scored_by in {
        "own/redrawn": reference, "own/moving": policy, "own/control": reference,
    }.items():  # fmt: skip
        drawn = suite.negatives(row_id)
        ours = logps(suite, scored_by, row_id)
        np.testing.assert_allclose(ours, drawn.reference_logps[drawn.mask], atol=1e-3)
    # What the policy has learnt shows: elsewhere the two would be one and the same.
    assert (
        np.abs(logps(suite, policy, "own/redrawn") - logps(suite, reference, "own/redrawn")).max()
        > 0.1
    )
    texts = {row_id: suite.negatives(row_id).texts(0)[1:] for row_id in suite.profile.own_rows}
    assert texts["own/redrawn"] != texts["own/control"] != suite.negatives("f1b/ANR").texts(0)[1:]


def test_the_log_goes_through_the_pieces(suite: Suite) -> None:
    for row_id in ("own/redrawn", "own/moving"):
        history = suite.history(row_id)
        assert [line["step"] for line in history] == [1, 2, 3, 4]
        measured = [line["step"] for line in suite.held_out(row_id)]
        assert measured == sorted(set(measured)) and measured[0] == 0 and measured[-1] == 4
    third = suite.history("own/moving")[2]  # the policy is its own reference again
    assert third["loss"] == pytest.approx(third["loss_at_reference"], abs=1e-3)
    third = suite.history("own/redrawn")[2]  # not so here, and it is no fault
    assert abs(third["loss"] - third["loss_at_reference"]) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"redraw": 3}, r"redraws every 3 steps, which does not divide its 4 steps, 2 a pass"),
        ({"redraw": -2}, "redraws every -2 steps"),
        ({"redraw": 4}, "into several equal pieces"),
        ({"redraw": 2, "objective": "mle", "negatives": None}, "redraws negatives, but trains"),
        ({"moving_reference": True}, "moving_reference and redraw_from need a redraw"),
        ({"redraw": 2, "moving_reference": True, "redraw_from": "reference"}, "not both"),
        ({"keep_nearest": True}, "keep_nearest needs a keep below 1"),
        ({"objective": "mle", "negatives": None, "keep": 0.5}, "are for rows with negatives"),
        ({"beta": 0.0}, "beta is 0, and must be positive"),
        ({"keep": 1.5}, r"keep is 1.5, and must be in \(0, 1\]"),
        ({"learning_rate": -1.0}, "learning_rate is -1, and must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(suite: Suite, changes: dict, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        suite.add_row("own/wrong", like="f1b/ANR", **changes)


def test_a_row_may_have_a_rate_and_a_beta_of_its_own(suite: Suite) -> None:
    like = suite.model_artifact("f1b/ANR")
    suite.add_row("own/set", like="f1b/ANR", beta=2.0, learning_rate=3e-4, keep=0.75)
    own = suite.model_artifact("own/set")
    assert (own.keep, own.keep_nearest, like.keep) == (0.75, False, 1.0)
    assert (own.beta, own.learning_rate) == (2.0, 3e-4) != (like.beta, like.learning_rate)
    assert own.negatives.key == like.negatives.key


@pytest.mark.parametrize(
    "changes",
    [{"beta": 2.0}, {"learning_rate": 1e-3}, {"keep": 0.5}, {"redraw": 2},
     {"keep": 0.5, "keep_nearest": True}, {"redraw": 2, "moving_reference": True},
     {"redraw": 2, "redraw_from": "reference"}],
)  # fmt: skip
def test_every_variation_has_its_continued_mle(suite: Suite, changes: dict) -> None:
    row = suite.add_row("own/varied", like="f1b/ANR", **changes)
    assert continued_mle(row).id == "f1b/MLE"


def test_a_recipe_does_not_double_with_every_piece(suite: Suite) -> None:
    recipes = [len(json.dumps(piece.describe(), default=_described))
               for piece in suite.model_artifact("own/each").pieces]  # fmt: skip
    grown = np.diff(recipes)
    assert grown[-1] <= 1.1 * grown[1]


def _described(value: Any) -> Any:
    return value.describe()


def test_later_pieces_take_the_unhelpful_responses_of_their_own_prompts(suite: Suite) -> None:
    mixture = {"AN": 1, "UN": 1}
    suite.add_row("own/once", like="f1b/ANR", negatives=mixture)
    suite.add_row("own/unhelpful", like="f1b/ANR", negatives=mixture, redraw=1)
    once, last = suite.negatives("own/once"), suite.negatives("own/unhelpful")
    column, half = once.kinds.index("UN"), len(last)
    assert len(once) == 2 * half and last.kinds == once.kinds
    for row in range(half):
        assert last.candidates(row)[column] == once.candidates(half + row)[column]


def test_gains_and_distances_of_rows(suite: Suite) -> None:
    judged = gains(suite, [("f1b/ANR", "f1b/MLE", "greedy"), ("f1b/MLE", "f1b/MLE", "greedy")])
    assert list(judged.columns) == GAIN_COLUMNS and list(judged["n"]) == [12, 12]
    # Against itself a row gains nothing, whatever its points.
    assert judged.loc[1, ["gain", "low", "high"]].tolist() == [0, 0, 0]
    ours, theirs = (np.mean(suite.verdicts(row, "greedy").points) for row in ("f1b/ANR", "f1b/MLE"))
    assert judged.loc[0, "gain"] == pytest.approx(ours - theirs)

    went = moved(suite, "f1b/ANR", prompts_of="f1b/ANR")
    assert went.keys() == {"truth", "negatives", "kl", "tokens", "seconds"}
    held_out = suite.model_artifact("f1b/ANR").held_out
    sets, models = suite.store.load(held_out), (suite.model("f1b/ANR").path, held_out.reference)
    groups = [Group(prefix, sets.candidates(row)) for row, prefix in enumerate(sets.prefixes)]
    policy, reference = (
        score_groups(held_out.reference.load(path), groups, "fp32", 1, "scoring")
        for path in (models[0], suite.store.get(models[1]))
    )
    ratios, usable = (policy - reference).numpy(), sets.mask
    assert went["truth"] == pytest.approx(ratios[:, 0].mean(), abs=1e-4)
    assert went["negatives"] == pytest.approx(ratios[:, 1:][usable[:, 1:]].mean(), abs=1e-4)
    assert went["kl"] != 0 and went["seconds"] > 0
    # A policy that has not left its reference: all distances are 0.
    still = moved(suite, "ablation_reference/llama", prompts_of="f1b/ANR", prompts=4)
    assert [still[name] for name in ("truth", "negatives", "kl")] == pytest.approx([0, 0, 0])
    with pytest.raises(ValueError, match="start from different references"):
        moved(suite, "t2/MLE1", prompts_of="f1b/ANR")
    with pytest.raises(ValueError, match="has no negatives of held-out prompts"):
        moved(suite, "f1b/ANR", prompts_of="f1b/MLE")
