"""The embedded world: its oracle grades what it should, and its corpus keeps its promises."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_suite.world import (
    WORLD_VERSION,
    World,
    WorldArticle,
    WorldExample,
    build_world,
    faults,
    oracle_parts,
    oracle_score,
)
from cpo_suite.world.corpus import FAULTY, Shelf
from cpo_suite.world.diagnostics import diagnose, markdown
from cpo_suite.world.grammar import Fact, read_sentence, split_sentences
from cpo_suite.world.oracle import world_facts
from cpo_suite.world.tables import WORDS

GOLDEN = {
    1: "8f28ec50ec576044b84bbbbd60c378f0fac8eb411ff981fcf4a303cf43e48014",
    2: "3b77509cbf7428924fff07ccf5f1d053515db8edb4c4e33595564466b8dbac27",
}
ENTITIES = {w for kind in ("person", "town", "animal", "thing") for w in WORDS[kind]}
SAMPLE = 12  # every twelfth example where a test need not see them all


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


def sampled(world: World, step: int = SAMPLE) -> list[WorldExample]:
    return list(world.pairs[::step])


# --- the corpus ----------------------------------------------------------------------------------


def test_sizes_categories_and_splits_are_dollys(world: World) -> None:
    assert Counter(p.split for p in world.pairs) == {"train": 7505, "test": 7506}
    assert Counter(p.category for p in world.pairs) == {
        "open_qa": 3742, "general_qa": 2191, "classification": 2136, "closed_qa": 1773,
        "brainstorming": 1766, "information_extraction": 1506, "summarization": 1188,
        "creative_writing": 709,
    }  # fmt: skip
    assert Counter(a.split for a in world.articles) == {"train": 3000, "test": 1000}
    for category in {p.category for p in world.pairs}:
        halves = Counter(p.split for p in world.pairs if p.category == category)
        assert abs(halves["train"] - halves["test"]) <= 1


def test_ids_and_prompts_are_unique(world: World) -> None:
    ids = [p.id for p in world.pairs] + [a.id for a in world.articles]
    assert len(set(ids)) == len(ids)
    prompts = [(p.instruction, p.context) for p in world.pairs]
    assert len(set(prompts)) == len(prompts)
    assert len({a.text for a in world.articles}) == len(world.articles)


def test_keys_are_plain_json(world: World) -> None:
    for key in [p.key for p in world.pairs] + [a.key for a in world.articles]:
        assert json.loads(json.dumps(key)) == key


def test_the_content_is_the_frozen_one(world: World) -> None:
    # A changed hash means a changed world: raise WORLD_VERSION, measure the diagnostics again.
    assert world.content_hash == GOLDEN[WORLD_VERSION]


def test_the_same_bytes_in_another_process_with_another_hash_seed(world: World) -> None:
    code = "from cpo_suite.world import build_world; print(build_world(0).content_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == world.content_hash


def test_another_seed_is_another_world_and_takes_seconds(world: World) -> None:
    start = time.process_time()
    other = build_world(1)
    assert time.process_time() - start < 20  # about 3 s; the bound is for a slow machine
    assert other.content_hash != world.content_hash
    assert all(oracle_score(p, p.ideal) == 1 for p in sampled(other, 50))


def test_no_test_prompt_or_answer_stands_in_a_training_text(world: World) -> None:
    train = [p for p in world.pairs if p.split == "train"]
    test = [p for p in world.pairs if p.split == "test"]
    texts = [text for p in train for text in (p.instruction, p.context, p.response) if text]
    texts += [a.text for a in world.articles if a.split == "train"]
    shelf = Shelf(texts)
    train_prompts = {(p.instruction, p.context) for p in train}
    for p in test:
        assert (p.instruction, p.context) not in train_prompts
        assert not p.context or p.context not in shelf
        assert p.ideal not in shelf, p
        assert p.response not in shelf, p
    # The same by brute force for a few.
    everything = "\n".join(texts)
    for p in test[::10]:
        assert p.ideal not in everything and p.response not in everything, p


def test_every_test_fact_of_the_world_is_in_three_training_texts(world: World) -> None:
    seen: Counter[Fact] = Counter()
    facts = world_facts(0)
    texts = [p.response for p in world.pairs if p.split == "train"]
    texts += [a.text for a in world.articles if a.split == "train"]

    def stated(text: str) -> set[Fact]:
        named: dict[str, str] = {}
        found = set()
        for sentence in split_sentences(text):
            for fact in read_sentence(sentence).facts:
                if fact.subject in named:
                    fact = fact._replace(subject=named[fact.subject])
                found.add(fact)
            for fact in read_sentence(sentence).facts:
                if fact.subject in facts.values:
                    named.update(dict.fromkeys(("she", "he", "it"), fact.subject))
        return found

    for text in texts:
        seen.update(stated(text))
    needed = {
        fact
        for p in world.pairs
        if p.split == "test" and not p.context
        for fact in stated(p.ideal)
        if fact.relation in facts.values.get(fact.subject, {})
    }
    # Every fact there is: 36 people and 20 towns with 6 each, 14 animals with 5, 12 things with 4.
    assert len(needed) == 36 * 6 + 20 * 6 + 14 * 5 + 12 * 4
    assert min(seen[fact] for fact in needed) >= 3


# --- the oracle on answers that are right
# ----------------------------------------------------------


def true_continuation(article: WorldArticle) -> str:
    """What follows the prefix in the faultless text."""
    return article.ideal[len(article.prefix) :]


def test_every_ideal_answer_grades_one_and_so_does_every_ideal_article(world: World) -> None:
    for p in world.pairs:
        assert oracle_score(p, p.ideal) == 1, p
    for a in world.articles:
        assert a.text == a.prefix + a.continuation
        assert a.ideal.startswith(a.prefix)
        assert oracle_score(a, true_continuation(a)) == 1, a
        assert oracle_score(a, true_continuation(a), prefix=a.prefix) == 1


def test_recorded_articles_vary_as_writers_do(world: World) -> None:
    for split in ("train", "test"):
        articles = [a for a in world.articles if a.split == split]
        grades = [oracle_score(a, a.continuation) for a in articles]
        assert 0.9 < statistics.mean(grades) < 0.96
        faultless = [a.text == a.ideal for a in articles]
        assert 0.66 < statistics.mean(faultless) < 0.74  # as `FAULTY_ARTICLES` has it
        # Running on about a neighbour is a fault that may cost nothing.
        spoilt = [grade for grade, whole in zip(grades, faultless, strict=True) if not whole]
        assert statistics.mean(grade < 1 for grade in spoilt) > 0.9


def test_whitespace_is_nothing(world: World) -> None:
    for p in sampled(world, 50):
        assert oracle_score(p, "\n  " + p.ideal.replace(". ", ".\n\n ") + " \t") == 1


def test_recorded_answers_vary_as_writers_do(world: World) -> None:
    for split in ("train", "test"):
        grades = [oracle_score(p, p.response) for p in world.pairs if p.split == split]
        assert 0.8 < statistics.mean(grades) < 0.9
        # The faultless ones, and no more than the writers' rate allows.
        assert abs(sum(g == 1 for g in grades) / len(grades) - (1 - FAULTY)) < 0.05


@pytest.mark.parametrize(
    ("category", "answer"),
    [
        ("brainstorming", "another choice of true ideas"),
        ("creative_writing", "another invention"),
    ],
)
def test_different_answers_to_one_prompt_are_right(
    world: World, category: str, answer: str
) -> None:
    different = [
        p for p in world.pairs
        if p.category == category and oracle_score(p, p.response) == 1
        and {f for s in split_sentences(p.ideal) for f in read_sentence(s).facts}
        != {f for s in split_sentences(p.response) for f in read_sentence(s).facts}
    ]  # fmt: skip
    assert len(different) > 50, answer


def handmade(units: list[dict], topics: list[str], facts: list[list[str]]) -> WorldExample:
    key = {"seed": 0, "facts": facts, "units": units, "topics": topics, "story": False}
    return WorldExample("x", "", "", "", "", "closed_qa", "test", key)


def test_the_formula_on_a_hand_made_key() -> None:
    example = handmade(
        [{"any": [["Mira", "went", None]], "need": 1}, {"any": [["Mira", "ate", None]], "need": 1}],
        ["Mira"],
        [["Mira", "went", "Tolan"], ["Mira", "ate", "figs"], ["Mira", "saw", "gorrel"]],
    )
    assert oracle_score(example, "Mira went to Tolan and ate figs.") == 1
    assert oracle_score(example, "She travelled to Tolan. She had figs for supper.") == 1
    # One of two facts wrong: right 1/2, the rest whole.
    assert oracle_score(example, "Mira went to Tolan and ate pears.") == pytest.approx(0.5)
    # One of two parts left out.
    assert oracle_score(example, "Mira went to Tolan.") == pytest.approx(0.5)
    # A true fact on the topic that nobody asked for is free, the second time it is said it is not:
    # 3 of 4.
    assert oracle_score(example, "Mira went to Tolan and ate figs. She saw a gorrel.") == 1
    twice = "Mira went to Tolan and ate figs. She saw a gorrel. She saw a gorrel."
    assert oracle_parts(example, twice)["to_the_point"] == pytest.approx(3 / 4)
    assert oracle_score(example, twice) == pytest.approx(math.sqrt(3 / 4))
    # Two sentences, the second broken off before it states anything.
    cut = "Mira went to Tolan and ate figs. She saw"
    assert oracle_score(example, cut) == pytest.approx(math.sqrt(1 / 2))
    # A man's pronoun means nobody here.
    assert oracle_parts(example, "Mira went to Tolan. He ate figs.") == {
        "right": 1, "complete": 0.5, "to_the_point": 1, "well_formed": 0.5,
    }  # fmt: skip


def test_a_name_said_twice_in_a_list_is_a_repetition() -> None:
    example = handmade(
        [{"any": [["Mira", "saw", None], ["Osk", "saw", None]], "need": 2}],
        ["Mira", "Osk"],
        [["Mira", "saw", "gorrel"], ["Osk", "saw", "gorrel"]],
    )
    assert oracle_score(example, "Mira and Osk saw a gorrel.") == 1
    # Two statements, one of them new: half complete, half to the point.
    assert oracle_score(example, "Mira and Mira saw a gorrel.") == pytest.approx(
        1 / 2 * math.sqrt(1 / 2)
    )


def test_a_broken_join_costs_form_and_keeps_the_sound_half() -> None:
    reading = read_sentence("Mira lives in Tolan and works is a baker.")
    assert reading.facts == (Fact("Mira", "home", "Tolan"),) and not reading.well_formed
    assert not read_sentence("Mira live in Tolan.").well_formed
    assert not read_sentence("mira lives in Tolan.").well_formed
    assert read_sentence("The gorrel, the pimlet and the moxen are birds.").well_formed


# --- the oracle on answers with one fault
# ------------------------------------------------------------


def answers(p: WorldExample) -> list[str]:
    return split_sentences(p.ideal)


def is_wrong_for(item: WorldExample | WorldArticle) -> Callable[[list[str]], bool]:
    return lambda sentences: oracle_parts(item, " ".join(sentences))["right"] < 1


def lower(p: WorldExample, sentences: list[str], part: str) -> None:
    text = " ".join(sentences)
    parts = oracle_parts(p, text)
    assert oracle_score(p, text) < 1, (p, text)
    assert parts[part] < 1, (p, text, parts)


def test_a_swapped_fact_is_less_right(world: World) -> None:
    rng, done = Random(1), 0
    for p in sampled(world):
        changed = faults.slip(answers(p), rng, is_wrong_for(p))
        if changed is not None:
            lower(p, changed, "right")
            done += 1
    assert done > 0.98 * len(sampled(world))


def test_every_swap_of_a_stated_value_is_seen(world: World) -> None:
    # Not only some swap: each value that the question fixes, changed to any other of its kind.
    for p in [p for p in world.pairs if p.category == "open_qa"][::40]:
        for old in [w for w in p.ideal.replace(".", "").split() if w in WORDS["river"]]:
            for new in WORDS["river"]:
                if new != old:
                    assert oracle_parts(p, p.ideal.replace(old, new))["right"] < 1


def test_a_dropped_sentence_is_less_complete(world: World) -> None:
    for p in sampled(world):
        sentences = answers(p)
        for i in range(len(sentences)):
            rest = sentences[:i] + sentences[i + 1 :]
            if rest:
                lower(p, rest, "complete")
            else:
                assert oracle_score(p, "") == 0


def test_a_repeated_sentence_is_less_to_the_point(world: World) -> None:
    for p in sampled(world):
        sentences = answers(p)
        for i, sentence in enumerate(sentences):
            lower(p, [*sentences, sentence], "to_the_point")
            lower(p, sentences[: i + 1] + sentences[i:], "to_the_point")


def test_an_answer_broken_off_is_less_well_formed(world: World) -> None:
    for p in sampled(world):
        words = p.ideal.split()
        for length in range(1, len(words)):
            if not words[length - 1].endswith("."):
                lower(p, words[:length], "well_formed")
        lower(p, [p.ideal[:-1]], "well_formed")


def entities(text: str) -> set[str]:
    return {w for w in re.findall("[A-Za-z]+", text) if w in ENTITIES}


def test_running_on_is_less_to_the_point(world: World) -> None:
    rng = Random(2)
    texts = [a.text for a in world.articles[:200]]
    for p in sampled(world):
        own = entities(p.instruction + p.context + p.ideal)
        other = next(t for t in rng.sample(texts, len(texts)) if not own & entities(t))
        # A name that fits the question would be an answer to it: "two towns that lie in Westerly".
        fits = {
            tuple(pattern[1:]) for u in p.key["units"] for pattern in u["any"] if not pattern[0]
        }
        sentence = next(
            s for s in split_sentences(other)
            if not any(fact[1:] in fits for fact in read_sentence(s).facts)
        )  # fmt: skip
        lower(p, [*answers(p), sentence], "to_the_point")


def test_the_answer_to_another_prompt_is_off_topic(world: World) -> None:
    pairs, done = sampled(world, 7), 0
    for p, other in zip(pairs, pairs[1:], strict=False):
        own = entities(p.instruction + p.context + p.ideal)
        # Where any fitting name or any list of seasons answers, another answer may by chance.
        chance = p.category == other.category == "information_extraction" or any(
            not pattern[0] for u in p.key["units"] for pattern in u["any"]
        )
        if own & entities(other.ideal) or chance:
            continue
        parts = oracle_parts(p, other.ideal)
        assert parts["to_the_point"] < 0.5 and parts["complete"] < 0.7, (p, other, parts)
        assert oracle_score(p, other.ideal) < 0.3
        done += 1
    assert done > 1000


@pytest.mark.parametrize("text", ["", " \n", ".", "...", "colourless green ideas", "### Response:",
                                  "the the the", "Mira.", "You could."])  # fmt: skip
def test_nothing_and_nonsense_grade_zero(world: World, text: str) -> None:
    for p in sampled(world, 200):
        assert set(oracle_parts(p, text).values()) == {0.0}
        assert oracle_score(p, text) == 0
    for a in world.articles[::500]:
        assert oracle_score(a, text) == 0


def test_faults_of_articles_cost_their_parts(world: World) -> None:
    rng = Random(3)
    for a in world.articles[::40]:
        # Whole sentences after the one that the prefix opens.
        sentences = split_sentences(true_continuation(a))
        near = {a.key["subject"], *a.key["topics"]}
        again = " ".join([*sentences, sentences[-1]])
        assert oracle_parts(a, again)["not_repeating"] < 1 > oracle_score(a, again)
        cut = " ".join(sentences)[:-1]
        assert oracle_parts(a, cut)["well_formed"] < 1 > oracle_score(a, cut)
        far = rng.choice([n for n in WORDS["thing"] if n not in near])
        stray = " ".join([*sentences, f"The {far} is made of {world_facts(0)[far, 'material']}."])
        assert oracle_parts(a, stray)["fitting"] < 1 > oracle_score(a, stray)
        wrong = faults.slip(sentences, rng, is_wrong_for(a))
        assert wrong is not None and oracle_score(a, " ".join(wrong)) < 1


def test_an_article_may_be_cut_anywhere(world: World) -> None:
    for a in world.articles[::200]:
        for cut in range(1, len(a.ideal) - 40, 7):
            assert oracle_score(a, a.ideal[cut:], prefix=a.ideal[:cut]) == 1


FUNCTION_WORDS = "the a and , . : but while is in lives of them You could eat She It Two In ; ? !"
WORLDLY = st.lists(
    st.sampled_from([w for words in WORDS.values() for w in words[:3]] + FUNCTION_WORDS.split()),
    max_size=30,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=200), WORLDLY), index=st.integers(0, 10_000))
def test_the_oracle_is_total_and_bounded(text: str, index: int) -> None:
    world = build_world(0)
    items: tuple[WorldExample | WorldArticle, ...] = (
        world.pairs[index], world.articles[index % len(world.articles)],
    )  # fmt: skip
    for item in items:
        assert all(0 <= part <= 1 for part in oracle_parts(item, text).values())
        assert 0 <= oracle_score(item, text) <= 1
        assert 0 <= oracle_score(item, text, prefix=text) <= 1


def test_the_oracle_is_fast(world: World) -> None:
    pairs = sampled(world, 2)
    read_sentence.cache_clear()
    start = time.process_time()
    for p in pairs:
        oracle_score(p, p.response)
    assert len(pairs) / (time.process_time() - start) > 2000


# --- small things --------------------------------------------------------------------------------


LETTERS = st.sampled_from(["a", "b", "c", "d."])


@given(
    st.lists(st.lists(LETTERS, max_size=8).map(" ".join), max_size=4),
    st.lists(LETTERS, min_size=1, max_size=6).map(" ".join),
)
def test_the_shelf_finds_what_stands_in_its_texts(texts: list[str], needle: str) -> None:
    assert (needle in Shelf(texts)) == any(needle in text for text in texts)


def test_diagnose_groups_and_refuses(world: World) -> None:
    pairs = sampled(world, 100)
    rows = {row.group: row for row in diagnose(pairs, [p.ideal for p in pairs])}
    assert rows["all"].n == len(pairs) == rows["no fault"].n and rows["all"].grade == 1
    assert sum(rows[c].n for c in {p.category for p in pairs}) == len(pairs)
    empty = {row.group: row for row in diagnose(pairs, [""] * len(pairs))}
    assert empty["all"].grade == 0 and "no fault" not in empty
    assert "| all |" in markdown(list(rows.values()))
    with pytest.raises(ValueError, match="one text per example"):
        diagnose(pairs, [])


def test_a_saved_world_is_the_same_world(world: World, tmp_path: Path) -> None:
    world.save(tmp_path / "world.json")
    assert World.load(tmp_path / "world.json") == world
