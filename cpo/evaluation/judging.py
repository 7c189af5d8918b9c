"""Judges compare a model's responses with the recorded ones, pair by pair.

A judge sees two responses as A and B and does not know which is the model's. A hash of the prompt's
id chooses the model's side, the same for every model and run. With both orders, each pair is shown
again with the sides exchanged.
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
from cpo.evaluation.statistics import mean_over_seeds
from cpo.registry import Registry

Side = Literal["A", "B"]
_OTHER: dict[Side, Side] = {"A": "B", "B": "A"}


class JudgeError(ValueError):
    """A judge or its input is invalid. The message gives the reason and the remedy."""


class Judged(Protocol):
    """The prompt as seen by a judge; `cpo.data.Example` conforms."""

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
    """Two responses to a prompt; `model_side` is recorded but hidden from the judge."""

    example: Judged
    response_a: str
    response_b: str
    model_side: Side

    def exchanged(self) -> Pair:
        """The same pair with the sides exchanged."""
        return Pair(self.example, self.response_b, self.response_a, _OTHER[self.model_side])


class Judge(Protocol):
    """A judge returns the verdicts on pairs, in their order.

    `name` appears in every table. `prompt` is the hash of the prompt template, "" if there is none.
    An optional method `why_invalid(pairs)` gives the kinds of invalid verdicts on judged pairs, ""
    for valid ones.
    """

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    def __call__(self, pairs: Sequence[Pair], /) -> list[Verdict]: ...


Rule = Callable[[Any, str, str], Verdict]  # of an example, response A and response B


@dataclass(frozen=True)
class RuleJudge:
    """A judge that applies a function to each pair."""

    name: str
    rule: Rule
    prompt: str = ""

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [self.rule(pair.example, pair.response_a, pair.response_b) for pair in pairs]


RULES: Registry[Rule] = Registry("judge", error=JudgeError)


def register_judge(name: str) -> Callable[[Rule], Rule]:
    """Decorator: register a function as the judge `name`, replacing an earlier one of yours.

    Raises `JudgeError` if the name belongs to the project.
    """
    return RULES.register(name)


def judge_named(name: str) -> Judge:
    """The registered judge. Raises `JudgeError` with the nearest name if there is none."""
    return RuleJudge(name, RULES[name])


def rule_identity(name: str) -> str:
    """A rule's name for artifact keys, with a source hash if it is defined outside the project."""
    return RULES.identity(name)


@register_judge("longest")
def longest(example: Judged, response_a: str, response_b: str) -> Verdict:
    """Control: the longer response wins. Shows how much of a win rate is length."""
    if len(response_a) == len(response_b):
        return "tie"
    return "A" if len(response_a) > len(response_b) else "B"


@register_judge("random")
def random(example: Judged, response_a: str, response_b: str) -> Verdict:
    """Control: a coin seeded by the prompt's id. The expected win rate is 0.5."""
    return "A" if _coin("judge", example.id) else "B"


def model_side(item_id: str, seed: int = 0) -> Side:
    """Side of the model's response: balanced over ids, fixed for an id and a seed."""
    return "A" if _coin("order", str(seed), item_id) else "B"


def points(verdict: Verdict, side: Side) -> float:
    """Points of the model on `side`: win 1, tie 0.5, loss 0, invalid NaN."""
    if verdict == "invalid":
        return math.nan
    if verdict == "tie":
        return 0.5
    return 1.0 if verdict == side else 0.0


@dataclass(frozen=True)
class Verdicts:
    """One judge's verdicts on one model's responses, in the prompts' order.

    `verdicts` belong to the order of `model_sides`. `exchanged` has the sides exchanged; it is
    empty if only one order was judged. `prompt` is the hash of the judge's template, `judged` the
    UTC date. `marked` counts responses that contain a template heading. `why` gives the kind of
    each invalid verdict (`judge_prompts.INVALID_KINDS`), "" for valid ones, first of `verdicts`,
    then of `exchanged`; it is empty if the judge gives no kinds.
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
            raise JudgeError("ids, sides and verdicts must have the same length")
        for item, verdict in zip(self.ids * 2, (*self.verdicts, *self.exchanged), strict=False):
            if verdict not in get_args(Verdict):
                raise JudgeError(
                    f"the judge '{self.judge}' returned {verdict!r} for {item}: a verdict is one "
                    f"of {', '.join(get_args(Verdict))}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def points(self) -> npt.NDArray[np.float64]:
        """The model's points per prompt, `[n]`: 1, 0.5, 0, or NaN where the verdict is invalid.

        With both orders, the mean over the valid ones, in which position bias cancels. A single
        valid verdict counts: leaving it out would select prompts by the judge's failures.
        """
        return mean_over_seeds(self.by_order)

    @property
    def by_order(self) -> list[npt.NDArray[np.float64]]:
        """Points per prompt in each judged order: one or two arrays `[n]`."""
        orders = [list(map(points, self.verdicts, self.model_sides))]
        if self.exchanged:
            sides = [_OTHER[side] for side in self.model_sides]
            orders.append(list(map(points, self.exchanged, sides)))
        return [np.array(order) for order in orders]

    @property
    def invalid(self) -> int:
        """Prompts without a valid verdict in any order."""
        return int(np.isnan(self.points).sum())

    @property
    def valid(self) -> int:
        """Prompts with a valid verdict, ties included."""
        return len(self) - self.invalid

    @property
    def ties(self) -> int:
        """Prompts with half a point: a tie, or with both orders a win and a loss."""
        return int((self.points == 0.5).sum())

    @property
    def invalid_kinds(self) -> Counter[str]:
        """Number of invalid verdicts of each kind, in either order."""
        verdicts = (*self.verdicts, *self.exchanged)
        kinds = zip(verdicts, self.why or ("",) * len(verdicts), strict=True)
        return Counter(kind or "unclear" for verdict, kind in kinds if verdict == "invalid")

    def to_jsonl(self, path: Path) -> None:
        """Write a header line, then a line per prompt.

        A prompt's line has `id`, `model_side`, `verdict`, `exchanged` (null with one order),
        `points` (null if invalid) and, if the judge gives it, `why`: one text per order.
        """
        header = {name: getattr(self, name) for name in ("judge", "prompt", "judged", "marked")}
        lines = [header]
        for row, item in enumerate(self.ids):
            row_points = float(self.points[row])
            why = {"why": self.why[row :: len(self)]} if self.why else {}
            lines.append(
                {
                    "id": item,
                    "model_side": self.model_sides[row],
                    "verdict": self.verdicts[row],
                    "exchanged": self.exchanged[row] if self.exchanged else None,
                    "points": None if math.isnan(row_points) else row_points,
                    **why,
                }
            )
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: Path) -> Verdicts:
        """Read a file of `to_jsonl`; points are recomputed from the verdicts.

        Raises `JudgeError` for a file without the header line.
        """
        header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() or ["{}"])
        why = zip(*(row.get("why", ()) for row in rows), strict=True)  # by order
        if "judge" not in header:
            raise JudgeError(f"{path} holds no verdicts: its first line does not name a judge")
        return cls(
            ids=tuple(row["id"] for row in rows),
            model_sides=tuple(row["model_side"] for row in rows),
            verdicts=tuple(row["verdict"] for row in rows),
            exchanged=tuple(row["exchanged"] for row in rows if row["exchanged"] is not None),
            why=tuple(kind for order in why for kind in order),
            **header,
        )


def judge_responses(
    judge: Judge | str,
    examples: Sequence[Judged],
    responses: Sequence[str],
    seed: int = 0,
    orders: int = 1,
) -> Verdicts:
    """Judge each response against the recorded one of its example, on the side of `model_side`.

    Args:
        judge: a judge, or the name of a registered one.
        examples: prompts with the recorded response, the ground truth, as `continuation`.
        responses: the model's, aligned with `examples`.
        seed: of the model's sides.
        orders: 2 to show each pair again with the sides exchanged, at twice the cost.

    Raises:
        JudgeError: an unknown judge, lists of different length, or an unknown verdict.
    """
    judge = judge_named(judge) if isinstance(judge, str) else judge
    if len(examples) != len(responses):
        raise JudgeError(f"{len(responses)} responses to {len(examples)} prompts")
    if orders not in (1, 2):
        raise JudgeError(f"orders is 1 or 2, not {orders}")
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
