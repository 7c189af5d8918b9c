"""The oracle: reads a text with the grammar, compares what it states with the key, and grades it.

A pair's key (plain JSON) holds

* `facts`: `[subject, relation, value]` triples that hold in the prompt's context, over and above
  the world;
* `units`: what was asked for, each `{"any": [[subject|null, relation, value|null], ...], "need":
  n}`: n different facts that match one of the patterns (null matches everything);
* `topics`: the subjects that the prompt is about, the first being whom a pronoun means at the
  start;
* `seed`: which world's facts hold where the context says nothing;
* `story`: true where facts may be made up (creative writing), as long as they contradict nothing.

The four parts, each in [0, 1]:

* right: the share of different statements that are true;
* complete: the share of what was asked for that is addressed (a wrong value is addressed: it costs
  `right`);
* to_the_point: the share of all statements, repetitions included, that were asked for; one further
  true statement that fits the question or is about a topic is free;
* well_formed: the share of sentences that are wholly in the grammar and end in a full stop.

Score = right x complete x sqrt(to_the_point x well_formed). A text that states nothing scores 0 in
every part. For articles the parts are right, fitting, not_repeating and well_formed, and the score
is right x fitting x sqrt(not_repeating x well_formed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from random import Random
from typing import Any, NamedTuple

from .facts import Facts
from .grammar import EVENTS, Fact, read_sentence, split_sentences
from .tables import GENDER, KIND

PAIR_PARTS = ("right", "complete", "to_the_point", "well_formed")
ARTICLE_PARTS = ("right", "fitting", "not_repeating", "well_formed")
#: True statements on the topic that nobody asked for and that cost nothing.
SPARE = 1


@dataclass(frozen=True)
class WorldExample:
    """One instruction/response pair in Dolly's schema, with its ideal answer and its key."""

    id: str
    instruction: str
    context: str
    response: str
    ideal: str
    category: str
    split: str
    key: dict[str, Any]


@dataclass(frozen=True)
class WorldArticle:
    """One article, as recorded and as it should be: `ideal` opens with the same words.

    Its prefix is the first 15 % of its words, its continuation the rest.
    """

    id: str
    title: str
    text: str
    split: str
    key: dict[str, Any]
    ideal: str = ""

    @property
    def prefix(self) -> str:
        """The first 15 % of the words (rounded, at least two), without a space at the end."""
        words = self.text.split()
        return " ".join(words[: max(2, round(0.15 * len(words)))])

    @property
    def continuation(self) -> str:
        """What follows the prefix, from its space on: prefix + continuation is the text."""
        return self.text[len(self.prefix) :]


@lru_cache(maxsize=8)
def world_facts(seed: int) -> Facts:
    """The truth of the world with this seed."""
    return Facts.draw(Random(f"facts {seed}"))


def _resolve(facts: tuple[Fact, ...], named: dict[str, str]) -> list[Fact | None]:
    """Facts with pronouns replaced by whom they mean; None where they mean nobody."""
    resolved: list[Fact | None] = []
    for fact in facts:
        if fact.subject in ("she", "he", "it"):
            subject = named.get(fact.subject)
            resolved.append(fact._replace(subject=subject) if subject else None)
        else:
            resolved.append(fact)
    for subject in [f.subject for f in resolved if f is not None]:
        _remember(subject, named)
    return resolved


def _remember(subject: str, named: dict[str, str]) -> None:
    kind = KIND.get(subject)
    if kind == "person":
        named[GENDER[subject]] = subject
    elif kind in ("town", "animal", "thing"):
        named["it"] = subject


def _matches(fact: Fact, pattern: list[str | None]) -> bool:
    return all(want is None or want == have for want, have in zip(pattern, fact, strict=True))


def _true(fact: Fact, key: Mapping[str, Any], local: dict[tuple[str, str], set[str]],
          told: dict[tuple[str, str], str]) -> bool:  # fmt: skip
    """The context decides what it speaks of; then, in stories, consistency; then the world."""
    given = local.get((fact.subject, fact.relation))
    if given is not None:
        return fact.value in given
    if fact.relation in EVENTS:
        if not key.get("story") or fact.subject not in key["topics"]:
            return False
        return told.setdefault((fact.subject, fact.relation), fact.value) == fact.value
    return world_facts(key["seed"]).holds(fact)


def oracle_parts(
    example: WorldExample | WorldArticle, text: str, prefix: str | None = None
) -> dict[str, float]:
    """The grade's parts, by name, each in [0, 1]; never raises on any string.

    For an article `text` is a continuation of `prefix`, joined to it as it is; without `prefix` it
    continues `example.prefix`, after a space. For a pair `prefix` has no meaning.
    """
    if isinstance(example, WorldArticle):
        return _article_parts(example, text, prefix)
    key = example.key
    sentences = split_sentences(text)
    named = _named(key["topics"])
    stated: list[Fact] = []
    good_sentences = 0
    for sentence in sentences:
        found, good = _stated(sentence, named)
        stated += found
        good_sentences += good
    if not stated:
        return dict.fromkeys(PAIR_PARTS, 0.0)
    distinct = list(dict.fromkeys(stated))
    truth = _truth(distinct, key)
    done, relevant = _relevant(distinct, truth, key)
    return {
        "right": sum(truth.values()) / len(distinct),
        "complete": done / sum(unit["need"] for unit in key["units"]),
        "to_the_point": len(relevant) / len(stated),
        "well_formed": good_sentences / len(sentences),
    }


def _named(topics: Sequence[str]) -> dict[str, str]:
    """Whom each pronoun means at the start: of the topics it fits, the first."""
    named: dict[str, str] = {}
    for topic in reversed(topics):
        _remember(topic, named)
    return named


def _stated(sentence: str, named: dict[str, str]) -> tuple[list[Fact], bool]:
    """What a sentence states, pronouns resolved, and whether it is well formed; names whom it
    mentions."""
    reading = read_sentence(sentence)
    resolved = _resolve(reading.facts, named)
    found = [fact for fact in resolved if fact is not None]
    return found, reading.well_formed and None not in resolved


def _truth(distinct: Sequence[Fact], key: Mapping[str, Any]) -> dict[Fact, bool]:
    """Which statements are true, read in this order."""
    local: dict[tuple[str, str], set[str]] = {}
    for subject, relation, value in key["facts"]:
        local.setdefault((subject, relation), set()).add(value)
    told: dict[tuple[str, str], str] = {}
    return {fact: _true(fact, key, local, told) for fact in distinct}


def _relevant(
    distinct: Sequence[Fact], truth: Mapping[Fact, bool], key: Mapping[str, Any]
) -> tuple[int, set[Fact]]:
    """How much of what was asked for is addressed, and the statements that count as asked for."""
    relevant: set[Fact] = set()
    fits: set[Fact] = set()
    done = 0
    for unit in key["units"]:
        matching = [f for f in distinct if any(_matches(f, pattern) for pattern in unit["any"])]
        taken = matching[: unit["need"]]
        relevant.update(taken)
        fits.update(matching)
        done += len(taken)
    further = [
        fact
        for fact in distinct
        if fact not in relevant and truth[fact] and (fact in fits or fact.subject in key["topics"])
    ]
    relevant.update(further[:SPARE])
    return done, relevant


class _Statement(NamedTuple):
    """What is to be said of one statement of an article."""

    true: bool
    fitting: bool
    fresh: bool


def _article_parts(article: WorldArticle, text: str, prefix: str | None) -> dict[str, float]:
    lead = article.prefix + " " if prefix is None else prefix
    statements, well_formed = _article_statements(article, text, lead)
    if not statements:
        return dict.fromkeys(ARTICLE_PARTS, 0.0)
    shares = [sum(column) / len(statements) for column in zip(*statements, strict=True)]
    return dict(zip(ARTICLE_PARTS, (*shares, well_formed), strict=True))


def _article_statements(
    article: WorldArticle, text: str, lead: str
) -> tuple[list[_Statement], float]:
    """The statements of `text`, which continues `lead`, and the share of its sentences that are
    well formed."""
    # Sentences that end within the prefix are given: they count as said, not as the text's own.
    opening = split_sentences(lead)
    given = len([s for s in opening if s.endswith((".", "!", "?"))])
    # So do the facts already stated by the sentence that the prefix leaves open.
    opened = read_sentence(opening[-1]).facts if len(opening) > given else ()
    sentences = split_sentences(lead + text) if text.strip() else []
    facts = world_facts(article.key["seed"])
    near = {article.key["subject"], *article.key["topics"]}
    named: dict[str, str] = {}
    _remember(article.key["subject"], named)
    said: set[Fact] = set()
    statements: list[_Statement] = []
    good = 0
    for i, sentence in enumerate(sentences):
        reading = read_sentence(sentence)
        resolved = _resolve(reading.facts, named)
        found = [fact for fact in resolved if fact is not None]
        if i == given and opened:
            said.update(f for f, r in zip(found, reading.facts, strict=False) if r in opened)
            found = [f for f, r in zip(found, reading.facts, strict=False) if r not in opened]
        if i >= given:
            good += reading.well_formed and None not in resolved
            statements += [
                _Statement(facts.holds(fact), fact.subject in near, fact not in said)
                for fact in found
            ]
        said.update(found)
    return statements, good / max(1, len(sentences) - given)


def score_of(parts: Mapping[str, float]) -> float:
    """The score that the parts make, in [0, 1]: the first two in full, the last two under a
    root."""
    first, second, third, fourth = parts.values()
    return first * second * sqrt(third * fourth)


def oracle_score(
    example: WorldExample | WorldArticle, text: str, prefix: str | None = None
) -> float:
    """The grade of `text` as the answer to `example` (or as the continuation of an article), in [0,
    1]."""
    return score_of(oracle_parts(example, text, prefix))


def sentence_grade(example: WorldExample | WorldArticle, before: str, sentence: str) -> float:
    """The grade of one sentence after the text `before`, in [0, 1]; never raises on any string.

    It is the share of the sentence's statements that are true, asked for (for an article: fitting)
    and not stated before, and 0 where the sentence is not well formed or states nothing. The rules
    are those of `oracle_parts`, applied to the whole text up to this sentence.

    Args:
        before: the answer's sentences so far; for an article its prefix as well.
        sentence: joined to `before` as it is.
    """
    if isinstance(example, WorldArticle):
        statements, well_formed = _article_statements(example, sentence, before)
        return well_formed * sum(map(all, statements)) / max(1, len(statements))
    named = _named(example.key["topics"])
    earlier = [fact for one in split_sentences(before) for fact in _stated(one, named)[0]]
    own = [_stated(one, named) for one in split_sentences(sentence)]
    found = [fact for facts, _ in own for fact in facts]
    if not found:
        return 0.0
    distinct = list(dict.fromkeys(earlier + found))
    truth = _truth(distinct, example.key)
    _, relevant = _relevant(distinct, truth, example.key)
    new = {fact for fact in found if truth[fact]} & relevant - set(earlier)
    return sum(good for _, good in own) / len(own) * len(new) / len(found)


def true_text(example: WorldExample | WorldArticle) -> str:
    """The text without a writer's faults: a pair's ideal answer, or a whole article with its
    prefix."""
    return example.ideal
