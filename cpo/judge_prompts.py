"""What a judging model is asked, and how its answer is read.

The two templates are the paper's (A.3), word for word, in `templates/`.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from cpo.paper import Task

Verdict = Literal["A", "B", "tie", "invalid"]

# What the templates mark their own parts with. A response that holds one can pass for another part.
MARKERS = re.compile(
    r"^\s*(Query|Prefix|(Response|Continuation) [AB]|More helpful|Better):|State only .A. or .B.",
    re.MULTILINE,
)


@cache
def template(task: Task) -> str:
    """The paper's template of a task, with three `{}`: query or prefix, A, B."""
    text = files("cpo").joinpath(f"templates/judge_{task}.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n")


def template_hash(task: Task) -> str:
    """Eight hex digits that change with any letter of the template."""
    return hashlib.sha256(template(task).encode()).hexdigest()[:8]


def judge_prompt(task: Task, query: str, response_a: str, response_b: str) -> str:
    """The whole question. Braces and markers in a response stay what they are: text."""
    return template(task).format(query, response_a, response_b)


def query_of(example: Any, task: Task) -> str:
    """What the template's Query or Prefix holds: instruction and context, or article's prefix."""
    if task == "articles":
        return str(example.prefix)
    source = example.source if isinstance(example.source, dict) else vars(example.source)
    return "\n".join(part for part in (source["instruction"], source.get("context")) if part)


def holds_markers(response: str) -> bool:
    """Whether a response holds a part of the template, and so may pass for more than a response.

    Such responses are judged like all others (the template is the paper's) and counted.
    """
    return MARKERS.search(response) is not None


# Stored replies are parsed again when this changes: raise it with every change of what follows.
PARSER_VERSION = 2

_NOUN = r"(?:response|continuation|answer|option|text|assistant|candidate)"
_BETTER = r"(?:more helpful|better|preferred|superior|the winner|stronger)"
_EQUAL = re.compile(
    r"(it'?s an? |it is an? )?(tie|draw|equal|equally (good|helpful|bad)|the same|both|neither"
    r"|both (responses |continuations )?are equally (good|helpful|bad)|both are the same)",
    re.IGNORECASE,
)


def parse_verdict(text: str, labels: tuple[str, str] = ("A", "B")) -> Verdict:
    """A judge's answer as a verdict. What is not clearly one is `invalid`: nothing is guessed.

    The rules, of which the first that applies decides; quotes, brackets, asterisks and a full stop
    around the answer do not count:

    1. the whole answer, or its whole first or last line, is a label, with or without a noun before
       it ("Response A") or a heading ("More helpful: A");
    2. the whole answer is a word for a tie ("Tie", "Both", "Neither", "equally good");
    3. one and only one label is said to be better, in any sentence ("Response A is more helpful
       than Response B") or is preferred ("I prefer B", "the better response is B").

    Everything else is invalid: an empty answer, a refusal, both labels named alike.

    Args:
        text: the raw answer.
        labels: what A and B are called. The case of a letter counts: "a" is an article.
    """
    lines = [_bare(line) for line in text.strip().splitlines() if _bare(line)]
    if not lines:
        return "invalid"
    one = "|".join(map(re.escape, labels))
    verdicts: dict[str, Verdict] = {labels[0]: "A", labels[1]: "B"}
    alone = re.compile(
        rf"(?:(?P<heading>[\w ]{{0,40}}):\s*\W*)?(?:(?i:the )?(?i:{_NOUN})\W*)?(?P<label>{one})"
        rf"(?:\W*(?i:is {_BETTER}))?"
    )
    matches = [alone.fullmatch(line) for line in (_bare(" ".join(lines)), lines[0], lines[-1])]
    found = {
        match["label"]
        for match in matches
        # "Response A: B" does not say which.
        if match and not re.search(rf"\b({one})\b", match["heading"] or "")
    }
    if found:
        return verdicts[found.pop()] if len(found) == 1 else "invalid"
    if _EQUAL.fullmatch(_bare(" ".join(lines))):
        return "tie"
    whole = " ".join(text.split())
    named = rf"(?:(?i:{_NOUN})\W*)?\b({one})\b"
    said = re.compile(
        rf"{named}\W*(?i:is|was|seems|would be)(?i: (?:slightly|clearly|much|definitely|the))* "
        rf"(?i:{_BETTER})"
        rf"|(?i:prefer|choose|pick|select|{_BETTER}(?: {_NOUN})?(?: is|:))\W+(?i:the )?{named}"
    )
    found = {label for match in said.finditer(whole) for label in match.groups() if label}
    return verdicts[found.pop()] if len(found) == 1 else "invalid"


def _bare(text: str) -> str:
    """A text without what people put around an answer."""
    return text.strip(" \t\"'`*_#()[]{}<>.,!:;“”‘’")
