"""Relations, the ways to say them, and the grammar in both directions: facts to text and back.

A fact is a triple `(subject, relation, value)`. A sentence is a subject with one or several verb
phrases, a contrast of two such clauses, a list under a label, a count, or a suggestion. Reading is
by look-up: every word of the world's tables becomes its kind, lists collapse to one slot, and what
remains must be one of the patterns below. Nothing is matched approximately, so a sentence that
reads wrong is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import NamedTuple

from .tables import COMMON_NOUNS, KIND, PLURAL, SINGULAR, pronoun


class Fact(NamedTuple):
    """One atomic statement."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True)
class Relation:
    """How one relation is said: verb phrases (singular, plural, in the same order), noun and
    question."""

    name: str
    subject: str
    value: str
    singular: tuple[str, ...]
    plural: tuple[str, ...]
    noun: str
    question: str


def _relation(
    name: str, subject: str, value: str, phrases: str, noun: str, question: str
) -> Relation:
    singular, plural = [], []
    for phrase in phrases.split(" | "):
        one, _, many = phrase.partition(" / ")
        singular.append(one)
        plural.append(many or one)
    return Relation(name, subject, value, tuple(singular), tuple(plural), noun, question)


_R = _relation
RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        _R("home", "person", "town",
           "lives in {v} / live in {v} | has a house in {v} / have a house in {v} | "
           "comes from {v} / come from {v}",
           "home", "where does {s} live"),
        _R("job", "person", "job",
           "is a {v} / are {p} | works as a {v} / work as {p} | "
           "earns a living as a {v} / earn a living as {p}",
           "job", "what work does {s} do"),
        _R("plays", "person", "instrument",
           "plays the {v} / play the {v} | is good at the {v} / are good at the {v}",
           "instrument", "what does {s} play"),
        _R("keeps", "person", "animal",
           "keeps a {v} / keep a {v} | owns a {v} / own a {v} | "
           "looks after a {v} / look after a {v}",
           "pet", "which animal does {s} keep"),
        _R("likes", "person", "dish",
           "likes {v} / like {v} | loves to eat {v} / love to eat {v} | "
           "is fond of {v} / are fond of {v}",
           "favourite dish", "what does {s} like to eat"),
        _R("teacher", "person", "person",
           "learned from {v} | was taught by {v} / were taught by {v} | "
           "is a pupil of {v} / are pupils of {v}",
           "teacher", "who did {s} learn from"),
        _R("region", "town", "region",
           "lies in {v} / lie in {v} | is a town in {v} / are towns in {v} | "
           "belongs to {v} / belong to {v}",
           "region", "which region does {s} lie in"),
        _R("river", "town", "river",
           "stands on the {v} / stand on the {v} | "
           "is built by the river {v} / are built by the river {v}",
           "river", "which river does {s} stand on"),
        _R("craft", "town", "good",
           "makes {v} / make {v} | is known for its {v} / are known for their {v} | "
           "sells {v} / sell {v}",
           "craft", "what does {s} make"),
        _R("serves", "town", "dish",
           "serves {v} / serve {v} | cooks {v} / cook {v} | "
           "is proud of its {v} / are proud of their {v}",
           "dish", "which dish does {s} serve"),
        _R("fair", "town", "season",
           "holds a fair in {v} / hold a fair in {v} | "
           "has its fair in {v} / have their fair in {v}",
           "fair", "when does {s} hold a fair"),
        _R("founded", "town", "year",
           "was founded in {v} / were founded in {v} | dates from {v} / date from {v}",
           "founding year", "when was {s} founded"),
        _R("class", "animal", "class",
           "is a {v} / are {p} | is a kind of {v} / are kinds of {v}",
           "kind", "what kind of animal is {s}"),
        _R("habitat", "animal", "habitat",
           "lives in the {v} / live in the {v} | is found in the {v} / are found in the {v}",
           "habitat", "where does {s} live"),
        _R("eats", "animal", "food",
           "eats {v} / eat {v} | feeds on {v} / feed on {v}",
           "food", "what does {s} eat"),
        _R("colour", "animal", "colour",
           "is {v} / are {v} | has a {v} coat / have a {v} coat",
           "colour", "what colour is {s}"),
        _R("wakes", "animal", "time",
           "wakes at {v} / wake at {v} | comes out at {v} / come out at {v}",
           "waking time", "when does {s} wake"),
        _R("material", "thing", "material",
           "is made of {v} / are made of {v} | is built from {v} / are built from {v}",
           "material", "what is {s} made of"),
        _R("use", "thing", "use",
           "is used for {v} / are used for {v} | serves for {v} / serve for {v}",
           "use", "what is {s} used for"),
        _R("maker", "thing", "town",
           "is made in {v} / are made in {v} | comes from {v} / come from {v}",
           "place of making", "where is {s} made"),
        _R("price", "thing", "number",
           "costs {v} coins / cost {v} coins | sells for {v} coins / sell for {v} coins",
           "price", "how much does {s} cost"),
        _R("older", "town", "town", "is older than {v} / are older than {v}", "", ""),
        _R("newer", "town", "town", "is newer than {v} / are newer than {v}", "", ""),
        _R("dearer", "thing", "thing", "costs more than the {v} / cost more than the {v}", "", ""),
        _R("cheaper", "thing", "thing", "costs less than the {v} / cost less than the {v}", "", ""),
        _R("went", "person", "town",
           "went to {v} | travelled to {v} | made a trip to {v}", "town", "where did {s} go"),
        _R("left", "person", "season",
           "set off in {v} | left in {v}", "season", "when did {s} set off"),
        _R("met", "person", "person",
           "met {v} | ran into {v}", "friend", "who did {s} meet"),
        _R("bought", "person", "thing",
           "bought a {v} | paid for a {v}", "purchase", "what did {s} buy"),
        _R("saw", "person", "animal",
           "saw a {v} | spotted a {v}", "animal", "which animal did {s} see"),
        _R("ate", "person", "dish",
           "ate {v} | had {v} for supper", "meal", "what did {s} eat"),
        _R("stayed", "person", "number",
           "stayed for {v} days | spent {v} days there", "stay", "how many days did {s} stay"),
        _R("returned", "person", "mood",
           "came home {v} | returned {v}", "mood", "how did {s} come home"),
    )
}  # fmt: skip

EVENTS = ("went", "left", "met", "bought", "saw", "ate", "stayed", "returned")
COMPARISONS = {"older": "newer", "newer": "older", "dearer": "cheaper", "cheaper": "dearer"}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    kind: tuple(
        r.name
        for r in RELATIONS.values()
        if r.subject == kind and r.name not in EVENTS and r.name not in COMPARISONS
    )
    for kind in ("person", "town", "animal", "thing")
}

#: Suggestions, "You could ...": what they take for granted is a fact of the world.
SUGGESTIONS: tuple[tuple[str, str], ...] = (
    ("eat {v} in {s}", "serves"),
    ("try the {v} of {s}", "serves"),
    ("buy {v} in {s}", "craft"),
    ("look for {v} in {s}", "craft"),
    ("walk along the {v} in {s}", "river"),
    ("see the {v} fair in {s}", "fair"),
    ("visit {s} in {v}", "home"),
    ("call on {s} in {v}", "home"),
    ("bring {s} some {v}", "likes"),
    ("cook {v} for {s}", "likes"),
    ("ask {s} to play the {v}", "plays"),
    ("ask {s} about the {v}", "keeps"),
)

#: Lists under a label that is itself the value, "Norvale: Tolan and Berin."
LABELLED: dict[tuple[str, str], str] = {
    (RELATIONS[name].subject, kind): name
    for name, kind in (
        ("region", "region"), ("job", "jobs"), ("class", "classes"), ("habitat", "habitat"),
        ("material", "material"), ("use", "use"), ("craft", "good"), ("plays", "instrument"),
    )
}  # fmt: skip

#: Lists of what a text names, "People: Mira and Osk." The subject of such a fact is `TEXT`.
TEXT = "the text"
EXTRACTED: dict[str, str] = {
    "people": "person", "towns": "town", "season": "season", "animals": "animal",
    "things": "thing", "meals": "dish",
}  # fmt: skip
THEM = "them"


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clause:
    """Subjects with their verb phrases, each `(relation, values)`."""

    subjects: tuple[str, ...]
    phrases: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Contrast:
    """Two clauses set against each other."""

    left: Clause
    right: Clause


@dataclass(frozen=True)
class Labelled:
    """Members under a label; `relation` None for what a text names."""

    label: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """How many of those asked about have a property, and which."""

    number: str
    phrase: tuple[str, str]
    members: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """You could do this, and that."""

    facts: tuple[Fact, ...] = field(default=())


Sentence = Clause | Contrast | Labelled | Count | Suggestion


def name_of(subject: str) -> str:
    """A name as the subject of a sentence: Tolan, the gorrel."""
    return f"the {subject}" if KIND.get(subject) in COMMON_NOUNS else subject


def join(words: Iterable[str]) -> str:
    """English list: a / a and b / a, b and c."""
    items = list(words)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def capital(text: str) -> str:
    """The text with its first letter in upper case and nothing else changed."""
    return text[:1].upper() + text[1:]


def verb_phrase(relation: str, values: Sequence[str], many: bool, rng: Random) -> str:
    """One paraphrase, drawn with `rng`."""
    entry = RELATIONS[relation]
    template = rng.choice(entry.plural if many else entry.singular)
    return template.format(v=join(values), p=join(PLURAL.get(value, value) for value in values))


def _clause(clause: Clause, subject: str, rng: Random) -> str:
    many = len(clause.subjects) > 1
    return subject + " " + join(verb_phrase(r, v, many, rng) for r, v in clause.phrases)


def realise(sentences: Sequence[Sentence], rng: Random) -> list[str]:
    """Each sentence as text. A subject already named in the sentence before may become its
    pronoun."""
    texts: list[str] = []
    previous: tuple[str, ...] = ()
    for sentence in sentences:
        named: tuple[str, ...] = ()
        match sentence:
            case Clause(subjects, phrases):
                subject = join(name_of(s) for s in subjects)
                if len(subjects) == 1 and subjects == previous and rng.random() < 0.4:
                    subject = pronoun(subjects[0])
                seasons = [v[0] for r, v in phrases if r == "left"]
                if seasons and len(phrases) > 1 and rng.random() < 0.5:
                    rest = tuple(p for p in phrases if p[0] != "left")
                    text = f"in {seasons[0]}, " + _clause(Clause(subjects, rest), subject, rng)
                else:
                    text = _clause(sentence, subject, rng)
                # A person among the values would make the next pronoun ambiguous.
                if not any(KIND.get(v) == "person" for _, values in phrases for v in values):
                    named = subjects
            case Contrast(left, right):
                joint = rng.choice((", but ", ", while "))
                text = joint.join(
                    _clause(c, join(name_of(s) for s in c.subjects), rng) for c in (left, right)
                )
            case Labelled(label, members):
                text = f"{PLURAL.get(label, label)}: {join(name_of(m) for m in members)}"
            case Count(count, (relation, value), members):
                many = count != "one"
                text = f"{count} of them {verb_phrase(relation, (value,), many, rng)}: " + join(
                    name_of(m) for m in members
                )
            case Suggestion(facts):
                ideas = []
                for fact in facts:
                    choices = [t for t, relation in SUGGESTIONS if relation == fact.relation]
                    ideas.append(rng.choice(choices).format(s=fact.subject, v=fact.value))
                text = "you could " + join(ideas)
        texts.append(capital(text) + ".")
        previous = named
    return texts


# --- reading -------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?|[.!?]")

Item = tuple[str, tuple[str, ...]]
"""`(pattern token, the words in it)`: `("<town>", ("Tolan", "Berin"))` or `("lives", ())`."""


def _pattern(template: str, slots: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    tokens, order = [], []
    for word in template.split():
        if word in ("{v}", "{p}", "{s}"):
            order.append(word[1])
            tokens.append(f"<{slots[word[1]]}>")
        elif word in KIND:
            raise AssertionError(f"{word!r} of the phrase {template!r} is a word of the tables")
        else:
            tokens.append(word)
    return tuple(tokens), tuple(order)


def _phrase_table() -> dict[tuple[str, bool, tuple[str, ...]], str]:
    table: dict[tuple[str, bool, tuple[str, ...]], str] = {}
    plural_kind = {"job": "jobs", "class": "classes"}
    for relation in RELATIONS.values():
        slots = {"v": relation.value, "p": plural_kind.get(relation.value, relation.value)}
        for many, templates in ((False, relation.singular), (True, relation.plural)):
            for template in templates:
                key = (relation.subject, many, _pattern(template, slots)[0])
                if table.setdefault(key, relation.name) != relation.name:
                    raise AssertionError(f"two relations share the phrase {key}")
    return table


def _suggestion_table() -> dict[tuple[str, ...], tuple[str, tuple[str, ...]]]:
    table = {}
    for template, name in SUGGESTIONS:
        relation = RELATIONS[name]
        tokens, order = _pattern(template, {"s": relation.subject, "v": relation.value})
        table[tokens] = (name, order)
    return table


_PHRASES = _phrase_table()
_SUGGESTED = _suggestion_table()
_PRONOUN_KIND = {"she": ("person",), "he": ("person",), "it": ("town", "animal", "thing")}


class Reading(NamedTuple):
    """What one sentence states (pronouns unresolved), and whether all of it is in the grammar."""

    facts: tuple[Fact, ...]
    well_formed: bool


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with its end mark if it has one; whitespace is normalised."""
    return [s for s in (" ".join(m.split()) for m in _SENTENCE.findall(text)) if s]


def cut_sentences(text: str) -> list[str]:
    """The sentences of a text as they stand, each with the whitespace before it.

    Joined they are the text, but for whitespace at its end; normalised, they are
    `split_sentences`.
    """
    ends = [match.end() for match in _SENTENCE.finditer(text) if match[0].strip()]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _items(tokens: list[str]) -> list[Item]:
    """Words become kinds; "a, the b and c" of one kind becomes one item."""
    items: list[Item] = []
    i = 0
    while i < len(tokens):
        kind = KIND.get(tokens[i])
        if kind is None:
            items.append((tokens[i], ()))
            i += 1
            continue
        words = [tokens[i]]
        i += 1
        last = False
        while not last:
            j = i
            if j < len(tokens) and tokens[j] == ",":
                j += 1
            if j < len(tokens) and tokens[j] == "and":
                j, last = j + 1, True
            if j == i:
                break
            if j < len(tokens) and tokens[j] == "the":
                j += 1
            if j >= len(tokens) or KIND.get(tokens[j]) != kind:
                break
            words.append(tokens[j])
            i = j + 1
        items.append((f"<{kind}>", tuple(words)))
    return items


def _split(items: list[Item], marks: tuple[str, ...]) -> list[list[Item]]:
    pieces: list[list[Item]] = [[]]
    for item in items:
        if item[0] in marks:
            pieces.append([])
        else:
            pieces[-1].append(item)
    return pieces


def _subject(items: list[Item]) -> tuple[tuple[str, ...], tuple[str, ...], bool, int]:
    """Subjects, their possible kinds, plural, and how many items they took; 0 if there is none."""
    if not items:
        return (), (), False, 0
    head, words = items[0]
    if head in _PRONOUN_KIND:
        return (head,), _PRONOUN_KIND[head], False, 1
    if head in ("<person>", "<town>"):
        return words, (head[1:-1],), len(words) > 1, 1
    if head == "the" and len(items) > 1 and items[1][0] in ("<animal>", "<thing>"):
        return items[1][1], (items[1][0][1:-1],), len(items[1][1]) > 1, 2
    return (), (), False, 0


def _phrases(
    items: list[Item], subjects: tuple[str, ...], kinds: tuple[str, ...], many: bool
) -> tuple[list[Fact], bool]:
    """Verb phrases joined by commas and one last "and"; facts of the good ones, and whether all
    were."""
    facts: list[Fact] = []
    marks = [item[0] for item in items if item[0] in (",", "and")]
    well_formed = marks == [","] * (len(marks) - 1) + ["and"] * bool(marks)
    for piece in _split(items, (",", "and")):
        tokens = tuple(item[0] for item in piece)
        names = [n for n in (_PHRASES.get((kind, many, tokens)) for kind in kinds) if n]
        if not names:
            well_formed = False
            continue
        values = next(words for token, words in piece if token.startswith("<"))
        for subject in subjects:
            facts += [Fact(subject, names[0], SINGULAR.get(v, v)) for v in values]
    return facts, well_formed


def _read_clause(items: list[Item]) -> tuple[list[Fact], bool]:
    tokens = [item[0] for item in items]
    if tokens[:2] == ["you", "could"]:
        facts: list[Fact] = []
        good = True
        for piece in _split(items[2:], (",", "and")):
            found = _SUGGESTED.get(tuple(item[0] for item in piece))
            slots = [words for token, words in piece if token.startswith("<")]
            if found is None:
                good = False
                continue
            name, order = found
            by_slot = dict(zip(order, slots, strict=True))
            facts += [Fact(s, name, v) for s in by_slot["s"] for v in by_slot["v"]]
        return facts, good
    if ":" in tokens:
        return _read_list(items, tokens.index(":"))
    if tokens[:1] == ["in"] and len(items) > 3 and tokens[1] == "<season>" and tokens[2] == ",":
        rest, good = _read_clause(items[3:])
        when = [Fact(s, "left", items[1][1][0]) for s in dict.fromkeys(f.subject for f in rest)]
        return when + rest, good and bool(rest)
    subjects, kinds, many, used = _subject(items)
    if not used:
        return [], False
    return _phrases(items[used:], subjects, kinds, many)


def _read_list(items: list[Item], colon: int) -> tuple[list[Fact], bool]:
    head, tail = items[:colon], items[colon + 1 :]
    if tail and tail[0][0] == "the":
        tail = tail[1:]
    if len(tail) != 1 or not tail[0][0].startswith("<"):
        return [], False
    kind, members = tail[0][0][1:-1], tail[0][1]
    tokens = [item[0] for item in head]
    if len(head) == 1:
        if EXTRACTED.get(tokens[0]) == kind:
            return [Fact(TEXT, tokens[0], m) for m in members], True
        name = LABELLED.get((kind, tokens[0].strip("<>")))
        if name is None or len(head[0][1]) != 1:
            return [], False
        value = SINGULAR.get(head[0][1][0], head[0][1][0])
        return [Fact(m, name, value) for m in members], True
    if tokens[:3] == ["<number>", "of", "them"]:
        count = head[0][1][0]
        facts, good = _phrases(head[3:], members, (kind,), count != "one")
        return [Fact(THEM, "count", count), *facts], good
    return [], False


@lru_cache(maxsize=1 << 16)
def read_sentence(sentence: str) -> Reading:
    """The facts that a sentence states and whether it is good English of this world.

    Facts of sound parts are read even where another part of the sentence is broken.
    """
    closed = sentence.endswith(".")
    tokens = _TOKEN.findall(sentence[:-1] if sentence.endswith((".", "!", "?")) else sentence)
    if not tokens:
        return Reading((), False)
    first = tokens[0]
    well_formed = closed and not first[0].islower()
    lowered = first[:1].lower() + first[1:]
    if KIND.get(first) is None:
        tokens[0] = lowered
    facts: list[Fact] = []
    items = _items(tokens)
    pieces: list[list[Item]] = [[]]
    for item in items:
        if item[0] in ("but", "while") and pieces[-1] and pieces[-1][-1][0] == ",":
            pieces[-1].pop()
            pieces.append([])
        else:
            pieces[-1].append(item)
    for piece in pieces:
        found, good = _read_clause(piece)
        facts += found
        well_formed = well_formed and good
    return Reading(tuple(facts), well_formed and bool(facts))
