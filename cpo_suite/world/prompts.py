"""The eight categories: for each, a draw of one prompt with its answer plan and its key.

A `Draft` knows what must be said, not how: its `plan` gives the answer's sentences in one of
several arrangements, and the grammar words them. `signature` names what the prompt asks, whatever
its wording; splitting by signature is what keeps every held-out prompt out of the training texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from .facts import Facts
from .grammar import (
    ATTRIBUTES,
    COMPARISONS,
    EVENTS,
    EXTRACTED,
    LABELLED,
    RELATIONS,
    TEXT,
    THEM,
    Clause,
    Contrast,
    Count,
    Fact,
    Labelled,
    Sentence,
    Suggestion,
    capital,
    join,
    name_of,
    realise,
    verb_phrase,
)
from .tables import KIND, PLURAL, WORDS, pronoun

Pattern = tuple[str | None, str, str | None]


@dataclass(frozen=True)
class Draft:
    """A prompt before its answer is worded."""

    signature: tuple[Any, ...]
    instruction: str
    plan: Callable[[Random], list[Sentence]]
    units: list[dict[str, Any]]
    topics: tuple[str, ...]
    context: str = ""
    facts: list[Fact] = field(default_factory=list)
    story: bool = False


def unit(patterns: Sequence[Pattern], need: int = 1) -> dict[str, Any]:
    """`need` different facts that match one of the patterns."""
    return {"any": [list(pattern) for pattern in patterns], "need": need}


def clauses(subject: str, facts: Sequence[tuple[str, str]], rng: Random) -> list[Sentence]:
    """The facts of one subject, one or two to a sentence."""
    result: list[Sentence] = []
    i = 0
    while i < len(facts):
        size = min(rng.choice((1, 1, 2)), len(facts) - i)
        result.append(Clause((subject,), tuple((r, (v,)) for r, v in facts[i : i + size])))
        i += size
    return result


def _attributes(facts: Facts, subject: str, names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, facts[subject, name]) for name in names]


def _subset(rng: Random, names: Sequence[str], low: int, high: int) -> tuple[str, ...]:
    """Between low and high of the names, in their own order."""
    chosen = set(rng.sample(list(names), min(len(names), rng.randint(low, high))))
    return tuple(name for name in names if name in chosen)


def _ask(rng: Random, subject: str, names: Sequence[str]) -> str:
    """A question for several relations of one subject."""
    spoken = name_of(subject)
    nouns = join(RELATIONS[name].noun for name in names)
    style = rng.randrange(5)
    if style < 2:
        questions = [RELATIONS[names[0]].question.format(s=spoken)]
        questions += [RELATIONS[n].question.format(s=pronoun(subject)) for n in names[1:]]
        return capital(join(questions)) + "?"
    return (
        f"Give the {nouns} of {spoken}.",
        f"Tell me about {spoken}: {nouns}.",
        f"What is known of the {nouns} of {spoken}?",
    )[style - 2]


# --- open questions ------------------------------------------------------------------------------


def _open_attributes(rng: Random, facts: Facts) -> Draft:
    kind = rng.choices(("person", "town", "animal", "thing"), (40, 32, 20, 8))[0]
    subject = rng.choice(WORDS[kind])
    names = _subset(rng, ATTRIBUTES[kind], 2, 5)
    return Draft(
        ("attributes", subject, names),
        _ask(rng, subject, names),
        lambda r: clauses(subject, _attributes(facts, subject, names), r),
        [unit([(subject, name, None)]) for name in names],
        (subject,),
    )


def _open_two_steps(rng: Random, facts: Facts) -> Draft:
    link, word = rng.choice(
        (("home", "town"), ("keeps", "animal"), ("teacher", "person"), ("maker", "town"))
    )
    subject = rng.choice(WORDS[RELATIONS[link].subject])
    other = facts[subject, link]
    names = _subset(rng, ATTRIBUTES[word], 2, 4)
    nouns = join(RELATIONS[name].noun for name in names)
    question = capital(RELATIONS[link].question.format(s=name_of(subject)))
    instruction = rng.choice((
        f"{question}? Give the {nouns} of that {word}.",
        f"{question}, and what are the {nouns} of that {word}?",
        f"Find the {RELATIONS[link].noun} of {name_of(subject)} and tell me its {nouns}.",
    ))  # fmt: skip
    return Draft(
        ("two steps", subject, link, names),
        instruction,
        lambda r: [
            Clause((subject,), ((link, (other,)),)),
            *clauses(other, _attributes(facts, other, names), r),
        ],
        [unit([(subject, link, None)]), *(unit([(other, name, None)]) for name in names)],
        (subject, other),
    )


def _open_members(rng: Random, facts: Facts) -> Draft | None:
    link = rng.choice(("home", "keeps", "home", "keeps", "likes"))
    value = rng.choice(WORDS[RELATIONS[link].value])
    members = facts.having("person", link, value)
    if not 1 <= len(members) <= 4:
        return None
    names = _subset(
        rng, [n for n in ATTRIBUTES["person"] if n != link], 1, 2 if len(members) < 4 else 1
    )
    nouns = join(RELATIONS[name].noun for name in names)
    phrase = RELATIONS[link].singular[rng.randrange(len(RELATIONS[link].singular))].format(v=value)
    instruction = rng.choice((
        f"Who {phrase}? Give the {nouns} of each.",
        f"Name everyone who {phrase}, with {nouns}.",
    ))  # fmt: skip

    def plan(r: Random) -> list[Sentence]:
        sentences: list[Sentence] = [Clause(tuple(members), ((link, (value,)),))]
        for member in members:
            sentences += clauses(member, _attributes(facts, member, names), r)
        return sentences

    return Draft(
        ("members", link, value, names),
        instruction,
        plan,
        [unit([(member, name, None)]) for member in members for name in (link, *names)],
        tuple(members),
    )


def open_qa(rng: Random, facts: Facts) -> Draft | None:
    """Facts of the world, asked outright, through another, or of everybody who shares something."""
    return rng.choices((_open_attributes, _open_two_steps, _open_members), (60, 28, 12))[0](
        rng, facts
    )


# --- general questions ---------------------------------------------------------------------------


def _general_contrast(rng: Random, facts: Facts) -> Draft:
    kind = rng.choices(("person", "town", "animal", "thing"), (35, 35, 20, 10))[0]
    left, right = rng.sample(WORDS[kind], 2)
    names = _subset(rng, ATTRIBUTES[kind], 2, 3)
    nouns = join(RELATIONS[name].noun for name in names)
    instruction = rng.choice((
        f"Compare {name_of(left)} and {name_of(right)} by {nouns}.",
        f"How do {name_of(left)} and {name_of(right)} differ in {nouns}?",
        f"What sets {name_of(left)} apart from {name_of(right)}? Look at {nouns}.",
    ))  # fmt: skip

    def plan(r: Random) -> list[Sentence]:
        sentences: list[Sentence] = []
        for name in names:
            a, b = ((name, (facts[s, name],)) for s in (left, right))
            same = a == b and name != "teacher"
            sentences.append(
                Clause((left, right), (a,)) if same
                else Contrast(Clause((left,), (a,)), Clause((right,), (b,)))
            )  # fmt: skip
        return sentences

    return Draft(
        ("contrast", *sorted((left, right)), names),
        instruction,
        plan,
        [unit([(s, name, None)]) for name in names for s in (left, right)],
        (left, right),
    )


def _general_which(rng: Random, facts: Facts) -> Draft | None:
    relation, question = rng.choice((
        ("older", "Which is older, {a} or {b}?"), ("newer", "Which is newer, {a} or {b}?"),
        ("dearer", "Which costs more, {a} or {b}?"), ("cheaper", "Which costs less, {a} or {b}?"),
    ))  # fmt: skip
    kind = RELATIONS[relation].subject
    a, b = rng.sample(WORDS[kind], 2)
    if facts.holds(Fact(a, relation, b)):
        winner, loser = a, b
    elif facts.holds(Fact(b, relation, a)):
        winner, loser = b, a
    else:
        return None
    names = _subset(rng, [n for n in ATTRIBUTES[kind] if n not in ("founded", "price")], 2, 4)
    nouns = join(RELATIONS[name].noun for name in names)
    instruction = question.format(a=name_of(a), b=name_of(b)) + rng.choice(
        (f" Give its {nouns}.", f" Tell me its {nouns} too.")
    )
    return Draft(
        ("which", relation, *sorted((a, b)), names),
        instruction,
        lambda r: [
            Clause((winner,), ((relation, (loser,)),)),
            *clauses(winner, _attributes(facts, winner, names), r),
        ],
        [
            unit([(winner, relation, loser), (loser, COMPARISONS[relation], winner),
                  (loser, relation, winner), (winner, COMPARISONS[relation], loser)]),
            *(unit([(winner, name, None)]) for name in names),
        ],
        (winner, loser),
    )  # fmt: skip


def _general_count(rng: Random, facts: Facts) -> Draft | None:
    (kind, _), relation = rng.choice(list(LABELLED.items()))
    value = rng.choice(WORDS[RELATIONS[relation].value])
    having = facts.having(kind, relation, value)
    many = rng.randint(1, 2)
    if len(having) < many:
        return None
    chosen = rng.sample(having, many)
    rest = [name for name in WORDS[kind] if name not in having]
    others = rng.sample(rest, rng.randint(1, 2))
    everyone = chosen + others
    rng.shuffle(everyone)
    phrase = verb_phrase(relation, (value,), True, rng)
    listed = join(name_of(name) for name in everyone)
    noun = RELATIONS[relation].noun
    instruction = rng.choice((
        f"How many of {listed} {phrase}? Give the {noun} of the others.",
        f"Count those who {phrase} among {listed}, and tell the {noun} of the rest.",
    ))  # fmt: skip
    count = WORDS["number"][many - 1]
    members = tuple(name for name in everyone if name in chosen)
    return Draft(
        ("count", relation, value, *sorted(everyone)),
        instruction,
        lambda r: [
            Count(count, (relation, value), members),
            *(Clause((o,), ((relation, (facts[o, relation],)),)) for o in everyone if o in others),
        ],
        [
            unit([(THEM, "count", None)]),
            *(unit([(name, relation, None)]) for name in everyone),
        ],
        tuple(everyone),
        facts=[Fact(THEM, "count", count)],
    )


def general_qa(rng: Random, facts: Facts) -> Draft | None:
    """Contrasts, comparisons and counts."""
    return rng.choices((_general_contrast, _general_which, _general_count), (45, 25, 30))[0](
        rng, facts
    )


# --- classification ------------------------------------------------------------------------------


def classification(rng: Random, facts: Facts) -> Draft | None:
    """Names to be sorted by a shared attribute, two or three groups."""
    (kind, label_kind), relation = rng.choice(list(LABELLED.items()))
    values = rng.sample(WORDS[RELATIONS[relation].value], rng.choice((2, 2, 3)))
    groups: list[tuple[str, tuple[str, ...]]] = []
    for value in values:
        having = facts.having(kind, relation, value)
        if not having:
            return None
        groups.append((value, tuple(rng.sample(having, min(len(having), rng.randint(1, 2))))))
    everyone = [name for _, members in groups for name in members]
    if not 3 <= len(everyone) <= 5:
        return None
    rng.shuffle(everyone)
    listed = join(name_of(name) for name in everyone)
    noun = RELATIONS[relation].noun
    options = [PLURAL.get(value, value) for value in values]
    instruction = rng.choice((
        f"Sort by {noun}: {listed}.",
        f"Classify {listed} by {noun}.",
        f"Group {listed} under {join(options)}.",
    ))  # fmt: skip

    def plan(r: Random) -> list[Sentence]:
        labelled = r.random() < 0.5
        sentences: list[Sentence] = []
        for value, members in groups:
            ordered = tuple(name for name in everyone if name in members)
            sentences.append(
                Labelled(PLURAL.get(value, value), ordered) if labelled
                else Clause(ordered, ((relation, (value,)),))
            )  # fmt: skip
        return sentences

    return Draft(
        ("sort", relation, *sorted(everyone)),
        instruction,
        plan,
        [unit([(name, relation, None)]) for name in everyone],
        tuple(everyone),
    )


# --- texts to read -------------------------------------------------------------------------------


def _journey(
    rng: Random, traveller: str, names: Sequence[str], taken: set[str]
) -> list[tuple[str, str]]:
    """What befell the traveller: one drawn value per event, no person or place twice."""
    events = []
    for name in names:
        choices = [v for v in WORDS[RELATIONS[name].value] if v not in taken and v != "one"]
        value = rng.choice(choices)
        taken.add(value)
        events.append((name, value))
    return events


def _travellers(
    rng: Random, count: int, low: int, high: int
) -> tuple[list[str], dict[str, list[tuple[str, str]]], str]:
    people = rng.sample(WORDS["person"], count)
    taken = set(people)
    journeys = {}
    for person in people:
        others = [name for name in EVENTS if name != "went"]
        names = ("went", *_subset(rng, others, low, high))
        journeys[person] = _journey(rng, person, names, taken)
    sentences = [s for person in people for s in clauses(person, journeys[person], rng)]
    return people, journeys, " ".join(realise(sentences, rng))


def _local(journeys: dict[str, list[tuple[str, str]]]) -> list[Fact]:
    return [
        Fact(person, name, value) for person, events in journeys.items() for name, value in events
    ]


def closed_qa(rng: Random, facts: Facts) -> Draft:
    """Questions on a text about one or two travellers."""
    alone = rng.random() < 0.4
    people, journeys, context = _travellers(rng, 1, 4, 5) if alone else _travellers(rng, 2, 2, 3)
    who = rng.choice(people)
    if alone or rng.random() < 0.6:
        names = _subset(rng, [name for name, _ in journeys[who]], 2, 4 if alone else 3)
        asked = {who: names}
        instruction = _ask(rng, who, names) if rng.random() < 0.5 else (
            capital(join([
                RELATIONS[name].question.format(s=who if i == 0 else pronoun(who))
                for i, name in enumerate(names)
            ])) + "?"
        )  # fmt: skip
    else:
        shared = [n for n, _ in journeys[people[0]] if n in dict(journeys[people[1]])]
        shared = shared[:3]
        asked = {person: tuple(shared) for person in people}
        nouns = join(RELATIONS[name].noun for name in shared)
        instruction = f"Give the {nouns} of {people[0]} and of {people[1]}."

    def plan(r: Random) -> list[Sentence]:
        return [
            sentence
            for person, names in asked.items()
            for sentence in clauses(person, [(n, dict(journeys[person])[n]) for n in names], r)
        ]

    return Draft(
        ("read", instruction, context),
        instruction,
        plan,
        [unit([(person, name, None)]) for person, names in asked.items() for name in names],
        tuple(asked),
        context,
        _local(journeys),
    )


def information_extraction(rng: Random, facts: Facts) -> Draft | None:
    """Lists of what a text names."""
    people, journeys, context = _travellers(rng, 2, 2, 3)
    words = [word for fact in _local(journeys) for word in (fact.subject, fact.value)]
    found = {
        label: list(dict.fromkeys(word for word in words if KIND[word] == kind))
        for label, kind in EXTRACTED.items()
        if any(KIND[word] == kind for word in words)
    }
    labels = _subset(rng, list(found), 2, 3)
    if len(labels) < 2:
        return None
    instruction = rng.choice((
        f"List the {join(labels)} that the text names.",
        f"Extract the {join(labels)}.",
        f"Which {join(labels)} does the text mention?",
    ))  # fmt: skip
    return Draft(
        ("extract", instruction, context),
        instruction,
        lambda r: [Labelled(label, tuple(found[label])) for label in labels],
        [unit([(TEXT, label, None)], len(found[label])) for label in labels],
        (TEXT,),
        context,
        [Fact(TEXT, label, word) for label, listed in found.items() for word in listed]
        + _local(journeys),
    )


def summarization(rng: Random, facts: Facts) -> Draft:
    """A journey in short: where to, how it ended, and some of what lies between."""
    who = rng.choice(WORDS["person"])
    between = _subset(rng, [n for n in EVENTS if n not in ("went", "returned")], 3, 4)
    journey = _journey(rng, who, ("went", *between, "returned"), {who})
    context = " ".join(realise(clauses(who, journey, rng), rng))
    events = dict(journey)
    extra = rng.choice((2, 3))
    things = "two things" if extra == 2 else "three things"
    instruction = rng.choice((
        f"Summarise the journey of {who}: the town, {things} that happened, and the return.",
        f"Sum up the text. Name the town, {things} from the trip and the return of {who}.",
        f"Shorten this to the town, {things} in between, and how {who} came home.",
    ))  # fmt: skip

    def plan(r: Random) -> list[Sentence]:
        chosen = set(r.sample(list(between), extra))
        names = ["went", *(n for n in between if n in chosen), "returned"]
        return clauses(who, [(n, events[n]) for n in names], r)

    return Draft(
        ("sum up", instruction, context),
        instruction,
        plan,
        [
            unit([(who, "went", None)]),
            unit([(who, name, None) for name in between], extra),
            unit([(who, "returned", None)]),
        ],
        (who,),
        context,
        _local({who: journey}),
    )


# --- prompts with many answers -------------------------------------------------------------------


def _trip_ideas(facts: Facts, town: str) -> list[Fact]:
    ideas = [Fact(town, name, facts[town, name]) for name in ("serves", "craft", "river", "fair")]
    return ideas + [Fact(p, "home", town) for p in facts.having("person", "home", town)]


def _person_ideas(facts: Facts, person: str) -> list[Fact]:
    return [Fact(person, name, facts[person, name]) for name in ("likes", "plays", "keeps", "home")]


def _brainstorm_ideas(rng: Random, facts: Facts) -> Draft:
    if rng.random() < 0.5:
        subjects = tuple(rng.sample(WORDS["town"], 2))
        pools = {s: _trip_ideas(facts, s) for s in subjects}
        instruction = rng.choice((
            "What could I do in {a} and in {b}? Give {n} for each.",
            "I am going to {a} and then to {b}. Suggest {n} for each town.",
        ))  # fmt: skip
    else:
        subjects = tuple(rng.sample(WORDS["person"], 2))
        pools = {s: _person_ideas(facts, s) for s in subjects}
        instruction = rng.choice((
            "How could I please {a} and {b}? Give {n} for each.",
            "I will meet {a} and {b}. Suggest {n} to do with each.",
        ))  # fmt: skip
    need = rng.choice((2, 2, 3))
    a, b = subjects

    def plan(r: Random) -> list[Sentence]:
        return [Suggestion(tuple(r.sample(pools[s], need))) for s in subjects]

    def patterns(subject: str) -> list[Pattern]:
        kinds: list[Pattern] = [(subject, name, None) for name in dict.fromkeys(
            f.relation for f in pools[subject] if f.subject == subject)]  # fmt: skip
        return kinds + [(None, "home", subject)] * (subject in WORDS["town"])

    return Draft(
        ("ideas", *sorted(subjects), need),
        instruction.format(a=a, b=b, n=("one idea", "two ideas", "three ideas")[need - 1]),
        plan,
        [unit(patterns(s), need) for s in subjects],
        subjects,
    )


def _brainstorm_names(rng: Random, facts: Facts) -> Draft | None:
    wanted = []
    for kind, relation in rng.sample((
        ("person", "job"), ("person", "plays"), ("town", "region"), ("town", "craft"),
        ("animal", "class"), ("animal", "habitat"), ("thing", "material"), ("thing", "use"),
        ("animal", "eats"), ("town", "fair"),
        ("person", "likes"), ("town", "river"),
    ), 2):  # fmt: skip
        value = rng.choice(WORDS[RELATIONS[relation].value])
        having = facts.having(kind, relation, value)
        need = rng.choice((2, 2, 2, 3))
        if len(having) < need:
            return None
        wanted.append((kind, relation, value, need, having))
    people = {"person": "people", "town": "towns", "animal": "animals", "thing": "things"}
    asked = " and ".join(
        f"{WORDS['number'][need - 1]} {people[kind]} that "
        + verb_phrase(relation, (value,), True, rng)
        for kind, relation, value, need, _ in wanted
    )
    instruction = rng.choice((f"Name {asked}.", f"Think of {asked}."))

    def plan(r: Random) -> list[Sentence]:
        return [
            Clause(tuple(r.sample(having, need)), ((relation, (value,)),))
            for _, relation, value, need, having in wanted
        ]

    return Draft(
        ("names", *((relation, value, need) for _, relation, value, need, _ in wanted)),
        instruction,
        plan,
        [unit([(None, relation, value)], need) for _, relation, value, need, _ in wanted],
        (),
    )


def brainstorming(rng: Random, facts: Facts) -> Draft | None:
    """Ideas, and names that fit; many answers are right."""
    return rng.choices((_brainstorm_ideas, _brainstorm_names), (50, 50))[0](rng, facts)


def creative_writing(rng: Random, facts: Facts) -> Draft:
    """A story about a given person with given events; the rest may be made up."""
    who = rng.choice(WORDS["person"])
    given_names = ("went", *_subset(rng, ("left", "met", "bought", "saw"), 1, 2))
    given = _journey(rng, who, given_names, {who})
    free = [n for n in EVENTS if n not in given_names and n != "returned"]
    parts = [
        {"went": "a trip to {v}", "left": "a journey in {v}", "met": "{v}", "bought": "a {v}",
         "saw": "a {v}"}[name].format(v=value)
        for name, value in given
    ]  # fmt: skip
    instruction = rng.choice((
        f"Write a short story about {who}, with {join(parts)}.",
        f"Tell a tale of {who} with {join(parts)}.",
        f"Make up a story in which {who} takes part, with {join(parts)}.",
    ))  # fmt: skip

    def plan(r: Random) -> list[Sentence]:
        invented = _journey(r, who, r.sample(free, 3), {who, *(v for _, v in given)})
        events = dict([*given, *invented, *_journey(r, who, ("returned",), set())])
        return clauses(who, [(n, events[n]) for n in EVENTS if n in events], r)

    return Draft(
        ("story", instruction),
        instruction,
        plan,
        [
            *(unit([(who, name, None)]) for name, _ in given),
            unit([(who, name, None) for name in free], 3),
            unit([(who, "returned", None)]),
        ],
        (who,),
        facts=_local({who: given}),
        story=True,
    )


#: Dolly's categories with the number of its rows in each.
CATEGORIES: dict[str, tuple[Callable[[Random, Facts], Draft | None], int]] = {
    "open_qa": (open_qa, 3742),
    "general_qa": (general_qa, 2191),
    "classification": (classification, 2136),
    "closed_qa": (closed_qa, 1773),
    "brainstorming": (brainstorming, 1766),
    "information_extraction": (information_extraction, 1506),
    "summarization": (summarization, 1188),
    "creative_writing": (creative_writing, 709),
}
