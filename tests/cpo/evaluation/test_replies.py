"""Messages of chat models, in the shapes that servers send: answer, reasoning, and faults."""

from __future__ import annotations

from typing import Any

import pytest

from cpo.evaluation.replies import read_message

THINKING = {"type": "thinking", "thinking": "Is it A?"}
MISTRAL = {"type": "thinking", "thinking": [{"type": "text", "text": "Is it A?"}]}


@pytest.mark.parametrize(
    "content",
    [
        "B",
        [{"type": "text", "text": "B"}],
        ["B"],
        [THINKING, {"type": "text", "text": "B"}],
        [MISTRAL, {"type": "text", "text": "B"}],
        [{"type": "reasoning", "text": "Is it A?"}, {"type": "output_text", "text": "B"}],
        "<think>Is it A?</think>B",
        "<think>\nIs it A?\n</think>\n\nB",
        "\n<think>Is it A?</think> B",
        "<think></think>\n\nB",
        "<thinking>Is it A?</thinking>B",
        "<seed:think>Is it A?</seed:think>B",
        "[THINK]Is it A?[/THINK]B",
        "◁think▷Is it A?◁/think▷B",
        "Is it A?</think>B",  # a template that ends in the opening tag
        "<think>Is it</think><think> A?</think>B",
        "<think>Is it <think>A?</think> Hm.</think>B",
    ],
)
def test_the_answer_is_what_stands_behind_the_reasoning(content: Any) -> None:
    read = read_message({"content": content}, "stop")
    assert (read.text, read.fault) == ("B", "")
    assert read.reasoning == "" or "A" not in read.text
    assert ("A?" in read.reasoning) == ("A?" in str(content))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own(field: str) -> None:
    read = read_message({"content": "B", field: "Is it A?"}, "stop")
    assert (read.text, read.reasoning, read.fault) == ("B", "Is it A?", "")


def test_reasoning_that_is_sent_twice_is_kept_once() -> None:
    twice = {"content": "B", "reasoning": "Is it A?", "reasoning_content": "Is it A?"}
    assert read_message(twice, "stop").reasoning == "Is it A?"


@pytest.mark.parametrize(
    "text",
    [
        " A \n",
        "Write <think> in front.",
        "First this. <think>That.</think> Then this.",
        "a < b > c",
    ],
)
def test_a_text_without_reasoning_in_front_stays_as_it_is(text: str) -> None:
    read = read_message({"content": text}, "stop")
    assert (read.text, read.reasoning, read.fault) == (text, "", "")


@pytest.mark.parametrize(
    ("message", "finish_reason", "fault"),
    [
        ({"content": "A"}, "", ""),  # a server that does not say
        ({"content": "A"}, "length", "cut"),
        ({"content": "Response A is better in terms of style,"}, "length", "cut"),
        ({"content": None}, "length", "cut"),
        ({"content": None, "reasoning_content": "Is it"}, "length", "cut"),
        ({"content": "A"}, "MAX_TOKENS", "cut"),
        ({"content": "A"}, "abort", "cut"),
        ({"content": "<think>\nOkay, Response A is better. Now for fact"}, "stop", "cut"),
        ({"content": "<think>Okay, Response A"}, "", "cut"),
        ({"content": None}, "stop", "empty"),
        ({"content": " \n"}, "stop", "empty"),
        ({"content": []}, "stop", "empty"),
        ({}, "tool_calls", "empty"),
        ({"content": [THINKING]}, "stop", "empty"),
        ({"content": "<think>So it is.</think>"}, "stop", "empty"),
        ({"content": None}, "content_filter", "refused"),
        ({"content": "Response A is"}, "content_filter", "refused"),
        ({"content": None}, "content_filter: PROHIBITED_CONTENT", "refused"),
        ({"content": None, "refusal": "I can't."}, "stop", "refused"),
        ({"content": [{"type": "refusal", "refusal": "I can't."}]}, "stop", "refused"),
        ({}, "context_length_exceeded", "too long"),
    ],
)
def test_what_is_wrong_with_a_reply(message: Any, finish_reason: str, fault: str) -> None:
    assert read_message(message, finish_reason).fault == fault


def test_an_unclosed_block_holds_no_answer() -> None:
    read = read_message({"content": "<think>Response A is better"}, "length")
    assert (read.text, read.reasoning) == ("", "Response A is better")


def test_a_text_can_be_stored() -> None:
    half = read_message({"content": [{"type": "text", "text": "A\ud83d"}]}, "stop")
    assert half.text.encode() == b"A?"
