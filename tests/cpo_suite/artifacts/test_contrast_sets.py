"""Draws that rows share: which columns and steps a row takes, and in what order."""

import numpy as np
import pytest
from test_suite import SMALL, opened

from cpo_suite import world
from cpo_suite.artifacts.base_models import Trained
from cpo_suite.artifacts.negatives import ContrastSets
from cpo_suite.profile import ProfileError, load_profile
from cpo_suite.suite import Suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    held_out = ["continuation.held_out_batches=1", "articles.validation_articles=12"]
    return opened(tmp_path_factory.mktemp("shared"), [*SMALL, *held_out])


def test_rows_of_one_kind_and_reference_share_a_draw(suite):
    def key(row: str) -> str:
        return suite.negatives_artifact(suite.row(row)).key

    assert len({key(row) for row in ("t2/ANR", "t2/AN", "x/NCE", "x/ANR/K2", "x/ANR-oracle")}) == 1
    # Another reference, another kind, other kinds beside it: other draws.
    others = ["f1b/ANR", "x/AN-untruncated", "t1/ANR", "t2/MixN", "x/small/ANR"]
    assert len({key(row) for row in ["t2/ANR", *others]}) == 6


def test_a_row_takes_the_first_columns_and_steps_of_the_draw(suite):
    whole, two = suite.negatives("t2/ANR"), suite.negatives("x/ANR/K2")
    assert whole.kinds == ["truth", "AN", "AN", "AN"] and two.kinds == ["truth", "AN"]
    for row in range(len(whole)):
        assert two.candidates(row) == whole.candidates(row)[:2]
        assert sorted(whole.order[row]) == [0, 1, 2, 3] and sorted(two.order[row]) == [0, 1]
    assert (two.reference_logps == whole.reference_logps[:, :2]).all()


def test_a_schedule_of_several_passes_repeats_its_batches_and_their_negatives(
    tmp_path, monkeypatch
):
    passes = ["continuation.passes=2", "continuation.held_out_batches=0"]
    suite = opened(tmp_path, [*SMALL, *passes])
    trained: dict[str, list] = {}

    def record(self, network, examples, *others, **settings):
        trained[self.name] = [example.group for example in examples]
        network.save_pretrained(others[0])

    assert suite.reference_artifact("llama").steps_per_pass is None
    suite.reference("llama")
    monkeypatch.setattr(Trained, "train", record)
    suite.model("t2/MLE2"), suite.model("t2/MixN")
    # Three steps of 8 rows in two passes: two batches, then the first of them again.
    for groups in trained.values():
        assert len(groups) == 24 and groups[16:] == groups[:8] != groups[8:16]
    prefixes = [[group.prefix_ids for group in groups] for groups in trained.values()]
    assert prefixes[0] == prefixes[1] and len(suite.negatives("t2/MixN")) == 16


def test_selected_columns_keep_their_order(suite):
    mixed = suite.negatives("t2/MixNR/0")
    chosen = mixed.select({"TN": 1, "BN": 1}, rows=8)
    assert chosen.kinds == ["truth", "TN", "BN"] and len(chosen) == len(chosen.prefixes) == 8
    columns = [mixed.kinds.index(kind) for kind in chosen.kinds]
    for row in range(8):
        candidates = mixed.candidates(row)
        assert chosen.candidates(row) == [candidates[column] for column in columns]
        kept = [column for column in mixed.order[row] if column in columns]
        assert [columns[place] for place in chosen.order[row]] == kept
    examples = chosen.training_examples(ranked=True)
    first = chosen.candidates(0)
    assert examples[0].group.continuations == [first[column] for column in chosen.order[0]]


def test_examples_have_the_scores_that_their_order_is_taken_from(tmp_path):
    arrays = {
        "tokens": np.arange(5),
        "lengths": np.array([[2, 1, 2]]),
        "mask": np.ones((1, 3), dtype=bool),
        "order": np.array([[0, 2, 1]]),
        "similarities": np.array([[1.0, 0.25, 0.5]], dtype=np.float32),
        "reference_logps": np.array([[-1.0, -2.0, -3.0]], dtype=np.float32),
    }
    np.savez(tmp_path / "negatives.npz", **arrays)
    (tmp_path / "report.json").write_text('{"kinds": ["truth", "AN", "BN"]}')
    sets = ContrastSets(tmp_path, [[7]], None)

    def scores(sets: ContrastSets, ranked: bool) -> list[float]:
        [example] = sets.training_examples(ranked)
        return list(example.scores)

    assert scores(sets, ranked=False) == [1.0, 0.25, 0.5]
    assert scores(sets, ranked=True) == [1.0, 0.5, 0.25]
    assert scores(sets.select({"BN": 1}), ranked=True) == [1.0, 0.5]
    graded = sets.ranked_by([[0.5, 0.75, 0.0]])
    assert scores(graded, ranked=True) == [0.5, 0.75, 0.0]
    assert (graded.similarities == sets.similarities).all()


@pytest.mark.parametrize(
    ("share", "nearest", "left"),
    [
        # Usable are columns 1, 2, 4 and 5, whose similarities are .9, .1, .5 and .3.
        (0.75, False, [2, 4, 5]),  # all but the nearest
        (0.5, False, [2, 5]),
        (0.5, True, [1, 4]),
        (0.3, True, [1, 4]),  # 1.2 of 4, rounded up
        (0.01, False, [2]),  # one at least
        (1.0, True, [1, 2, 4, 5]),
    ],
)
def test_a_share_of_the_negatives_is_kept_by_similarity(tmp_path, share, nearest, left):
    similarities = np.array([[1.0, 0.9, 0.1, 0.0, 0.5, 0.3]], dtype=np.float32)
    np.savez(
        tmp_path / "negatives.npz",
        tokens=np.arange(6),
        lengths=np.array([[1, 1, 1, 0, 2, 1]]),
        mask=np.array([[True, True, True, False, True, True]]),
        order=np.array([[0, 1, 4, 5, 2, 3]]),
        similarities=similarities,
        reference_logps=-similarities,
    )
    (tmp_path / "report.json").write_text('{"kinds": ["truth", "AN", "AN", "AN", "AN", "AN"]}')
    sets = ContrastSets(tmp_path, [[7]], None)
    kept = sets.kept(share, nearest)
    assert np.flatnonzero(kept.mask[0]).tolist() == [0, *left]
    # Best first, those without a place last; what is masked is empty, the rest as it was.
    by_similarity = sorted(left, key=lambda column: -similarities[0, column])
    assert kept.order[0].tolist()[: len(left) + 1] == [0, *by_similarity]
    before = sets.candidates(0)
    assert kept.candidates(0) == [
        ids if column in (0, *left) else () for column, ids in enumerate(before)
    ]
    assert sets.mask.sum() == 5 and kept.kinds == sets.kinds


def test_a_custom_row_never_enlarges_the_draw_of_the_paper_s_rows(suite):
    before = suite.negatives_artifact(suite.row("t2/ANR")).key
    suite.add_row("own/K2", like="t2/ANR", negatives={"AN": 2})
    assert suite.negatives_artifact(suite.row("own/K2")).key == before
    suite.add_row("own/K6", like="t2/ANR", negatives={"AN": 5})
    assert suite.negatives_artifact(suite.row("own/K6")).mixture == {"AN": 5}
    assert suite.negatives_artifact(suite.row("t2/ANR")).key == before


def test_the_control_is_ordered_by_the_oracle_s_grades(suite):
    control = suite.negatives("x/ANR-oracle")
    sources = {example.id: example.source for example in suite.instructions.train}
    rows = suite.negatives_artifact(suite.row("x/ANR-oracle"))._planned()
    for row in range(len(control)):
        order = control.order[row].tolist()
        texts = control.texts(row)
        grades = [world.oracle_score(sources[rows[row].id], text) for text in texts]
        usable = [column for column in order[1:] if control.mask[row, column]]
        assert order[0] == 0 and order == [0, *usable, *(set(order[1:]) - set(usable))]
        ranked = [round(grades[column], 5) for column in usable]
        assert ranked == sorted(ranked, reverse=True)
    assert (suite.negatives("t2/ANR").reference_logps == control.reference_logps).all()


def test_every_contrastive_row_is_measured_on_validation_prompts_it_never_saw(suite):
    for row in ("t2/ANR", "t1/DPO", "t3/BNR/0", "t2/MixNR/0.5"):
        start, middle, end = suite.held_out(row)
        assert start["step"] == start["change"] == 0 < middle["step"] < end["step"]
        assert end["step"] == len(suite.history(row))
        assert np.isfinite([end["contrast_loss"], end["low"], end["high"]]).all()
    assert suite.held_out("t2/MLE1") == suite.held_out("t2/PSS") == []
    unseen = suite.negatives_artifact(suite.row("t2/ANR"), split="validation")
    assert {row.id for row in unseen._planned()} <= {
        row.id for row in suite.instructions.validation
    }


def test_a_ranking_by_the_oracle_is_refused_on_real_data():
    real = ["instructions.source=jsonl", "instructions.path=x", "judge={kind: none}"]
    with pytest.raises(ProfileError, match="x/ANR-oracle is ranked by the oracle.*leaves_out"):
        load_profile("smoke", [*real, "unhelpful={writer: other_response}"])
