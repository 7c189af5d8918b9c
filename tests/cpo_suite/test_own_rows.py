"""Rows of one's own: a sampler, a loss or a judge of a notebook, from definition to table."""

from __future__ import annotations

import importlib
import json
import linecache
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_negatives import planned
from test_suite import SMALL

from cpo import losses, negatives, objectives
from cpo.evaluation import judging
from cpo.negatives import register
from cpo.objectives import register_objective
from cpo.registry import RegistryError
from cpo.training import TrainingError
from cpo_suite.estimate import Planned
from cpo_suite.launching import LaunchError, launch
from cpo_suite.profile import ROOT, Profile, ProfileError
from cpo_suite.report import tables
from cpo_suite.report.announcement import announce
from cpo_suite.run.dry_run import custom_rows
from cpo_suite.store import Store
from cpo_suite.suite import Suite

SAMPLER = """
    from cpo.negatives import register

    @register("XN")
    def shortened(planned, wanted, seed):
        return {
            row: [(*planned.body(row)[:cut], planned.eos_token_id) for cut in range(1, count + 1)]
            for row, count in wanted.items()
        }
"""


@pytest.fixture(autouse=True)
def registries():
    """What a test registers is forgotten after it."""
    known: list[Any] = [negatives.SAMPLERS, judging.RULES, objectives.OBJECTIVES]
    known.append(objectives.RANKED_OBJECTIVES)
    before = [one.copy() for one in known]
    yield
    for one, kept in zip(known, before, strict=True):
        one.clear()
        one.update(kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture
def suite(folder) -> Suite:
    """A suite without rows of one's own yet, over the module's one store."""
    rows = "rows=[f1b/MLE, f1b/TNR, f1b/BNR]"
    opened = Suite.open("smoke", [*SMALL, rows], folder / "figures")
    opened.store = Store(folder / "artifacts")
    return opened


def sampler_from(folder: Path, monkeypatch, source: str = SAMPLER) -> str:
    """Registers the sampler of a file as a user's module; returns the module's name."""
    name = "a_users_samplers"
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it tells files apart by the second
    sys.modules.pop(name, None)
    linecache.checkcache()
    importlib.invalidate_caches()
    importlib.import_module(name)
    return name


def test_a_sampler_of_ones_own_goes_the_whole_way(suite, tmp_path, monkeypatch):
    sampler_from(tmp_path, monkeypatch)
    before = tables.table(suite, "f1b")
    row = suite.add_row("own/XNR", like="f1b/TNR", negatives={"XN": 2})
    assert (row.objective, row.reference, row.steps) == (
        "ranked_cpo",
        "ablation_reference",
        "ablation",
    )
    drawn = suite.negatives("own/XNR")
    assert drawn.kinds == ["truth", "XN", "XN"]
    truth, first, second = drawn.candidates(0)
    eos = drawn.tokenizer.eos_token_id
    assert first == (truth[0], eos) and second == (*truth[:2], eos)

    own = tables.table(suite, "own").set_index("row")
    assert list(own.index) == ["own/XNR"] and own.loc["own/XNR", "n"] == 12
    assert 0 <= own.loc["own/XNR", "ours"] <= 1
    # The paper's tables are what they were.
    assert tables.table(suite, "f1b").equals(before)
    assert "own/XNR" in {item.name.split(" ")[-1] for item in suite.plan()}
    assert "Everything" in announce(suite, ["own/XNR"])


def test_the_same_source_finds_the_artifact_and_another_makes_another(suite, tmp_path, monkeypatch):
    def key(source: str) -> str:
        sampler_from(tmp_path, monkeypatch, source)
        suite.add_row("own/XNR", like="f1b/TNR", negatives={"XN": 2})
        return suite.model_artifact(suite.row("own/XNR")).key

    first = key(SAMPLER)
    assert key("# moved down by a line\n" + textwrap.dedent(SAMPLER)) == first
    assert key(SAMPLER.replace("range(1, count + 1)", "range(2, count + 2)")) != first
    assert key(SAMPLER) == first
    # Rows of the paper do not know of it.
    assert suite.negatives_artifact(suite.row("f1b/TNR")).mixture == {"TN": 2}


def test_a_loss_of_ones_own_is_trained_with(suite):
    def register_twice(factor: float) -> None:
        @register_objective("twice")
        def twice(policy_logps, reference_logps, beta, mask):
            return factor * losses.cpo_loss(policy_logps, reference_logps, beta, mask)

    register_twice(2)
    row = suite.add_row("own/twice", like="f1b/BNR", objective="twice")
    recipe = suite.model_artifact(row)
    assert recipe.objective.startswith("twice:") and recipe.beta == 0.5
    # Two BN and the truth, none masked: twice ln 3.
    assert suite.negatives("own/twice").mask.all()
    assert suite.history("own/twice")[0]["loss"] == pytest.approx(2 * math.log(3), abs=1e-4)
    assert suite.negatives_artifact(row).key == suite.negatives_artifact(suite.row("f1b/BNR")).key
    register_twice(3)
    assert suite.model_artifact(row).key != recipe.key
    register_twice(2)
    assert suite.model_artifact(row).key == recipe.key


def test_a_ranked_loss_sees_the_best_first(suite):
    def again(policy_logps, reference_logps, beta, mask):
        return losses.ranked_cpo_loss(policy_logps, reference_logps, beta, mask)

    register_objective("again", ranked=True)(again)
    row = suite.add_row("own/again", like="f1b/BNR", objective="again")
    ranked = suite.model_artifact(row).key
    ours, theirs = ([step["loss"] for step in suite.history(one)] for one in (row.id, "f1b/BNR"))
    assert ours == theirs
    register_objective("again")(again)
    assert suite.model_artifact(row).key != ranked
    # In columns as drawn the order is another one, and so is what it learns from the first step.
    assert suite.history(row.id)[-1]["loss"] != theirs[-1]


def test_a_loss_that_is_no_mean_is_refused(suite):
    @register_objective("per row")
    def per_row(policy_logps, reference_logps, beta, mask):
        return (reference_logps - policy_logps).sum(-1)

    suite.add_row("own/per-row", like="f1b/BNR", objective="per row")
    with pytest.raises(TrainingError, match=r"'per row' returned a tensor of shape \(\d,\)"):
        suite.model("own/per-row")


def test_another_judge_keeps_the_rows(suite, tmp_path, monkeypatch):
    sampler_from(tmp_path, monkeypatch)
    suite.add_row("own/XNR", like="f1b/TNR", negatives={"XN": 2})

    @judging.register_judge("shortest")
    def shortest(example, response_a, response_b):
        return "A" if len(response_a) < len(response_b) else "B"

    judged = suite.judged_by("shortest")
    frame = tables.table(judged, "own")
    assert frame["row"].tolist() == ["own/XNR"] and frame["judge"].tolist() == ["shortest"]
    assert tables.table(suite, "own")["judge"].tolist() == ["oracle"]
    assert judged.verdicts_artifact("own/XNR").judge["kind"].startswith("shortest:")
    with pytest.raises(judging.JudgeError, match="Did you mean 'shortest'"):
        suite.judged_by("shortes")


@pytest.mark.parametrize(
    ("row_id", "like", "changes", "message"),
    [
        ("own/A", "f1b/TN", {}, "no row 'f1b/TN'.*Did you mean 'f1b/TNR'"),
        ("t1/A", "f1b/TNR", {}, "'t1/A' is not the id of a custom row"),
        ("own/A", "f1b/TNR", {"step": "long"}, "a row has no field 'step'. Did you mean 'steps'"),
        ("own/A", "f1b/TNR", {"negatives": {"TX": 1}}, "unknown kind of negative 'TX'"),
        ("own/A", "f1b/TNR", {"negatives": {"TN": 0}}, "own/A.*greater than or equal to 1"),
        ("own/A", "f1b/TNR", {"negatives": "TN-ablations"}, "TN-ablations.*you mean 'TN-ablation'"),
        ("own/A", "f1b/TNR", {"objective": "hinges"}, "unknown objective 'hinges'"),
        ("own/A", "f1b/MLE", {"objective": "cpo"}, "the objective cpo needs negatives"),
        ("own/A", "f1b/TNR", {"objective": "mle"}, "the objective mle does not use negatives"),
        ("own/A", "t2/MixNR/0.5", {}, "own/A is an ensemble"),
        ("own/A", "f1b/TNR", {"steps": "longer"}, "own_rows.own/A.steps"),
    ],
)
def test_rows_that_cannot_be_are_refused_by_name(suite, row_id, like, changes, message):
    with pytest.raises((ProfileError, KeyError), match=message):
        suite.add_row(row_id, like=like, **changes)
    assert not suite.profile.own_rows


def test_names_of_the_project_cannot_be_registered():
    for name, decorate in (
        ("AN", register),
        ("mle", register_objective),
        ("cpo", register_objective),
    ):
        with pytest.raises(RegistryError, match=f"already has .* '{name}'"):
            decorate(name)


def test_a_row_added_again_is_what_it_is_then(suite):
    suite.add_row("own/A", like="f1b/TNR", negatives={"TN": 1})
    suite.add_row("own/A", like="f1b/BNR")
    assert suite.row("own/A").negatives == "BN-ablation"
    assert [row.id for row in suite.profile.trained_rows][-1] == "own/A"
    assert suite.profile.rows.count("own/A") == 1
    assert Profile.model_validate_json(suite.profile.model_dump_json()) == suite.profile


def test_other_processes_are_not_asked_for_what_a_notebook_defines(suite, tmp_path):
    @register("XN")
    def sampler(planned, wanted, seed):
        return {}

    sampler.__module__ = "__main__"  # as in a notebook
    suite.add_row("own/XNR", like="f1b/TNR", negatives={"XN": 2})
    with pytest.raises(
        LaunchError, match="cannot import XN from this notebook .* set processes.count to 1"
    ):
        launch(suite.profile, tmp_path, suite.negatives_artifact(suite.row("own/XNR")))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_import_a_users_module(suite, folder, tmp_path, monkeypatch):
    sampler_from(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    alone = suite.add_row("own/XNR", like="f1b/TNR", negatives={"XN": 2})
    expected = [suite.negatives(alone.id).candidates(row) for row in range(4)]
    together = Suite.open("smoke", [*SMALL, "processes.count=2"], folder / "figures")
    together.store = Store(tmp_path / "artifacts")
    together.add_row("own/XNR", like="f1b/TNR", negatives={"XN": 2})
    made = together.negatives("own/XNR")
    assert [made.candidates(row) for row in range(4)] == expected


def test_a_dry_run_counts_a_notebooks_own_rows_by_what_they_are_like():
    def item(name: str, seconds: float, usd: float = 0.0) -> Planned:
        alone = seconds + 3
        return Planned(name, "model", "0" * 16, True, 9.0, 1.0, 0.0, alone=alone, usd=usd)

    plan = [item("negatives of t2/ANR", 30), item("model t2/ANR", 57, 0.5), item("model t2/AN", 9)]
    rows = {"own/A": ["f1b/MNR", "t2/ANR"], "own/B": ["t2/ANR"], "own/C": ["t9/X"]}
    [line] = custom_rows("10", rows, plan)
    # Two rows of 30 + 3 and 57 + 3 seconds, made or not: 186. The third is like none of the plan.
    assert "notebook 10 defines own/A, own/B, own/C; if not cached" in line
    assert "about 3 min more, 1.00 USD" in line
    assert custom_rows("10", {"own/C": ["t9/X"]}, plan) == custom_rows("03", {}, plan) == []


# --- The notebook ---------------------------------------------------------------------------------


@pytest.fixture
def slips(tmp_path, monkeypatch):
    """The sampler of notebook 10, and its lines."""
    cells = json.loads((ROOT / "notebooks" / "10_change_one_thing.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if cell["id"] == "sampler")
    (tmp_path / "slips.py").write_text(
        "from collections import defaultdict\nimport torch\nfrom cpo.negatives import register\n"
        + source
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("slips", None)
    return importlib.import_module("slips").slips, source.splitlines()


def test_the_notebooks_sampler_is_short_and_does_what_it_says(slips):
    sampler, lines = slips
    assert len(lines) < 20
    plan = planned(
        rows=4, batch=4, prefixes=[(1,)] * 4,
        continuations=[(1, 2, 3, 4, 0), (1, 2, 5, 4, 0), (7, 8, 9, 0), (1, 2, 6)],
    )  # fmt: skip
    drawn = sampler(plan, dict.fromkeys(range(4), 3), seed=0)
    # Between "1 2" and "4" stand 3 and 5; 6 stands between "1 2" and an end. The first tokens, 1 of
    # three rows and 7, have different neighbours behind them: 2 and 8.
    assert drawn == {0: [(1, 2, 5, 4, 0)], 1: [(1, 2, 3, 4, 0)], 2: [], 3: []}


def test_the_notebooks_sampler_changes_one_token_and_only_by_its_seed(slips):
    sampler, _ = slips
    generator = torch.Generator().manual_seed(0)
    bodies = torch.randint(1, 4, (30, 8), generator=generator).tolist()
    plan = planned(
        rows=30, batch=10, prefixes=[(1,)] * 30,
        continuations=[(*body, 0) for body in bodies],
    )  # fmt: skip
    first, second, other = (sampler(plan, dict.fromkeys(range(30), 4), seed) for seed in (0, 0, 1))
    assert first == second != other
    assert np.mean([len(found) for found in first.values()]) > 3
    for row, found in first.items():
        assert len(set(found)) == len(found) <= 4
        for ids in found:
            assert sum(a != b for a, b in zip(ids, plan.continuations[row], strict=True)) == 1
