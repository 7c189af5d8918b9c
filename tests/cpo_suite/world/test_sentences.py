"""Grades of single sentences, by hand, and the true sentences of the world's texts."""

from __future__ import annotations

import pytest

from cpo_suite.world import World, WorldArticle, WorldExample, build_world, sentence_grade
from cpo_suite.world.grammar import cut_sentences, split_sentences
from cpo_suite.world.oracle import oracle_parts, world_facts
from cpo_suite.world.sentences import grades_in_turn, true_sentences
from cpo_suite.world.tables import WORDS

FACTS = [
    ["Mira", "home", "Tolan"],
    ["Mira", "job", "baker"],
    ["Mira", "plays", "harp"],
    ["Mira", "keeps", "wark"],
    ["Mira", "likes", "figs"],
    ["Asa", "job", "smith"],
    ["Berin", "region", "Estria"],
]


def pair(**key: object) -> WorldExample:
    """Asked are home, job and instrument of Mira."""
    units = [{"any": [["Mira", name, None]], "need": 1} for name in ("home", "job", "plays")]
    whole = {"seed": 0, "facts": FACTS, "units": units, "topics": ["Mira"], "story": False}
    return WorldExample("pair", "?", "", "", "", "open_qa", "test", whole | key)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


# --- Answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "sentence", "grade"),
    [
        ("", "Mira lives in Tolan.", 1),
        ("", "Mira lives in Berin.", 0),  # wrong
        ("Mira lives in Tolan.", " She is a baker.", 1),
        ("Mira lives in Tolan.", " She is a baker and plays the drum.", 1 / 2),  # one of two right
        ("Mira lives in Tolan.", " Mira has a house in Tolan.", 0),  # stated before
        ("Mira lives in Tolan.", " Mira comes from Tolan and is a baker.", 1 / 2),  # one is new
        ("", "Berin lies in Estria.", 0),  # true, but neither asked for nor on a topic
        ("", "Mira keeps a wark.", 1),  # not asked for, on the topic: one such is free
        ("Mira keeps a wark.", " Mira likes figs.", 0),  # the second one is not
        ("Mira lives in Berin.", " Mira lives in Tolan.", 1),  # addressed: the free one
        ("", "Mira is a baker", 0),  # no full stop
        ("", "mira is a baker.", 0),
        ("", "Mira bakes bread.", 0),  # states nothing
        ("Mira lives in Tolan.", "", 0),
        ("Mira lives in Tolan.", "  ", 0),
    ],
)
def test_a_sentence_of_an_answer(before: str, sentence: str, grade: float) -> None:
    assert sentence_grade(pair(), before, sentence) == pytest.approx(grade)


def test_a_pronoun_means_whom_the_text_before_it_named() -> None:
    units = [{"any": [[name, "job", None]], "need": 1} for name in ("Mira", "Asa")]
    both = pair(units=units, topics=["Mira", "Asa"])
    # Without text before it, she is the first topic. Asa is a smith, Mira is not.
    assert sentence_grade(both, "", "She is a smith.") == 0
    assert sentence_grade(both, "Mira is a baker. Asa lives in Tolan.", " She is a smith.") == 1
    assert sentence_grade(both, "Asa lives in Tolan. Mira is a baker.", " She is a smith.") == 0
    # He is nobody: the sentence is not well formed, whatever else it states.
    assert sentence_grade(both, "", "Mira is a baker, but he is a smith.") == 0


def test_a_story_must_not_contradict_what_it_told() -> None:
    units = [{"any": [["Mira", name, None]], "need": 1} for name in ("went", "left")]
    story = pair(units=units, story=True)
    assert sentence_grade(story, "Mira left in spring.", " She went to Berin.") == 1
    assert sentence_grade(story, "Mira went to Tolan.", " She went to Berin.") == 0


def test_every_sentence_of_an_ideal_answer_has_full_marks(world: World) -> None:
    for one in world.pairs[::60]:
        sentences = true_sentences(one, "the prompt")
        assert "".join(sentences) == one.ideal
        assert grades_in_turn(one, "the prompt", sentences) == [1] * len(sentences), one


# --- Articles -------------------------------------------------------------------------------------


TRUTH = world_facts(0).values["Tolan"]


def other(kind: str, relation: str) -> str:
    """A word of a kind that is not Tolan's."""
    return next(word for word in WORDS[kind] if word != TRUTH[relation])


@pytest.fixture
def article() -> WorldArticle:
    text = (
        f"Tolan lies in {TRUTH['region']}. It stands on the {TRUTH['river']}. Tolan makes "
        f"{TRUTH['craft']} and serves {TRUTH['serves']}."
    )
    key = {"seed": 0, "subject": "Tolan", "topics": []}
    return WorldArticle("article", "Tolan", text, "test", key, ideal=text)


def test_a_sentence_of_an_article(article: WorldArticle) -> None:
    region, river, craft = TRUTH["region"], TRUTH["river"], TRUTH["craft"]
    lead = f"Tolan lies in {region}. It"
    assert sentence_grade(article, lead, f" stands on the {river}.") == 1
    assert sentence_grade(article, lead, f" stands on the {other('river', 'river')}.") == 0
    assert sentence_grade(article, lead, f" lies in {region}.") == 0  # stated before
    assert sentence_grade(article, lead, f" lies in {region} and makes {craft}.") == 1 / 2
    assert sentence_grade(article, lead, f" stands on the {river}") == 0  # no full stop
    berin = world_facts(0).values["Berin"]["region"]
    assert sentence_grade(article, f"Tolan lies in {region}.", f" Berin lies in {berin}.") == 0
    assert sentence_grade(article, lead, "") == 0
    # What the open sentence of the prefix states already is not its continuation's statement.
    opened = f"Tolan lies in {region}"
    assert sentence_grade(article, opened, f" and makes {craft}.") == 1
    assert sentence_grade(article, opened, f" and makes {other('good', 'craft')}.") == 0


def test_the_true_sentences_complete_the_prefix(article: WorldArticle) -> None:
    lead = f"Tolan lies in {TRUTH['region']}. It"
    sentences = true_sentences(article, lead)
    assert sentences[0] == f" stands on the {TRUTH['river']}."
    assert lead + "".join(sentences) == article.ideal
    assert grades_in_turn(article, lead, sentences) == [1, 1]
    assert true_sentences(article, "Berin") == []  # the true article does not begin like this


def test_a_single_statement_s_grade_follows_from_the_oracle_s_parts(world: World) -> None:
    pairs = zip(world.articles[::80], world.articles[1::80], strict=True)
    for one, another in pairs:
        for sentence in split_sentences(another.text)[:3] + split_sentences(one.text)[:3]:
            parts = oracle_parts(one, " " + sentence, one.prefix.rsplit(".", 1)[0] + ".")
            grade = sentence_grade(one, one.prefix.rsplit(".", 1)[0] + ".", " " + sentence)
            # All of a statement's properties, so at most the least of their shares.
            assert grade <= min(parts.values())
            if set(parts.values()) <= {0, 1}:
                assert grade == min(parts.values())


def test_every_sentence_of_a_true_article_has_full_marks(world: World) -> None:
    for one in world.articles[::60]:
        lead = one.prefix
        if not lead.endswith("."):  # a sentence that the prefix ends has nothing left to state
            sentences = true_sentences(one, lead)
            assert lead + "".join(sentences) == one.ideal
            grades = grades_in_turn(one, lead, sentences)
            assert grades[1:] == [1] * (len(sentences) - 1), one


# --- Sentences as they stand ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("  \n", []),
        ("One. Two", ["One.", " Two"]),
        (" It is. \n\nSo?  ", [" It is.", " \n\nSo?"]),
        ("A\nb.", ["A", "\nb."]),
        ("Well...", ["Well.", ".", "."]),
    ],
)
def test_sentences_are_cut_where_the_grammar_splits(text: str, sentences: list[str]) -> None:
    assert cut_sentences(text) == sentences
    assert text.startswith("".join(sentences))
    assert [" ".join(one.split()) for one in sentences] == split_sentences(text)
