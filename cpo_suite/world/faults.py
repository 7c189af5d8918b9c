"""What goes wrong in a text: the single faults of the recorded writers, each on a list of
sentences.

Every function returns the changed sentences, or None where the text has no room for the fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

from .tables import KIND, WORDS

_WORD = re.compile(r"[A-Za-z]+|[0-9]+")


def omit(sentences: Sequence[str], rng: Random) -> list[str] | None:
    """Leaves out one sentence."""
    if len(sentences) < 2:
        return None
    gone = rng.randrange(len(sentences))
    return [s for i, s in enumerate(sentences) if i != gone]


def stop_early(sentences: Sequence[str], rng: Random) -> list[str] | None:
    """Leaves out everything after one of the first sentences."""
    if len(sentences) < 2:
        return None
    return list(sentences[: rng.randint(1, len(sentences) - 1)])


def repeat(sentences: Sequence[str], rng: Random) -> list[str]:
    """Says one sentence again at the end."""
    return [*sentences, rng.choice(list(sentences))]


def cut(sentences: Sequence[str], rng: Random) -> list[str] | None:
    """Breaks off in the middle of the last sentence."""
    words = sentences[-1].split()
    if len(words) < 3:
        return None
    return [*sentences[:-1], " ".join(words[: rng.randint(2, len(words) - 1)])]


def ramble(sentences: Sequence[str], rng: Random, other: Sequence[str]) -> list[str]:
    """Runs on with one or two sentences about something else."""
    start = rng.randrange(len(other))
    return [*sentences, *other[start : start + rng.choice((1, 2))]]


def slip(
    sentences: Sequence[str], rng: Random, is_wrong: Callable[[list[str]], bool]
) -> list[str] | None:
    """Swaps one name or value for another of its kind, so that `is_wrong` says of the whole that it
    is."""
    spots = [
        (i, match)
        for i, sentence in enumerate(sentences)
        for match in _WORD.finditer(sentence)
        if match[0] in KIND
    ]
    for i, match in rng.sample(spots, len(spots)):
        sentence = sentences[i]
        other = rng.choice([w for w in WORDS[KIND[match[0]]] if w != match[0]])
        changed = list(sentences)
        changed[i] = sentence[: match.start()] + other + sentence[match.end() :]
        if is_wrong(changed):
            return changed
    return None
