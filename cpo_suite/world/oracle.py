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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from random import Random
from typing import Any

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
    named: dict[str, str] = {}
    for topic in reversed(key["topics"]):
        _remember(topic, named)
    stated: list[Fact] = []
    good_sentences = 0
    for sentence in sentences:
        reading = read_sentence(sentence)
        resolved = _resolve(reading.facts, named)
        stated += [fact for fact in resolved if fact is not None]
        good_sentences += reading.well_formed and None not in resolved
    if not stated:
        return dict.fromkeys(PAIR_PARTS, 0.0)
    distinct = list(dict.fromkeys(stated))

    local: dict[tuple[str, str], set[str]] = {}
    for subject, relation, value in key["facts"]:
        local.setdefault((subject, relation), set()).add(value)
    told: dict[tuple[str, str], str] = {}
    truth = {fact: _true(fact, key, local, told) for fact in distinct}

    asked: set[Fact] = set()
    fits: set[Fact] = set()
    done = needed = 0
    for unit in key["units"]:
        matching = [f for f in distinct if any(_matches(f, pattern) for pattern in unit["any"])]
        taken = matching[: unit["need"]]
        asked.update(taken)
        fits.update(matching)
        done += len(taken)
        needed += unit["need"]
    spare = SPARE
    relevant = 0
    for fact in distinct:
        if fact in asked:
            relevant += 1
        elif spare and truth[fact] and (fact in fits or fact.subject in key["topics"]):
            spare -= 1
            relevant += 1
    return {
        "right": sum(truth.values()) / len(distinct),
        "complete": done / needed,
        "to_the_point": relevant / len(stated),
        "well_formed": good_sentences / len(sentences),
    }


def _article_parts(article: WorldArticle, text: str, prefix: str | None) -> dict[str, float]:
    lead = article.prefix + " " if prefix is None else prefix
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
    stated = true = fitting = fresh = good = 0
    for i, sentence in enumerate(sentences):
        reading = read_sentence(sentence)
        resolved = _resolve(reading.facts, named)
        found = [fact for fact in resolved if fact is not None]
        if i == given and opened:
            said.update(f for f, r in zip(found, reading.facts, strict=False) if r in opened)
            found = [f for f, r in zip(found, reading.facts, strict=False) if r not in opened]
        if i >= given:
            good += reading.well_formed and None not in resolved
            for fact in found:
                stated += 1
                true += facts.holds(fact)
                fitting += fact.subject in near
                fresh += fact not in said
        said.update(found)
    if not stated:
        return dict.fromkeys(ARTICLE_PARTS, 0.0)
    return {
        "right": true / stated,
        "fitting": fitting / stated,
        "not_repeating": fresh / stated,
        "well_formed": good / (len(sentences) - given),
    }


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
