"""DPO's rejected responses: the world's writer, the stand-in, and a chat model over HTTP."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ScriptedServer, question_of, short_pauses

from cpo.data import Example, render_prefix
from cpo.evaluation.chat import ChatServer
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import Question, ReplyStore
from cpo.evaluation.unhelpful import UnhelpfulError, write_unhelpful
from cpo_suite.world import (
    WorldExample,
    build_world,
    oracle_parts,
    score_of,
    unhelpful_answer,
)
from cpo_suite.world.grammar import split_sentences

KEY_VARIABLE, KEY = "CPO_TEST_KEY", "sk-secret-of-the-test"


def example(
    name: str, instruction: str, response: str, category: str = "open_qa", context: str = ""
) -> Example:
    row = {
        "instruction": instruction, "context": context, "response": response, "category": category
    }  # fmt: skip
    return Example(name, render_prefix(instruction, context), response, category, row)


def of_the_world(pair: WorldExample) -> Example:
    prefix = render_prefix(pair.instruction, pair.context)
    return Example(pair.id, prefix, pair.response, pair.category, pair)


# --- the world's writer --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs() -> list[WorldExample]:
    return list(build_world(0).pairs[::7])


def test_answers_are_fluent_true_and_give_nothing_that_was_asked(pairs: list[WorldExample]) -> None:
    scores: dict[str, list[float]] = {}
    for pair in pairs:
        parts = oracle_parts(pair, unhelpful_answer(pair))
        assert parts["well_formed"] == 1, pair
        assert parts["right"] == 1, pair
        assert parts["complete"] <= 0.5, pair
        score = score_of(parts)
        assert score <= 0.5, pair
        scores.setdefault(pair.category, []).append(score)
    assert len(scores) == 8
    for category, values in scores.items():
        assert statistics.mean(values) < 0.15, category


def test_lists_that_were_asked_for_are_not_given_in_other_words(pairs: list[WorldExample]) -> None:
    lists = [p for p in pairs if p.category == "information_extraction"]
    for pair in lists:
        listed = [a for a in pair.key["units"] if a["any"][0][1] != "people"]  # who are spoken of
        wanted = {f[2] for f in pair.key["facts"] if any(f[1] == a["any"][0][1] for a in listed)}
        assert not wanted & set(re.findall(r"\w+", unhelpful_answer(pair))), pair
    assert len(lists) > 100


def test_it_writes_about_the_prompts_topics_where_it_can(pairs: list[WorldExample]) -> None:
    # The first name that a question about one subject holds is the subject that is answered about.
    plain = [p for p in pairs if p.category == "open_qa" and len(p.key["topics"]) == 1]
    on_topic = [p.key["topics"][0] in unhelpful_answer(p) for p in plain]
    assert len(plain) > 100 and statistics.mean(on_topic) > 0.8


def test_lengths_are_like_those_of_recorded_responses(pairs: list[WorldExample]) -> None:
    answers = [unhelpful_answer(p) for p in pairs]
    sentences = [len(split_sentences(a)) for a in answers]
    assert set(sentences) == {1, 2, 3}
    recorded = [min(3, len(split_sentences(p.response))) for p in pairs]
    assert sentences == recorded
    words = [len(a.split()) for a in answers]
    truth = [len(p.response.split()) for p in pairs]
    assert statistics.mean(words) == pytest.approx(statistics.mean(truth), rel=0.15)
    assert statistics.stdev(words) == pytest.approx(statistics.stdev(truth), rel=0.3)
    assert statistics.correlation(words, truth) > 0.6


def test_it_is_never_the_recorded_or_ideal_answer(pairs: list[WorldExample]) -> None:
    for pair in pairs[::5]:
        first = unhelpful_answer(pair)
        assert first not in (pair.response, pair.ideal)
        # Were that the ideal answer, it would write another.
        assert unhelpful_answer(replace(pair, ideal=first)) != first


def test_an_id_and_a_seed_make_the_answer_and_no_grade_does(
    pairs: list[WorldExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = pairs[::20]
    first = [unhelpful_answer(p, 1) for p in some]

    def graded(*_: Any) -> Any:
        raise AssertionError("the writer asked the oracle")

    oracle = sys.modules["cpo_suite.world.oracle"]  # the package's `oracle` is the judge
    monkeypatch.setattr(oracle, "oracle_parts", graded)
    monkeypatch.setattr(oracle, "_matches", graded)
    assert [unhelpful_answer(p, 1) for p in some] == first
    # Nor does it look at what the oracle looks for.
    blind = [replace(p, key={"seed": p.key["seed"]}) for p in some]
    assert [unhelpful_answer(p, 1) for p in blind] == first
    others = [unhelpful_answer(p, 2) for p in some]
    assert statistics.mean(a != b for a, b in zip(first, others, strict=True)) > 0.8


def test_the_worlds_writer_is_for_the_world(pairs: list[WorldExample], tmp_path: Path) -> None:
    examples = [of_the_world(p) for p in pairs[:5]]
    written = write_unhelpful("world", examples, seed=3, store=tmp_path)
    assert written == [unhelpful_answer(p, 3) for p in pairs[:5]]
    with pytest.raises(UnhelpfulError, match="dolly-1 is not of it"):
        write_unhelpful("world", [example("dolly-1", "Why?", "So.")], seed=0, store=tmp_path)


# --- the stand-in --------------------------------------------------------------------------------


def test_other_responses_are_of_the_category_and_of_another_prompt(tmp_path: Path) -> None:
    rows = [example(f"q{i}", f"Question {i // 2}?", f"Answer {i // 3}.") for i in range(60)]
    rows += [example(f"c{i}", f"Sort {i}.", f"Sorted {i}.", "classification") for i in range(20)]
    answers = write_unhelpful("other_response", rows, seed=0, store=tmp_path)
    assert answers == write_unhelpful("other_response", rows, seed=0, store=tmp_path)
    assert answers != write_unhelpful("other_response", rows, seed=1, store=tmp_path)
    for row, answer in zip(rows, answers, strict=True):
        sources = [r for r in rows if r.continuation == answer and r.category == row.category]
        assert sources and answer != row.continuation
        assert any(source.prefix != row.prefix for source in sources)
    assert len(set(answers)) > 20  # drawn, not the same one for all


def test_a_stand_in_of_an_equal_prompt_or_response_is_refused(tmp_path: Path) -> None:
    alike = [example("a", "Why?", "So."), example("b", "Why?", "No."), example("c", "How?", "So. ")]
    # a may take neither b (its prompt) nor c (its response); b may take c alone, c b alone.
    with pytest.raises(UnhelpfulError, match="^a: no other example of the category 'open_qa'"):
        write_unhelpful("other_response", alike, seed=0, store=tmp_path)
    answers = write_unhelpful("other_response", alike[1:], seed=0, store=tmp_path)
    assert answers == ["So. ", "No."]


def test_unknown_writers_and_a_missing_server_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnhelpfulError, match="other_response, .*chat"):
        write_unhelpful("oracle", [], seed=0, store=tmp_path)
    with pytest.raises(UnhelpfulError, match="ChatServer"):
        write_unhelpful("chat", [], seed=0, store=tmp_path)


# --- a chat model --------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    short_pauses(monkeypatch)
    with ScriptedServer(lambda request: f"Unhelpful: {question_of(request)}") as served:
        yield served


def chat(server: ScriptedServer, **changes: Any) -> ChatServer:
    parameters = {"max_tokens": 64, "temperature": 0.7}
    writer = ChatServer(server.url, "model-1", KEY_VARIABLE, parameters, 1)
    return replace(writer, **changes)


ROWS = [example(f"row-{i}", f"What is {i}?", f"It is {{{i}}}.") for i in range(6)]


def ask(
    writer: ChatServer, folder: Path, rows: list[Example] = ROWS, seed: int = 0
) -> list[str | None]:
    store = folder / "replies.sqlite"
    return write_unhelpful("chat", rows, seed=seed, store=store, server=writer)


def written(folder: Path) -> list[tuple[Question, Reply]]:
    with ReplyStore(folder / "replies.sqlite") as store:
        return list(store.rows("unhelpful response"))


def test_the_request_is_the_papers_template_word_for_word(
    server: ScriptedServer, tmp_path: Path
) -> None:
    rows = [example("v", "When did Virgin Australia start?", "On 31 August 2000."),
            example("w", "Who won?", "Ann {did}.", context="Ann beat Bob.")]  # fmt: skip
    ask(chat(server), tmp_path, rows)
    opening = (
        "Given the ground truth instruction and response, can you generate a not helpful response?"
    )
    assert server.questions == [
        opening + "\n Instruction: When did Virgin Australia start? \n"
        " Response: On 31 August 2000. \n Not helpful response:",
        opening + "\n Instruction: Who won?\nAnn beat Bob. \n"
        " Response: Ann {did}. \n Not helpful response:",
    ]
    request = server.requests[0]
    assert request["messages"] == [{"role": "user", "content": server.questions[0]}]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("model-1", 64, 0.7)
    assert set(server.authorizations) == {f"Bearer {KEY}"}


def test_answers_are_aligned_whatever_order_they_come_in(
    server: ScriptedServer, tmp_path: Path
) -> None:
    ask(chat(server), tmp_path / "alone")
    expected = [f"Unhelpful: {text}" for text in server.questions]
    server.requests.clear()
    assert ask(chat(server, concurrency=4), tmp_path / "at once") == expected
    assert Counter(server.questions) == Counter(text.partition(" ")[2] for text in expected)
    # An example that comes twice is asked for once.
    server.requests.clear()
    assert ask(chat(server), tmp_path / "twice", [ROWS[0], ROWS[1], ROWS[0]]) == [
        expected[0], expected[1], expected[0]
    ]  # fmt: skip
    assert len(server.requests) == 2


def test_after_an_abort_only_the_missing_are_asked(server: ScriptedServer, tmp_path: Path) -> None:
    good = server.answer
    server.answer = lambda request: (
        Answer(status=404) if "What is 3?" in question_of(request) else good(request)
    )
    with pytest.raises(UnhelpfulError, match="answered 404: no model 'model-1'"):
        ask(chat(server), tmp_path)
    assert [question.item for question, _ in written(tmp_path)] == ["row-0", "row-1", "row-2"]
    assert len(server.requests) == 4  # nothing after the refusal
    server.answer = good
    server.requests.clear()
    answers = ask(chat(server), tmp_path)
    assert "What is 3?" in server.questions[0] and len(server.requests) == 3
    assert all(f"What is {i}?" in str(answers[i]) for i in range(6))
    assert [question.item for question, _ in written(tmp_path)] == [row.id for row in ROWS]
    # All there: no request, no key needed. Another model or temperature is another question.
    server.requests.clear()
    assert ask(chat(server, api_key_variable="CPO_UNSET"), tmp_path) == answers
    assert not server.requests
    ask(chat(server, parameters={"max_tokens": 64, "temperature": 0.1}), tmp_path)
    ask(chat(server, model="model-2"), tmp_path)
    assert len(server.requests) == 12


def test_another_seed_has_replies_of_its_own(server: ScriptedServer, tmp_path: Path) -> None:
    numbers = iter(range(100))
    server.answer = lambda request: f"Reply {next(numbers)}."
    responses = [ask(chat(server), tmp_path, seed=seed) for seed in (0, 1)]
    assert len({*responses[0], *responses[1]}) == 12 == len(server.requests)
    assert [ask(chat(server), tmp_path, seed=seed) for seed in (0, 1)] == responses
    assert len(server.requests) == 12


def test_too_many_requests_are_sent_again(server: ScriptedServer, tmp_path: Path) -> None:
    server.first.extend([Answer(status=429), Answer(status=503)])
    server.answer = lambda request: "Some do."
    assert ask(chat(server), tmp_path, ROWS[:1]) == ["Some do."]
    assert len(server.requests) == 3


def test_a_refused_key_ends_it_at_once(server: ScriptedServer, tmp_path: Path) -> None:
    server.answer = lambda request: Answer(status=401, error={"message": f"no: {KEY}"})
    with pytest.raises(UnhelpfulError, match=f"the key in {KEY_VARIABLE} is refused") as caught:
        ask(chat(server, concurrency=4), tmp_path)
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_other_refusals_are_quoted_without_the_key(server: ScriptedServer, tmp_path: Path) -> None:
    server.answer = lambda request: Answer(status=400, error={"message": f"no: {KEY}"})
    with pytest.raises(UnhelpfulError, match=r"answered 400: .*no: \*\*\*") as caught:
        ask(chat(server), tmp_path)
    assert KEY not in str(caught.value) and len(server.requests) == 1


def test_a_missing_key_is_named_before_any_request(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(UnhelpfulError, match=f"variable {KEY_VARIABLE} is not set"):
        ask(chat(server), tmp_path)
    assert not server.requests
    assert len(ask(chat(server, api_key_variable=""), tmp_path)) == 6  # a server without keys


def test_nobody_there_is_said(tmp_path: Path) -> None:
    writer = ChatServer("http://127.0.0.1:1/v1", "model-1", "")
    with pytest.raises(UnhelpfulError, match="cannot be reached"):
        ask(writer, tmp_path)


@pytest.mark.parametrize("bad", [None, "", "  \n", " It is\n{0}. "])
def test_nothing_and_the_truth_are_asked_for_again_once(
    server: ScriptedServer, tmp_path: Path, bad: str | None
) -> None:
    texts = iter([bad, "Numbers are many."])
    server.answer = lambda request: next(texts)
    assert ask(chat(server), tmp_path / "better", ROWS[:1]) == ["Numbers are many."]
    server.answer = lambda request: bad if "What is 0?" in question_of(request) else "Fine."
    server.requests.clear()
    for _ in range(2):  # and then no more, in this run or a later one
        assert ask(chat(server), tmp_path / "bad", [ROWS[1], ROWS[0]]) == ["Fine.", None]
        assert len(server.requests) == 3
    texts_kept = {question.item: reply.text for question, reply in written(tmp_path / "bad")}
    assert texts_kept == {"row-1": "Fine.", "row-0": bad or ""}


def of_no_use(kind: str) -> Answer:
    return {
        "refused": Answer(status=400, error={"code": "content_filter", "message": f"no: {KEY}"}),
        "filtered": Answer("Things", finish_reason="content_filter"),
        "too long": Answer(status=400, error={"code": "context_length_exceeded"}),
        "cut": Answer("Things exist, and", finish_reason="length"),
        "thinking": Answer("<think>\nThe user wants"),
        "empty": Answer(None),
    }[kind]


@pytest.mark.parametrize("kind", ["refused", "filtered", "too long", "cut", "thinking", "empty"])
def test_a_response_that_cannot_be_used_is_missing_and_the_others_are_there(
    server: ScriptedServer, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = server.answer
    server.answer = lambda request: (
        of_no_use(kind) if "What is 3?" in question_of(request) else good(request)
    )
    responses = ask(chat(server, concurrency=4), tmp_path)
    assert responses[3] is None and all(responses[:3]) and all(responses[4:])
    assert "1 of 6 unhelpful responses are missing (1 " in capsys.readouterr().out
    asked = len(server.requests)
    assert ask(chat(server), tmp_path) == responses and len(server.requests) == asked
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_reasoning_is_no_part_of_a_response(server: ScriptedServer, tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Things exist."}]
    replies = iter([
        Answer("<think>\nThe user wants ...</think>\n\nThings exist."),
        Answer(parts),
        Answer("Things exist.", message={"reasoning_content": "Hm."}),
    ])  # fmt: skip
    server.answer = lambda request: next(replies)
    assert ask(chat(server), tmp_path, ROWS[:3]) == ["Things exist."] * 3
    contents = [json.loads(reply.raw)["content"] for _, reply in written(tmp_path)]
    assert contents[0].startswith("<think>\nThe user wants") and contents[1] == parts


@pytest.mark.parametrize("kind", ["refused", "too long", "cut", "thinking", "empty"])
def test_a_writer_whose_first_replies_are_of_no_use_is_stopped(
    server: ScriptedServer, tmp_path: Path, kind: str
) -> None:
    rows = [example(f"row-{i}", f"What is {i}?", f"It is {i}.") for i in range(30)]
    server.answer = lambda request: of_no_use(kind)
    writer = chat(server, concurrency=4, setting="unhelpful.server")
    with pytest.raises(UnhelpfulError, match="none of the first 8 replies is usable") as said:
        ask(writer, tmp_path, rows)
    assert len(server.requests) == 8 * (2 if kind == "empty" else 1)
    assert len(written(tmp_path)) == 8
    if kind == "cut":
        assert "Raise unhelpful.server.parameters.max_tokens" in str(said.value)
    # Other parameters are another question; what was of no use is not in the way.
    server.answer = lambda request: "Things exist."
    assert ask(replace(writer, parameters={"max_tokens": 500}), tmp_path, rows) == (
        ["Things exist."] * 30
    )


def test_without_any_response_it_does_not_go_on(server: ScriptedServer, tmp_path: Path) -> None:
    server.answer = lambda request: of_no_use("refused")
    for _ in range(2):
        with pytest.raises(UnhelpfulError, match=r"2 of 2 .* are missing \(2 refused\)"):
            ask(chat(server), tmp_path, ROWS[:2])
    assert len(server.requests) == 2


def test_no_more_requests_than_were_allowed(server: ScriptedServer, tmp_path: Path) -> None:
    with pytest.raises(UnhelpfulError, match="6 requests, .* and max_requests is 5"):
        ask(chat(server, max_requests=5), tmp_path)
    assert not server.requests
    server.answer = lambda request: ""
    with pytest.raises(UnhelpfulError, match="1 requests to .* max_requests is 1"):
        ask(chat(server, max_requests=1), tmp_path, ROWS[:1])
    assert len(server.requests) == 1


def test_the_key_is_written_nowhere(server: ScriptedServer, tmp_path: Path) -> None:
    writer = chat(server)
    ask(writer, tmp_path)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in content for content in [*files, repr(writer).encode()])
