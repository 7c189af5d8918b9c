"""Judges: which of two responses is better, and what a model wins against the recorded ones.

A judge sees two responses as A and B and does not know which is the model's. Which side that is
comes from a hash of the prompt's id, so that it is the same for every model and in every run; with
both orders, each pair is shown a second time with the sides exchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from cpo.evaluation.judge_prompts import Verdict, holds_markers
from cpo.evaluation.statistics import both_orders
from cpo.registry import Registry

Side = Literal["A", "B"]
_OTHER: dict[Side, Side] = {"A": "B", "B": "A"}


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


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt as a judge is shown them; `model_side` is not for it to see, but
    for the record."""

    example: Judged
    response_a: str
    response_b: str
    model_side: Side

    def exchanged(self) -> Pair:
        """The same two, each on the other side."""
        return Pair(self.example, self.response_b, self.response_a, _OTHER[self.model_side])


class Judge(Protocol):
    """Verdicts on pairs, in their order. `name` stands in every table, `prompt` is the hash of what
    is asked, "" where nothing is. A judge may have a method `why_invalid` too, which says of pairs
    that it has judged why their verdicts are invalid, "" for those that are not."""

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    def __call__(self, pairs: Sequence[Pair], /) -> list[Verdict]: ...


class Rule(Protocol):
    """A judge as a plain function of a prompt and two responses to it."""

    def __call__(self, example: Any, response_a: str, response_b: str, /) -> Verdict: ...


@dataclass(frozen=True)
class RuleJudge:
    """A judge that asks nobody: a function for each pair."""

    name: str
    rule: Rule
    prompt: str = ""

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [self.rule(pair.example, pair.response_a, pair.response_b) for pair in pairs]


RULES: Registry[Rule] = Registry("judge", error=JudgeError)


def register_judge(name: str) -> Callable[[Rule], Rule]:
    """Decorator: makes a function a judge known by `name`, in place of one of your own that was.
    Raises `JudgeError` where the name is one of the project's."""
    return RULES.register(name)


def judge_named(name: str) -> Judge:
    """The judge of a registered function. Raises `JudgeError`, naming the nearest one."""
    return RuleJudge(name, RULES[name])


def rule_identity(name: str) -> str:
    """What names a rule in a recipe: its name here, with the hash of its source if it is defined
    elsewhere, as in a notebook's cell."""
    return RULES.identity(name)


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
    """What one judge said of one model's responses, in the prompts' order.

    `verdicts` are those in the order that `model_sides` says, `exchanged` those with the sides
    exchanged, empty where only one order was judged. `prompt` is the hash of the judge's template,
    `judged` the UTC date; `marked` counts responses that hold a part of the template. `why` says of
    `verdicts`, and then of `exchanged`, why one is invalid (`judge_prompts.INVALID_KINDS`), "" for
    the others; it is empty where the judge does not say.
    """

    judge: str
    ids: tuple[str, ...]
    model_sides: tuple[Side, ...]
    verdicts: tuple[Verdict, ...]
    exchanged: tuple[Verdict, ...] = ()
    prompt: str = ""
    judged: str = ""
    marked: int = 0
    why: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (
            not len(self.ids) == len(self.model_sides) == len(self.verdicts)
            or (self.exchanged and len(self.exchanged) != len(self.ids))
            or (self.why and len(self.why) != len(self.verdicts) + len(self.exchanged))
        ):
            raise JudgeError("ids, sides and verdicts must be as many")
        for item, verdict in zip(self.ids * 2, (*self.verdicts, *self.exchanged), strict=False):
            if verdict not in get_args(Verdict):
                raise JudgeError(
                    f"the judge '{self.judge}' answered {verdict!r} to {item}: a verdict is one of "
                    f"{', '.join(get_args(Verdict))}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def points(self) -> npt.NDArray[np.float64]:
        """The model's points per prompt, `[n]`: 1, 0.5, 0, or NaN where the verdict is invalid.

        With both orders, the mean of the two, so that a model which wins on one side only has 0.5;
        a prompt with one valid verdict has that one's.
        """
        orders = self.by_order
        return both_orders(*orders) if len(orders) == 2 else orders[0]

    @property
    def by_order(self) -> list[npt.NDArray[np.float64]]:
        """Points per prompt in each order that was judged, one or two arrays `[n]`."""
        orders = [list(map(points, self.verdicts, self.model_sides))]
        if self.exchanged:
            sides = [_OTHER[side] for side in self.model_sides]
            orders.append(list(map(points, self.exchanged, sides)))
        return [np.array(order) for order in orders]

    @property
    def invalid(self) -> int:
        """Prompts without a verdict in any order."""
        return int(np.isnan(self.points).sum())

    @property
    def valid(self) -> int:
        """Prompts with a verdict, ties included."""
        return len(self) - self.invalid

    @property
    def ties(self) -> int:
        """Prompts where neither response was better; with both orders, all with half a point."""
        return int((self.points == 0.5).sum())

    @property
    def invalid_kinds(self) -> Counter[str]:
        """How many verdicts, in either order, are invalid for which reason."""
        verdicts = (*self.verdicts, *self.exchanged)
        reasons = zip(verdicts, self.why or ("",) * len(verdicts), strict=True)
        return Counter(why or "unclear" for verdict, why in reasons if verdict == "invalid")

    def to_jsonl(self, path: Path) -> None:
        """A line about the judging, then one per prompt: id, model_side, verdict, exchanged (null
        in one order), points (null where invalid), and `why` where the judge says: one text for
        each order."""
        about = {name: getattr(self, name) for name in ("judge", "prompt", "judged", "marked")}
        lines = [about]
        for row, item in enumerate(self.ids):
            won = float(self.points[row])
            why = {"why": self.why[row :: len(self)]} if self.why else {}
            lines.append(
                {
                    "id": item,
                    "model_side": self.model_sides[row],
                    "verdict": self.verdicts[row],
                    "exchanged": self.exchanged[row] if self.exchanged else None,
                    "points": None if math.isnan(won) else won,
                    **why,
                }
            )
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: Path) -> Verdicts:
        """What `to_jsonl` wrote; points are counted again from the verdicts.

        Raises `JudgeError` for a file that does not begin with a line about the judging.
        """
        about, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() or ["{}"])
        why = zip(*(row.get("why", ()) for row in rows), strict=True)  # by order
        if "judge" not in about:
            raise JudgeError(f"{path} holds no verdicts: its first line does not name a judge")
        return cls(
            ids=tuple(row["id"] for row in rows),
            model_sides=tuple(row["model_side"] for row in rows),
            verdicts=tuple(row["verdict"] for row in rows),
            exchanged=tuple(row["exchanged"] for row in rows if row["exchanged"] is not None),
            why=tuple(reason for order in why for reason in order),
            **about,
        )


def judge_responses(
    judge: Judge | str,
    examples: Sequence[Judged],
    responses: Sequence[str],
    seed: int = 0,
    orders: int = 1,
) -> Verdicts:
    """Each response against the recorded one of its example, in an order drawn by the example's id.

    Args:
        judge: one, or the name of a registered function.
        examples: whose `continuation` is the recorded response, the ground truth.
        responses: the model's, aligned with `examples`.
        seed: of the order in which the judge sees the two.
        orders: 2 to show each pair with the sides exchanged, too, at twice the price.

    Raises:
        JudgeError: an unknown judge, lists of different length, or an answer that is no verdict.
    """
    judge = judge_named(judge) if isinstance(judge, str) else judge
    if len(examples) != len(responses):
        raise JudgeError(f"{len(responses)} responses to {len(examples)} prompts")
    if orders not in (1, 2):
        raise JudgeError(f"a pair has one order or both: orders is 1 or 2, not {orders}")
    pairs = []
    for example, response in zip(examples, responses, strict=True):
        pair = Pair(example, response, example.continuation, "A")
        pairs.append(pair if model_side(example.id, seed) == "A" else pair.exchanged())
    shown = pairs + [pair.exchanged() for pair in pairs if orders == 2]
    verdicts = tuple(judge(shown))
    if len(verdicts) != len(shown):
        raise JudgeError(f"the judge '{judge.name}' gave {len(verdicts)} verdicts on {len(shown)}")
    why_invalid = getattr(judge, "why_invalid", None)
    return Verdicts(
        judge=judge.name,
        ids=tuple(pair.example.id for pair in pairs),
        model_sides=tuple(pair.model_side for pair in pairs),
        verdicts=verdicts[: len(pairs)],
        exchanged=verdicts[len(pairs) :],
        prompt=judge.prompt,
        judged=datetime.now(UTC).date().isoformat(),
        marked=sum(map(holds_markers, responses)),
        why=tuple(why_invalid(shown)) if why_invalid else (),
    )


def _coin(*parts: str) -> bool:
    return hashlib.sha256("\0".join(parts).encode()).digest()[0] % 2 == 0
