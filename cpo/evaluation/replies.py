"""What a chat model's message holds: an answer, the reasoning before it, and what is wrong with it.

Servers send one text or several parts, and the reasoning as a part, as a field of its own, or as a
block in front of the answer. The answer alone counts, and one that was cut is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

# What can be wrong with a reply, whatever was asked; "" for nothing.
Fault = Literal["", "cut", "empty", "refused", "too long"]
FAULTS: tuple[str, ...] = get_args(Fault)[1:]

# Finish reasons. Those of a prompt that was refused with an error are ours, named as its code.
REFUSED, TOO_LONG = "content_filter", "context_length_exceeded"
_REFUSED = {"safety", "refusal", "blocklist", "prohibited_content"}
_CUT = {
    "length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded",
    "error", "abort", "insufficient_system_resource",
}  # fmt: skip

_TAG = r"[<\[◁]{}(?:\w+:)?(?:think|thinking|thought|reasoning|analysis)[>\]▷]"
_OPENING, _CLOSING = (re.compile(_TAG.format(slash), re.IGNORECASE) for slash in ("", "/"))


@dataclass(frozen=True)
class Message:
    """A message, taken apart. `text` is the answer, "" for none; `fault` why it is of no use."""

    text: str
    reasoning: str
    fault: Fault


def read_message(message: Mapping[str, Any], finish_reason: str) -> Message:
    """Take a message of a chat completion apart.

    Args:
        message: as the server sent it; `content` is a text, null, or a list of parts.
        finish_reason: the server's, "" where it is not known.
    """
    content = message.get("content")
    answers, thoughts, refusals = [], [], [_text(message.get("refusal"))]
    for part in content if isinstance(content, list) else [content]:
        kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "text"
        if re.search("think|reason", kind):
            thoughts.append(_text(part))
        elif kind == "refusal":
            refusals.append(_text(part))
        elif kind in ("text", "output_text"):
            answers.append(_text(part))
    thoughts += [_text(message.get(key)) for key in ("reasoning_content", "reasoning", "thinking")]
    # Half of a character of two code units, as a cut reply may end in, is no text to store.
    whole = "".join(answers).encode(errors="replace").decode()
    start, unclosed = _end_of_reasoning(whole)
    text = whole[start:].lstrip() if start else whole
    thoughts.append(_CLOSING.sub("", _OPENING.sub("", whole[:start])).strip())
    fault: Fault = ""
    reason = finish_reason.lower()
    if reason.startswith(REFUSED) or reason in _REFUSED or (not text and any(refusals)):
        fault = "refused"
    elif reason == TOO_LONG:
        fault = "too long"
    elif unclosed or reason in _CUT:
        fault = "cut"
    elif not text.strip():
        fault = "empty"
    # Some servers send the same reasoning in two fields.
    return Message(text, "\n".join(filter(None, dict.fromkeys(thoughts))), fault)


def _end_of_reasoning(text: str) -> tuple[int, bool]:
    """Where the answer begins behind blocks of reasoning, and whether the last of them is unclosed.

    A block may lack its opening tag, which some chat templates put into the prompt. A block behind
    the first words of an answer is a part of it.
    """
    start = 0
    while closing := _CLOSING.search(text, start):
        opening = _OPENING.search(text, start, closing.start())
        if opening and text[start : opening.start()].strip():
            break
        start = closing.end()
    if _OPENING.match(text[start:].lstrip()):
        return len(text), True
    return start, False


def _text(value: Any) -> str:
    """All text in a part, which may hold further parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, Mapping):
        keys = ("text", "thinking", "reasoning", "content", "summary", "refusal", "value")
        return "".join(_text(value.get(key)) for key in keys)
    return ""
