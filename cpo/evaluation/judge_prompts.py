"""Prompts for judging models, and the parser of their verdicts.

The templates in `templates/` are the paper's (A.3, A.4), verbatim.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from cpo.data import Task
from cpo.evaluation.replies import FAULTS, Reply, read_message

Verdict = Literal["A", "B", "tie", "invalid"]
INVALID_KINDS = ("unclear", *FAULTS)  # of verdicts: unparsable, or a faulty reply

# Headings of the templates' parts. A response with one of them can imitate another part.
MARKERS = re.compile(
    r"^\s*(Query|Prefix|(Response|Continuation) [AB]|More helpful|Better):|State only .A. or .B.",
    re.MULTILINE,
)


@cache
def template(name: str) -> str:
    """A template of the paper, a file in `templates/`; each `{}` is a part to fill in."""
    file = files("cpo.evaluation").joinpath(f"templates/{name}.txt")
    return file.read_text(encoding="utf-8").removesuffix("\n")


def template_hash(task: Task) -> str:
    """First eight hex digits of the SHA-256 of a task's template."""
    return hashlib.sha256(template(f"judge_{task}").encode()).hexdigest()[:8]


def judge_prompt(task: Task, query: str, response_a: str, response_b: str) -> str:
    """The filled-in template. Braces and markers in a response remain plain text."""
    return template(f"judge_{task}").format(query, response_a, response_b)


def query_of(example: Any, task: Task) -> str:
    """The template's Query or Prefix: instruction and context, or an article's prefix."""
    if task == "articles":
        return str(example.prefix)
    source = example.source if isinstance(example.source, dict) else vars(example.source)
    return "\n".join(part for part in (source["instruction"], source.get("context")) if part)


def holds_markers(response: str) -> bool:
    """Whether a response contains a template heading and so may imitate another part.

    Such responses are counted and judged like all others: the template is the paper's.
    """
    return MARKERS.search(response) is not None


# Part of the verdicts' artifact key: raise it with every change below.
PARSER_VERSION = 2

_NOUN = r"(?:response|continuation|answer|option|text|assistant|candidate|model|output)"
_BETTER = r"(?:better|best|(?:more|most) helpful|preferred|preferable|superior|stronger|winning)"
_ONE = rf"(?: {_NOUN}| one)?"
_CHOOSE = r"(?:prefer|choose|pick|select|go with)"
_EQUAL = r"(?:equally (?:good|helpful|bad)|the same)"
_LEAD = (
    r"(?:(?:so|thus|therefore|overall|in conclusion|i think|i believe|i(?: would|'d) say)\W+"
    r"(?:that )?)*"
)
_HEADING = (
    r"(?:(?:(?:the|my|final|overall) )*(?:verdict|choice|decision|judge?ment|winner|preference"
    rf"|{_NOUN}|{_BETTER}{_ONE})(?: is|:)\W*|i(?: would|'d)? {_CHOOSE} )?"
)
_PREDICATE = (
    r"(?: (?:is|was|seems)(?: (?:slightly|clearly|definitely|significantly|much|the))*"
    rf" (?:{_BETTER}{_ONE}|winner)| wins)?(?: overall)?(?: (?:than|over) [①②])?"
)
# A reason must not retract the verdict before it.
_REASON = (
    r"(?:,? (?:because|since|as it)\b(?:(?!"
    r"\b(?:but|while|whereas|although|though|however|yet|still|unless|except|if)\b"
    r"|\b(?:no|not|never|neither|nor|hardly|cannot)\b|n't\b).)*)?"
)
_TIE = (
    r"(?:it is |it's )?(?:an? |① )?(?:tie|draw|equal)|both"
    rf"|(?:they are |both (?:{_NOUN}s )?are )?{_EQUAL}"
    rf"|neither(?:(?: {_NOUN}| [①②] nor [①②])? is {_BETTER})?"
)
# A verdict as a whole sentence, in lower case; ① and ② stand for the labels and their nouns.
_TOKENS: dict[str, Verdict] = {"①": "A", "②": "B"}
_VERDICT = re.compile(rf"{_LEAD}{_HEADING}(?:(?P<label>[①②]){_PREDICATE}{_REASON}|{_TIE})")
_AROUND = " \t\"'_#()[]{}<>.,!;“”‘"  # ignored around a sentence
# A label that a sentence favours: no verdict, but it may contradict one.
_FAVOURED = re.compile(
    r"(?<!than )(?<!over )(?<!nor )([①②]|\b(?:other|second|latter|former))(?:(?![①②]).)*?"
    rf"\b(?:{_BETTER}|wins?|winner|overall)\b"
    rf"|(?:{_CHOOSE}|(?:{_BETTER}|winner){_ONE} is) ([①②])|^(?:\w+\W+){{1,2}}([①②])$"
)
# A marked verdict: <answer>B</answer>, \boxed{B}, \boxed{\text{B}}, [[B]].
_MARKED = re.compile(
    r"(?P<negation>(?:\b(?:not|never|neither|nor)|n['’]t)\s+(?:\w+\s+)?)?"
    r"(?:<(?P<tag>answer|verdict)>(?P<tagged>.*?)(?:</(?P=tag)>|$)"
    r"|\\boxed\s*\{(?:\\\w+\s*\{)?(?P<boxed>[^{}]*)\}|\[\[(?P<bracketed>[^\[\]]*)\]\])",
    re.DOTALL | re.IGNORECASE,
)
_KEYS = ("verdict", "answer", "winner", "better", "choice", "preference")  # of a JSON verdict


def parse_verdict(text: str, labels: tuple[str, str] = ("A", "B")) -> Verdict:
    """The verdict in a judge's reply; an ambiguous reply is `invalid`.

    Only the final answer is read (`replies.read_message`), by the first rule that applies:

    1. The verdict is marked: `<answer>B</answer>`, `\\boxed{B}`, `[[B]]`, or JSON with a key like
       "verdict". Rule 2 then reads only the marked text.
    2. The first or last sentence, as a whole, is a label ("Response A", "More helpful: A"), a tie
       ("Tie", "Both"), or a verdict in a fixed form ("Response A is better than Response B because
       ...", "I prefer B"). No other sentence contradicts it.

    The fixed forms exclude negations, concessions ("while", "but"), hypotheticals ("would be
    better") and single aspects ("better in style"). "Neither A nor B is better" and "Neither" are
    ties: the question was which response is better.

    Args:
        text: the raw reply.
        labels: names of A and B, case-sensitive: "a" is an article.
    """
    answer = read_message({"content": text}, "").text.strip()
    verdicts = {_stated(part, labels) for part in _marked(answer) or [answer]}
    return verdicts.pop() if len(verdicts) == 1 else "invalid"


def read_verdict(reply: Reply) -> tuple[Verdict, str]:
    """The verdict in a reply, and its kind of `INVALID_KINDS`, "" for a valid one.

    A reply with a fault has no valid verdict.
    """
    verdict = "invalid" if reply.fault else parse_verdict(reply.text)
    return verdict, reply.fault or ("unclear" if verdict == "invalid" else "")


def _marked(answer: str) -> list[str]:
    """The marked verdicts in an answer."""
    try:
        fields = json.loads(answer[answer.find("{") : answer.rfind("}") + 1])
    except ValueError:
        return [
            "" if match["negation"] else match[match.lastgroup or 0]
            for match in _MARKED.finditer(answer)
        ]
    return [str(value) for key, value in fields.items() if key.lower() in _KEYS]


def _stated(answer: str, labels: tuple[str, str]) -> Verdict:
    """Verdict of an answer's first or last sentence, unless another sentence contradicts it."""
    sentences = _sentences(answer, labels)
    matches = [_VERDICT.fullmatch(sentence) for sentence in sentences]
    if not any(matches[:1] + matches[-1:]):
        return "invalid"
    stated = {_TOKENS.get(match["label"], "tie") for match in matches if match}
    # Sentences before a conclusion may favour either side; sentences after a verdict may not.
    for sentence in sentences if matches[0] else sentences[-1:]:
        for match in _FAVOURED.finditer(sentence):
            stated.add(_TOKENS.get(match[match.lastindex or 0], "invalid"))
    return stated.pop() if len(stated) == 1 else "invalid"


def _sentences(answer: str, labels: tuple[str, str]) -> list[str]:
    """The sentences of an answer, normalised for `_VERDICT`; a line break ends a sentence."""
    label = re.compile(
        rf"(?:(?:\b(?i:the )\s*)?\b(?i:{_NOUN})\s*)?[\"'“‘(\[]*"
        rf"\b(?:({re.escape(labels[0])})|{re.escape(labels[1])})\b[\"'”’)\]]*"
    )
    sentences = []
    for line in re.sub("[*`]", "", answer).splitlines():
        # "A. Short and clear." is a list item: its first full stop ends no sentence.
        parts = re.split(r"(?<=[.!?])(?<!^\w\.)\s+", line.strip())
        labelled = [label.sub(lambda match: "①" if match[1] else "②", part) for part in parts]
        bare = [part.lower().replace("’", "'").strip(_AROUND) for part in labelled]
        # A bare label after other sentences on a line is the start of an unfinished sentence.
        sentences += bare[:-1] if len(bare) > 1 and bare[-1] in _TOKENS else bare
    return [sentence for sentence in sentences if sentence]
