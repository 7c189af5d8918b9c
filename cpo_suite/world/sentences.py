"""A text of the world sentence by sentence: the true ones, and grades of a text's in turn."""

from __future__ import annotations

from collections.abc import Sequence

from .grammar import cut_sentences
from .oracle import WorldArticle, WorldExample, sentence_grade, true_text


def lead_of(example: WorldExample | WorldArticle, prefix: str) -> str:
    """What stands before the first sentence: an article's prefix, and nothing for a pair."""
    return prefix if isinstance(example, WorldArticle) else ""


def true_sentences(example: WorldExample | WorldArticle, prefix: str) -> list[str]:
    """The sentences of the true text after `prefix`, as they stand.

    The first one of an article completes the sentence that the prefix leaves open. There are none
    if the true article does not begin with this prefix.
    """
    text, lead = true_text(example), lead_of(example, prefix)
    return cut_sentences(text.removeprefix(lead)) if text.startswith(lead) else []


def grades_in_turn(
    example: WorldExample | WorldArticle, prefix: str, sentences: Sequence[str]
) -> list[float]:
    """The grade of each sentence after the prefix and the sentences before it."""
    lead = lead_of(example, prefix)
    return [
        sentence_grade(example, lead + "".join(sentences[:place]), sentence)
        for place, sentence in enumerate(sentences)
    ]
