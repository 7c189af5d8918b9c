"""Judges: which of two responses is better, and what a model wins against the recorded ones.

A judge sees two responses as A and B and does not know which is the model's. Which side that is
comes from a hash of the prompt's id, so that it is the same for every model and in every run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from cpo.profiles import nearest
from cpo.world import WorldArticle, WorldExample, oracle_score

Side = Literal["A", "B"]
Verdict = Literal["A", "B", "tie", "invalid"]

# Grades of the oracle that are closer than this are a tie.
TIE_MARGIN = 0.02


class JudgeError(ValueError):
    """A judge that cannot judge what it is given; the message says why and what to do."""


class Judged(Protocol):
    """What a judge may know of a prompt; `cpo.data.Example` is one."""

    @property
    def id(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def continuation(self) -> str: ...
    @property
    def source(self) -> Any: ...


class Judge(Protocol):
    """Any function of a prompt and two responses to it, blind to where they come from."""

    def __call__(self, example: Any, response_a: str, response_b: str, /) -> Verdict: ...


JUDGES: dict[str, Judge] = {}


def register_judge(name: str) -> Callable[[Judge], Judge]:
    """Decorator: makes a judge known by `name`. Raises `JudgeError` where the name is taken."""

    def register(judge: Judge) -> Judge:
        if name in JUDGES:
            raise JudgeError(f"there is a judge '{name}' already; choose another name")
        JUDGES[name] = judge
        return judge

    return register


def judge_named(name: str) -> Judge:
    """The registered judge `name`. Raises `JudgeError`, naming the nearest one."""
    if name not in JUDGES:
        known = ", ".join(JUDGES)
        raise JudgeError(f"unknown judge '{name}'.{nearest(name, JUDGES)} Known: {known}.")
    return JUDGES[name]


@register_judge("oracle")
def oracle(example: Judged, response_a: str, response_b: str) -> Verdict:
    """The response that the world's oracle grades higher; a tie within 0.02.

    Raises:
        JudgeError: the example is not of the embedded world, whose truth alone the oracle knows.
    """
    if not isinstance(example.source, (WorldExample, WorldArticle)):
        raise JudgeError(
            f"the oracle knows the embedded world alone, and {example.id} is not of it: use "
            "another judge for real data (judge.kind in the profile)"
        )
    a, b = (
        oracle_score(example.source, response, example.prefix)
        for response in (response_a, response_b)
    )
    # Grades are products of small fractions: without rounding, 0.02 apart could come out as more.
    if round(abs(a - b), 9) <= TIE_MARGIN:
        return "tie"
    return "A" if a > b else "B"


@register_judge("longest")
def longest(example: Judged, response_a: str, response_b: str) -> Verdict:
    """A control: the longer response, whatever it says. Shows how much of a win rate is length."""
    if len(response_a) == len(response_b):
        return "tie"
    return "A" if len(response_a) > len(response_b) else "B"


@register_judge("random")
def random(example: Judged, response_a: str, response_b: str) -> Verdict:
    """A control: a coin thrown by the prompt's id. Any model has to come out at 0.5."""
    return "A" if _coin("judge", example.id) else "B"


def model_side(item_id: str, seed: int = 0) -> Side:
    """On which side the model's response is shown: fair over ids, fixed for an id and a seed."""
    return "A" if _coin("order", str(seed), item_id) else "B"


def points(verdict: Verdict, side: Side) -> float:
    """What the model on `side` gets: win 1, tie 0.5, loss 0, and NaN where there is no verdict."""
    if verdict == "invalid":
        return math.nan
    if verdict == "tie":
        return 0.5
    return 1.0 if verdict == side else 0.0


@dataclass(frozen=True)
class Verdicts:
    """What one judge said of one model's responses, in the prompts' order."""

    judge: str
    ids: tuple[str, ...]
    model_sides: tuple[Side, ...]
    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.model_sides) == len(self.verdicts):
            raise JudgeError("ids, sides and verdicts must be as many")
        for item, verdict in zip(self.ids, self.verdicts, strict=True):
            if verdict not in get_args(Verdict):
                raise JudgeError(
                    f"the judge '{self.judge}' answered {verdict!r} to {item}: a verdict is one of "
                    f"{', '.join(get_args(Verdict))}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def points(self) -> npt.NDArray[np.float64]:
        """The model's points per prompt, `[n]`: 1, 0.5, 0, or NaN where the verdict is invalid."""
        pairs = zip(self.verdicts, self.model_sides, strict=True)
        return np.array([points(*pair) for pair in pairs])

    @property
    def invalid(self) -> int:
        """Prompts without a verdict."""
        return self.verdicts.count("invalid")

    @property
    def valid(self) -> int:
        """Prompts with a verdict, ties included."""
        return len(self) - self.invalid

    @property
    def ties(self) -> int:
        """Prompts where neither response was better."""
        return self.verdicts.count("tie")

    def to_jsonl(self, path: Path) -> None:
        """One line per prompt: id, judge, model_side, verdict, points (null where invalid)."""
        with path.open("w", encoding="utf-8") as lines:
            for item, side, verdict in zip(self.ids, self.model_sides, self.verdicts, strict=True):
                won = points(verdict, side)
                line = {
                    "id": item,
                    "judge": self.judge,
                    "model_side": side,
                    "verdict": verdict,
                    "points": None if math.isnan(won) else won,
                }
                lines.write(json.dumps(line) + "\n")

    @classmethod
    def from_jsonl(cls, path: Path) -> Verdicts:
        """What `to_jsonl` wrote; points are counted again from the verdicts.

        Raises `JudgeError` for a file without verdicts or with those of several judges.
        """
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line]
        judges = {row["judge"] for row in rows}
        if len(judges) != 1:
            raise JudgeError(f"{path} holds the verdicts of {len(judges)} judges, not of one")
        return cls(
            judges.pop(),
            tuple(row["id"] for row in rows),
            tuple(row["model_side"] for row in rows),
            tuple(row["verdict"] for row in rows),
        )


def judge_responses(
    name: str, examples: Sequence[Judged], responses: Sequence[str], seed: int = 0
) -> Verdicts:
    """Each response against the recorded one of its example, in an order drawn by the example's id.

    Args:
        name: of a registered judge.
        examples: whose `continuation` is the recorded response, the ground truth.
        responses: the model's, aligned with `examples`.
        seed: of the order in which the judge sees the two.

    Raises:
        JudgeError: an unknown judge, lists of different length, or an answer that is no verdict.
    """
    judge = judge_named(name)
    if len(examples) != len(responses):
        raise JudgeError(f"{len(responses)} responses to {len(examples)} prompts")
    sides = tuple(model_side(example.id, seed) for example in examples)
    verdicts = tuple(
        judge(
            example,
            *(
                (response, example.continuation)
                if side == "A"
                else (example.continuation, response)
            ),
        )
        for example, response, side in zip(examples, responses, sides, strict=True)
    )
    return Verdicts(name, tuple(example.id for example in examples), sides, verdicts)


def _coin(*parts: str) -> bool:
    return hashlib.sha256("\0".join(parts).encode()).digest()[0] % 2 == 0
