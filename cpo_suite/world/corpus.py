"""The corpus: about 15,000 pairs and 4,000 articles, split in training and test, made from a seed.

Held-out prompts are new questions, not new wordings: prompts are split by what they ask, and a test
answer whose wording happens to stand in a training text is worded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from . import faults
from .facts import Facts
from .grammar import ATTRIBUTES, Sentence, capital, name_of, realise, split_sentences
from .oracle import WorldArticle, WorldExample, oracle_parts, world_facts
from .prompts import CATEGORIES, Draft, clauses
from .tables import WORDS

#: Raised whenever any text, key or grade of the world changes.
WORLD_VERSION = 2
ARTICLES = 4000
TEST_ARTICLES = 1000
#: Share of recorded answers with a fault, and of those the share with a second one.
FAULTY, TWICE = 0.45, 0.25
_FAULT_WEIGHTS = {"omit": 3, "stop_early": 2, "slip": 3, "ramble": 3, "repeat": 2, "cut": 1}
#: Share of recorded articles with faults, the most faults in one, and their kinds. The first
#: `ARTICLE_OPENING` of the words have none: they hold the prefix.
FAULTY_ARTICLES, ARTICLE_FAULTS, ARTICLE_OPENING = 0.3, 2, 0.25
_ARTICLE_FAULT_WEIGHTS = {"slip": 4, "repeat": 1, "ramble": 1}


@dataclass(frozen=True)
class World:
    """All pairs and articles of one seed."""

    seed: int
    pairs: tuple[WorldExample, ...]
    articles: tuple[WorldArticle, ...]

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything in it, in order."""
        content = [WORLD_VERSION, *map(vars, self.pairs), *map(vars, self.articles)]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the world as JSON: reading it is several times faster than building it."""
        content = {
            "seed": self.seed,
            "pairs": [vars(one) for one in self.pairs],
            "articles": [vars(one) for one in self.articles],
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> World:
        """The world that `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            content["seed"],
            tuple(WorldExample(**one) for one in content["pairs"]),
            tuple(WorldArticle(**one) for one in content["articles"]),
        )


class Shelf:
    """Texts among which another can be looked up: does it stand anywhere inside one of them?"""

    _KEY = 3  # a text longer than this many words is looked up by its first ones

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: list[str] = []
        self._by_start: dict[tuple[str, ...], list[int]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Puts one more text on the shelf."""
        words = text.split()
        for start in dict.fromkeys(zip(*(words[i:] for i in range(self._KEY)), strict=False)):
            self._by_start.setdefault(start, []).append(len(self._texts))
        self._texts.append(text)

    def __contains__(self, needle: str) -> bool:
        words = needle.split()
        if len(words) <= self._KEY:
            return any(needle in text for text in self._texts)
        places = self._by_start.get(tuple(words[: self._KEY]), ())
        return any(needle in self._texts[i] for i in places)


# --- articles ------------------------------------------------------------------------------------


def _article_plan(subject: str, facts: Facts, rng: Random) -> list[Sentence]:
    """All about the subject, then something about its neighbours."""

    def about(name: str, least: int) -> list[Sentence]:
        values = list(facts.values[name].items())
        rng.shuffle(values)
        return clauses(name, values[: max(least, 0) or None], rng)

    plan = about(subject, 0)
    others = list(facts.neighbours[subject])
    rng.shuffle(others)
    stated = len(facts.values[subject])
    target = rng.randint(9, 15)
    for other in others:
        if stated >= target:
            break
        share = min(rng.randint(2, 3), target - stated)
        plan += about(other, share)
        stated += share
    return plan


def _spoil_article(
    key: Mapping[str, Any], sentences: list[str], others: Sequence[str], rng: Random
) -> list[str]:
    """The article as a writer with a few faults left it; its opening is without fault."""
    ends = list(accumulate(len(sentence.split()) for sentence in sentences))
    opening = 1 + sum(end < ARTICLE_OPENING * ends[-1] for end in ends)
    lead, rest = sentences[:opening], sentences[opening:]
    article = WorldArticle("", "", " ".join(lead), "", dict(key))

    def less_right(before: list[str]) -> Callable[[list[str]], bool]:
        return lambda changed: right(changed) < right(before)

    def right(changed: list[str]) -> float:
        return oracle_parts(article, " ".join(["", *changed]), " ".join(lead))["right"]

    for _ in range(rng.randint(1, ARTICLE_FAULTS) if rest else 0):
        kind = rng.choices(list(_ARTICLE_FAULT_WEIGHTS), list(_ARTICLE_FAULT_WEIGHTS.values()))[0]
        changed: list[str] | None
        if kind == "slip":
            changed = faults.slip(rest, rng, less_right(rest))
        elif kind == "ramble":
            changed = faults.ramble(rest, rng, split_sentences(rng.choice(others)))
        else:
            changed = faults.repeat(rest, rng)
        rest = changed or rest
    return lead + rest


def _articles(seed: int, facts: Facts) -> list[WorldArticle]:
    """Every article twice: as it should be, and as its writer recorded it."""
    rng, writers = Random(f"articles {seed}"), Random(f"article writers {seed}")
    entities = [name for kind in ATTRIBUTES for name in WORDS[kind]]
    articles: list[WorldArticle] = []
    seen: set[str] = set()
    while len(articles) < ARTICLES:
        i = len(articles)
        if i % len(entities) == 0:
            rng.shuffle(entities)
        subject = entities[i % len(entities)]
        sentences = realise(_article_plan(subject, facts, rng), rng)
        ideal = text = " ".join(sentences)
        if ideal in seen:
            continue
        seen.add(ideal)
        key = {"seed": seed, "subject": subject, "topics": list(facts.neighbours[subject])}
        if articles and writers.random() < FAULTY_ARTICLES:
            others = [article.ideal for article in articles[-100:]]
            text = " ".join(_spoil_article(key, sentences, others, writers))
        split = "test" if i >= ARTICLES - TEST_ARTICLES else "train"
        title = capital(name_of(subject))
        articles.append(WorldArticle(f"article-{i:05d}", title, text, split, key, ideal))
    return articles


# --- pairs ---------------------------------------------------------------------------------------


def _drafts(category: str, count: int, seed: int, facts: Facts) -> list[Draft]:
    """`count` drafts that all ask something different."""
    draw = CATEGORIES[category][0]
    rng = Random(f"{category} {seed}")
    drafts: dict[tuple[Any, ...], Draft] = {}
    for _ in range(200 * count):
        draft = draw(rng, facts)
        if draft is not None:
            drafts.setdefault(draft.signature, draft)
        if len(drafts) == count:
            return list(drafts.values())
    raise RuntimeError(f"the world has fewer than {count} different prompts for {category}")


def _example(draft: Draft, id: str, category: str, split: str, seed: int) -> WorldExample:
    key = {
        "seed": seed,
        "facts": [list(fact) for fact in draft.facts],
        "units": draft.units,
        "topics": list(draft.topics),
        "story": draft.story,
    }
    return WorldExample(id, draft.instruction, draft.context, "", "", category, split, key)


def _less_right(example: WorldExample, sentences: list[str]) -> Callable[[list[str]], bool]:
    before = oracle_parts(example, " ".join(sentences))["right"]
    return lambda changed: oracle_parts(example, " ".join(changed))["right"] < before


def spoil(example: WorldExample, sentences: list[str], asides: list[str], rng: Random) -> list[str]:
    """The answer as a writer with one fault or two left it."""
    for _ in range(2 if rng.random() < TWICE else 1):
        kind = rng.choices(list(_FAULT_WEIGHTS), list(_FAULT_WEIGHTS.values()))[0]
        changed: list[str] | None
        if kind == "slip":
            changed = faults.slip(sentences, rng, _less_right(example, sentences))
        elif kind == "ramble":
            changed = faults.ramble(sentences, rng, split_sentences(rng.choice(asides)))
        else:
            changed = getattr(faults, kind)(sentences, rng)
        sentences = changed or sentences
    return sentences


def _pairs(seed: int, facts: Facts, articles: list[WorldArticle]) -> list[WorldExample]:
    rng = Random(f"pairs {seed}")
    # A few drafts to spare per category: those whose answers cannot be worded apart from training
    # texts.
    pool = [
        (category, draft)
        for category, (_, count) in CATEGORIES.items()
        for draft in _drafts(category, count + count // 50, seed, facts)
    ]
    rng.shuffle(pool)
    wanted = {category: count for category, (_, count) in CATEGORIES.items()}
    # Halves per category; where a count is odd, training and test take the odd one in turn.
    half: dict[str, int] = {}
    odd = 0
    for category, count in wanted.items():
        half[category] = count // 2 + (count % 2 and odd % 2)
        odd += count % 2
    train_asides = [a.ideal for a in articles if a.split == "train"]
    told = Shelf(a.text for a in articles if a.split == "train")
    prompts: set[tuple[str, str]] = set()
    made: dict[str, int] = dict.fromkeys(wanted, 0)
    examples: list[WorldExample] = []

    def worded(category: str, draft: Draft, split: str) -> WorldExample | None:
        example = _example(draft, f"pair-{len(examples):05d}", category, split, seed)
        if (example.instruction, example.context) in prompts:
            return None
        faulty: bool | None = None
        for _ in range(20):
            ideal = " ".join(realise(draft.plan(rng), rng))
            written = realise(draft.plan(rng), rng)
            if faulty is None:
                # Drawn once: an answer worded again is by the same writer, so that training and
                # test answers have faults equally often.
                faulty = rng.random() < FAULTY
            if faulty:
                written = spoil(example, written, train_asides, rng)
            response = " ".join(written)
            if split == "train" or not (ideal in told or response in told):
                return WorldExample(**{**vars(example), "ideal": ideal, "response": response})
        return None

    for split, limit in (("train", half), ("test", wanted)):
        left: list[tuple[str, Draft]] = []
        for category, draft in pool:
            if made[category] == limit[category]:
                left.append((category, draft))
                continue
            example = worded(category, draft, split)
            if example is None:
                continue
            examples.append(example)
            made[category] += 1
            prompts.add((example.instruction, example.context))
            if split == "train":
                for text in (example.instruction, example.context, example.response):
                    told.add(text)
        pool = left
    if made != wanted:
        raise RuntimeError(f"too few held-out prompts: {made} of {wanted}")
    return examples


@lru_cache(maxsize=2)
def build_world(seed: int = 0) -> World:
    """The world of this seed: the same pairs and articles, byte for byte, on every machine."""
    facts = world_facts(seed)
    articles = _articles(seed, facts)
    return World(seed, tuple(_pairs(seed, facts, articles)), tuple(articles))
