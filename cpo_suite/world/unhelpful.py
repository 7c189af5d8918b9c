"""Answers that are fluent and true and of no help: the rejected responses of DPO (section 4, A.4).

Like the paper's "Virgin Australia definitely exists and has airplanes that fly to different
places", they speak of whom the prompt names and leave out everything that it asks for. The writer
reads the prompt, and of the recorded response its length alone; it knows the facts of the world,
but neither what the oracle looks for nor its grades.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from itertools import chain, count
from random import Random

from .grammar import (
    ATTRIBUTES,
    EVENTS,
    EXTRACTED,
    RELATIONS,
    SUGGESTIONS,
    Clause,
    Fact,
    Labelled,
    Relation,
    Sentence,
    read_sentence,
    realise,
    split_sentences,
)
from .oracle import WorldExample, world_facts
from .tables import KIND, SINGULAR, WORDS

LONGEST = 3  # sentences
#: Of one statement; a recorded response of so many words is matched by so many statements.
WORDS_PER_STATEMENT = 4.5
STATEMENTS_PER_SENTENCE = 3


def _wordings(relation: Relation) -> re.Pattern[str]:
    """Every way in which a prompt can ask for the relation outright."""
    spoken = [relation.noun, relation.question, *relation.singular, *relation.plural]
    patterns = [re.sub(r"\{\w\}", r"(?:the )?\\w+", words) for words in spoken if words]
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


_WORDINGS = {name: _wordings(relation) for name, relation in RELATIONS.items()}
#: What a comparison is worked out from.
_COMPARED = {"founded": r"\b(?:older|newer)\b", "price": r"\bcosts (?:more|less)\b"}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _asked(example: WorldExample) -> set[str]:
    """The relations that a prompt asks for, and those that would answer it in part."""
    text = example.instruction
    asked = {name for name, wordings in _WORDINGS.items() if wordings.search(text)}
    asked |= {name for name, words in _COMPARED.items() if re.search(words, text)}
    # "Group them under birds and moths" names the values alone.
    values = {KIND.get(SINGULAR.get(word, word)) for word in _words(text)} - set(ATTRIBUTES)
    if example.category == "information_extraction":
        values |= {EXTRACTED.get(word) for word in _words(text)}
    asked |= {relation.name for relation in RELATIONS.values() if relation.value in values}
    if example.category == "brainstorming" and re.search(r"\bidea", text):
        asked |= {relation for _, relation in SUGGESTIONS}
    if example.category in ("summarization", "creative_writing"):
        asked |= set(EVENTS)
    return asked


def _told(context: str) -> list[Fact]:
    """What a context tells of its travellers, pronouns resolved: they mean the last one named."""
    facts: list[Fact] = []
    for sentence in split_sentences(context):
        for fact in read_sentence(sentence).facts:
            if fact.subject in ("she", "he"):
                fact = fact._replace(subject=facts[-1].subject)
            facts.append(fact)
    return facts


def _lists(example: WorldExample, rng: Random) -> list[Sentence]:
    """Lists of what a text names, of the kinds that the prompt does not ask for."""
    if example.category != "information_extraction":
        return []
    found = dict.fromkeys(_words(example.context))
    lists: list[Sentence] = []
    for label, kind in EXTRACTED.items():
        members = tuple(word for word in found if KIND.get(word) == kind)
        if members and label not in _words(example.instruction):
            lists.append(Labelled(label, members))
    return rng.sample(lists, rng.randint(0, min(len(lists), LONGEST)))


def _plan(example: WorldExample, rng: Random) -> list[Sentence]:
    """Up to three sentences: each topic in turn, then their neighbours, then anybody."""
    facts = world_facts(example.key["seed"])
    told = _told(example.context) if example.context else []
    asked = _asked(example)

    def unasked(subject: str) -> list[tuple[str, tuple[str, ...]]]:
        known = [(f.relation, f.value) for f in told if f.subject == subject]
        known += facts.values[subject].items()
        rng.shuffle(known)
        return [(relation, (value,)) for relation, value in known if relation not in asked]

    def shuffled(names: list[str]) -> Iterator[str]:
        return iter(rng.sample(names, len(names)))

    named = [word for word in _words(example.instruction) if word in facts.values]
    topics = list(dict.fromkeys(named or (fact.subject for fact in told)))
    near = [name for topic in topics for name in facts.neighbours[topic]]
    if not topics:  # "Name two towns that ...": other towns
        kinds = [EXTRACTED.get(word, "") for word in _words(example.instruction)]
        near = [name for kind in kinds if kind in ATTRIBUTES for name in WORDS[kind]]
    everybody = [name for kind in ATTRIBUTES for name in WORDS[kind]]
    others = chain(shuffled(list(dict.fromkeys(near))), shuffled(everybody))

    length = min(LONGEST, len(split_sentences(example.response)) or 1)
    statements = round(len(example.response.split()) / WORDS_PER_STATEMENT)
    plan = _lists(example, rng)[:length]
    turns = deque((topic, unasked(topic)) for topic in topics)
    while len(plan) < length:
        if not turns:
            subject = next(others)
            turns.append((subject, unasked(subject)))
        subject, left = turns.popleft()
        if not left:
            continue
        size = max(1, min(STATEMENTS_PER_SENTENCE, round(statements / (length - len(plan)))))
        plan.append(Clause((subject,), tuple(left[:size])))
        statements -= len(left[:size])
        turns.append((subject, left[size:]))
    return plan


def unhelpful_answer(example: WorldExample, seed: int = 0) -> str:
    """A fluent answer that does not give what the prompt asks for; the same for an id and a seed.

    One to three sentences of the world's grammar, about as long as the recorded response: true
    statements about the prompt's topics that were not asked for, and where there are none, about
    what is near them. Never the recorded answer or the ideal one. The source of DPO's rejected
    responses in the world (section 4 and A.4 of the paper, which has a chat model write them).
    """
    draws = (Random(f"unhelpful {seed} {example.id} {attempt}") for attempt in count())
    texts = (" ".join(realise(_plan(example, rng), rng)) for rng in draws)
    return next(text for text in texts if text not in (example.response, example.ideal))
