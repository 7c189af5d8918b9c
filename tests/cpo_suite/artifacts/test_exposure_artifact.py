"""Exposure bias as an artifact: writers that are known, and a model of a few thousand weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from cpo.data.tokens import encode
from cpo.evaluation.exposure_bias import exposure_gaps
from cpo_suite.artifacts import evaluations, exposure_bias
from cpo_suite.artifacts.exposure_bias import longest, written
from cpo_suite.profile import load_profile
from cpo_suite.store import Store
from cpo_suite.suite import Suite
from cpo_suite.world.sentences import true_sentences

SMALL = [
    "models.llama.pretraining.steps=3",
    "reference={steps: 3, batch: 8, learning_rate: 1e-3}",
    "articles_reference={steps: 2, batch: 8, learning_rate: 1e-3}",
    "instructions.test_prompts=12",
    "instructions.validation_rows=16",
    "instructions.max_continuation_tokens=80",
    "articles={source: world, validation_articles: 8, test_articles: 6, max_tokens: 128}",
    "optimiser.precision=fp32",
    "rows=[t2/MLE1, t3/MLE]",
]
TASKS = {"instructions": "reference/llama", "articles": "articles_reference/llama"}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    root = tmp_path_factory.mktemp("exposure")
    opened = Suite.open("smoke", SMALL, root / "figures")
    opened.store = Store(root / "artifacts")
    return opened


# The true sentences, and how many of them stand already -> what comes next.
Writer = Callable[[list[str], int], list[str]]


@pytest.fixture
def writes(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[Callable[[str, Writer], Any]]:
    """Grades of a reference in whose place a known writer writes, in a store of its own."""
    kept, numbers = suite.store, itertools.count()

    def grades(row_id: str, writer: Writer) -> Any:
        artifact = suite.exposure_bias_artifact(row_id)
        tokenizer = artifact.examples.tokenizer()
        by_ids = {
            row.prefix_ids: prompt
            for row, prompt in zip(
                artifact.generations.rows(), artifact.generations.judged(), strict=True
            )
        }

        def generate(model: Any, prefixes: Sequence[Sequence[int]], **settings: Any) -> Any:
            def continued(ids: tuple[int, ...]) -> list[int]:
                [start] = [start for start in by_ids if ids[: len(start)] == start]
                prompt = by_ids[start]
                sentences = true_sentences(prompt.source, prompt.prefix)
                said = tokenizer.decode(ids[len(start) :])
                count = next(
                    n for n in itertools.count() if len("".join(sentences[:n])) == len(said)
                )
                assert "".join(sentences[:count]) == said  # contexts are true text
                text = "".join(writer(sentences, count))
                whole = [*encode([text], tokenizer)[0], tokenizer.eos_token_id]
                return whole[: settings["max_new_tokens"]]

            return [[continued(tuple(ids))] for ids in prefixes]

        monkeypatch.setattr(evaluations, "generate", generate)
        monkeypatch.setattr(exposure_bias, "generate", generate)
        monkeypatch.setattr(type(artifact.generations.model), "load", lambda *_: _Plain())
        monkeypatch.setattr(evaluations, "ids_without_token", lambda *_: [])
        monkeypatch.setattr(exposure_bias, "ids_without_token", lambda *_: [])
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        for one in (artifact.generations, artifact):
            one.build(folder, _Loaded(kept, folder))
        return artifact.load(folder)

    yield grades


class _Plain:
    """A model with nothing but a number of positions."""

    config = type("Config", (), {"max_position_embeddings": 256})


class _Loaded:
    """A store whose generations lie in a folder."""

    def __init__(self, store: Store, folder: Any) -> None:
        self.store, self.folder = store, folder

    def load(self, artifact: Any) -> Any:
        return artifact.load(self.folder)

    def get(self, artifact: Any) -> Any:
        return self.store.get(artifact)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_writer_of_the_truth_has_no_gap(suite, writes, task):
    grades = writes(TASKS[task], lambda sentences, count: sentences[count:])
    assert grades.asked.sum() > len(grades.ids) > 3
    assert np.array_equal(np.isnan(grades.true), ~grades.asked)
    # Whole sentences of the truth have full marks; the first may complete one that is said already.
    assert (grades.true[:, 1:][grades.asked[:, 1:]] == 1).all()
    both = ~np.isnan(grades.gaps)
    assert (grades.gaps[both] == 0).all() and both[:, 1:].any()


@pytest.mark.parametrize("task", list(TASKS))
def test_errors_that_lead_to_errors_are_a_gap_of_one(suite, writes, task):
    # After a true sentence it goes on truly; by itself it errs at once and never recovers.
    def writer(sentences, count):
        return sentences[count:] if count else [" This is wrong."] * 5

    grades = writes(TASKS[task], writer)
    for one in exposure_gaps(grades, least=1):
        assert (one.true, one.own, one.gap.value) == ((0, 0, 0) if one.n == 1 else (1, 0, 1))


def test_a_model_that_stops_has_no_sentence_there(suite, writes):
    # It writes one sentence of its own and then stops; after true text it goes on by one.
    grades = writes("reference/llama", lambda sentences, count: sentences[count : count + 1])
    assert not np.isnan(grades.own[:, 0]).any() and np.isnan(grades.own[:, 1:]).all()
    assert [one.n for one in exposure_gaps(grades, least=1)] == [1]
    assert not np.isnan(grades.true[grades.asked]).any()


@pytest.mark.parametrize("task", list(TASKS))
def test_at_the_first_sentence_both_contexts_are_the_prefix(suite, task):
    grades = suite.exposure_bias(TASKS[task])
    assert grades.asked.any(0).sum() > 2  # longer contexts were asked as well
    np.testing.assert_array_equal(grades.true[:, 0], grades.own[:, 0])
    gaps = grades.gaps[:, 0]
    assert (gaps[~np.isnan(gaps)] == 0).all() and (~np.isnan(gaps)).any()


def test_it_is_planned_where_the_oracle_judges(tmp_path):
    def planned(profile: str, *overrides: str) -> list[str]:
        suite = Suite.stated(load_profile(profile, overrides), Store(tmp_path), None)
        return [one.title for one in suite.artifacts() if one.stage == "exposure_bias"]

    assert sorted(planned("tiny")) == sorted(
        f"exposure bias of {name}"
        for name in (
            "reference/llama", "t2/MLE1", "t2/ANR", "t2/MixNR/0", "t2/PSS",
            "articles_reference/llama", "t3/MLE", "t3/BNR/0",
        )
    )  # fmt: skip
    assert planned("tiny", "rows=[t2/ANR]", "claims={}") == [
        "exposure bias of reference/llama", "exposure bias of t2/ANR",
    ]  # fmt: skip
    assert planned("tiny", "judge={kind: longest}") == []


# --- Parts ----------------------------------------------------------------------------------------


def test_the_longest_texts_are_taken_in_their_order():
    texts = [["a"] * 3, ["a"] * 5, ["a"], ["a"] * 3, ["a"] * 4]
    assert longest(texts, 3, 2) == [0, 1, 4]  # of two with three sentences the first
    assert longest(texts, 9, 4) == [1, 4]


def test_a_sentence_cut_off_by_the_limit_is_left_out(suite):
    tokenizer = suite.exposure_bias_artifact("reference/llama").examples.tokenizer()
    eos = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return encode([text], tokenizer)[0]

    assert written(ids("Mira is a baker. She"), tokenizer) == ["Mira is a baker."]
    assert written(ids("Mira is a baker."), tokenizer) == ["Mira is a baker."]
    assert written([*ids("Mira is a baker. She"), eos], tokenizer) == ["Mira is a baker.", " She"]
    endless = "Mira is a baker" + " and a baker" * 40
    assert written(ids(endless), tokenizer) == [endless]  # its own fault
    assert written([eos], tokenizer) == [] and written([], tokenizer) == []
