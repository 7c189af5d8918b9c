"""Parse chat model replies into answer, reasoning and fault.

Servers send one text or several parts. Reasoning comes as a part, as a separate field, or as a
block before the answer. Only a complete final answer counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

# Faults of a reply to any question; "" for none.
ReplyFault = Literal["", "cut", "empty", "refused", "too long"]
FAULTS: tuple[str, ...] = get_args(ReplyFault)[1:]

# Finish reasons. A prompt refused with an error has none: it gets the error code used by OpenAI.
REFUSED, TOO_LONG = "content_filter", "context_length_exceeded"
_REFUSED = {"safety", "refusal", "blocklist", "prohibited_content"}
_CUT = {
    "length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded",
    "error", "abort", "insufficient_system_resource",
}  # fmt: skip

# Wording of errors: unsupported parameter, filtered prompt, prompt too long, used-up quota, and
# errors that concern every prompt.
_UNSUPPORTED = (
    r"unsupported|not support|not allowed|not permitted|unrecogni|unknown|deprecated|only .*allowed"
)
_FILTERED = (
    r"content.?(filter|management|policy|moderation)|responsible.?ai|flagged|moderation|safety"
    r"|data_inspection|content exists risk"
)
_OVER_LONG = (
    r"context.?(length|size|window)|maximum (context|model) length|max_(seq|model)_len"
    r"|(prompt|input) is too long|too long to fit|too many tokens|input token count|inputs. tokens"
    r"|max_num_tokens|reduce the length|input length"
)
_USED_UP = r"exceeded your current quota|billing|credit"
_FOR_ALL = rf"{_USED_UP}|quota|api.?key|no models? |model .*not |not .*model"

_TAG = r"[<\[◁]{}(?:\w+:)?(?:think|thinking|thought|reasoning|analysis)[>\]▷]"
_OPENING, _CLOSING = (re.compile(_TAG.format(slash), re.IGNORECASE) for slash in ("", "/"))


@dataclass(frozen=True)
class Message:
    """A parsed message. `text` is the answer, "" for none; `fault` makes it unusable."""

    text: str
    reasoning: str
    fault: ReplyFault


@dataclass(frozen=True)
class Reply:
    """A raw reply and its cost.

    A prompt that is refused or too long also has a reply, without text or cost. `raw` is the whole
    message as JSON, or the error. `finish_reason` is the server's, "" if unknown; `model` is the
    name in the reply. Token counts are the server's, or estimates if it gives none. `seconds`
    is the duration of the successful request; `asked_at` is in UTC.
    """

    raw: str
    finish_reason: str
    model: str
    input_tokens: int
    output_tokens: int
    seconds: float
    usd: float
    asked_at: str

    @cached_property
    def message(self) -> Message:
        """The parsed reply."""
        return read_message(json.loads(self.raw), self.finish_reason)

    @property
    def text(self) -> str:
        """The answer, "" for none."""
        return self.message.text

    @property
    def fault(self) -> ReplyFault:
        """Why the reply is unusable for any question; "" if it is not."""
        return self.message.fault


def read_completion(content: bytes) -> tuple[str, str, str, int | None, int | None] | None:
    """Message as JSON, finish reason, model, input tokens and output tokens of a chat completion.

    Missing texts are "", missing counts None. Returns None for HTML, an error body or truncated
    JSON.
    """
    try:
        completion = json.loads(content)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        message, finish_reason = choice.get("message"), str(choice.get("finish_reason") or "")
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    if not message and finish_reason.startswith(REFUSED):  # a filter may remove the message
        message = {}
    if not isinstance(message, dict):
        return None
    tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return json.dumps(message), finish_reason, completion.get("model") or "", *tokens


def error_in(response: Any) -> dict[str, Any]:
    """Error fields of an HTTP response; without any, the whole body is the `message`."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    error = body.get("error", body) if isinstance(body, dict) else body
    return error if isinstance(error, dict) else {"message": error}


def _says(response: Any, pattern: str) -> bool:
    """Whether an error's codes or message match; without a message, the whole error."""
    error = error_in(response)
    parts = [error.get(name) for name in ("code", "type", "innererror")]
    words = " ".join(map(str, [*parts, error.get("message", error)]))
    return re.search(pattern, words, re.IGNORECASE) is not None


def fault_of_prompt(response: Any) -> str:
    """Finish reason of a prompt refused with an error.

    "" if the error concerns all prompts, "unknown" if it may be either.
    """
    status = response.status_code
    if (
        status == 413
        or (status in (400, 422, 500) and _says(response, _OVER_LONG))
        or (status == 429 and _says(response, "request too large"))
    ):
        return TOO_LONG
    if status in (400, 403, 422) and _says(response, _FILTERED):
        return REFUSED
    return "unknown" if status in (400, 422) and not _says(response, _FOR_ALL) else ""


def is_used_up(response: Any) -> bool:
    """Whether the quota is used up; a rate limit may say so too, but names a pause."""
    pause = {"retry-after", "retry-after-ms"} & set(response.headers)
    pattern = "insufficient_quota" if pause else f"insufficient_quota|{_USED_UP}"
    return response.status_code == 429 and _says(response, pattern)


def unsupported_parameter(response: Any, parameters: Mapping[str, Any]) -> str:
    """The parameter that the model does not accept, "" for any other error."""
    if response.status_code not in (400, 403, 422) or not _says(response, _UNSUPPORTED):
        return ""
    error = error_in(response)
    if error.get("param") in parameters:
        return str(error["param"])
    words = str(error.get("message", error))
    return next((name for name in parameters if re.search(rf"\b{re.escape(name)}\b", words)), "")


def read_message(message: Mapping[str, Any], finish_reason: str) -> Message:
    """Parse the message of a chat completion.

    Args:
        message: as sent by the server; `content` is a text, null, or a list of parts.
        finish_reason: the server's, "" if unknown.
    """
    content = message.get("content")
    answers, thoughts, refusals = [], [], [_all_text(message.get("refusal"))]
    for part in content if isinstance(content, list) else [content]:
        kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "text"
        if re.search("think|reason", kind):
            thoughts.append(_all_text(part))
        elif kind == "refusal":
            refusals.append(_all_text(part))
        elif kind in ("text", "output_text"):
            answers.append(_all_text(part))
    thoughts += [
        _all_text(message.get(key)) for key in ("reasoning_content", "reasoning", "thinking")
    ]
    # A truncated reply may end in a lone surrogate, which cannot be encoded.
    whole = "".join(answers).encode(errors="replace").decode()
    start, unclosed = _end_of_reasoning(whole)
    text = whole[start:].lstrip() if start else whole
    thoughts.append(_CLOSING.sub("", _OPENING.sub("", whole[:start])).strip())
    fault: ReplyFault = ""
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
    """Start of the answer after blocks of reasoning, and whether the last block is unclosed.

    A block may lack its opening tag, which some chat templates put into the prompt. A block after
    the first words of an answer belongs to the answer.
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


def _all_text(value: Any) -> str:
    """All text in a part and its nested parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_all_text, value))
    if isinstance(value, Mapping):
        keys = ("text", "thinking", "reasoning", "content", "summary", "refusal", "value")
        return "".join(_all_text(value.get(key)) for key in keys)
    return ""
