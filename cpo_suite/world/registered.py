"""What the world adds to the registries of `cpo`: a corpus, a writer, and the oracle as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpo.data import SOURCES, Example
from cpo.evaluation.judge_prompts import Verdict
from cpo.evaluation.judging import Judged, JudgeError, register_judge
from cpo.evaluation.unhelpful import OFFLINE_WRITERS, UnhelpfulError

from .corpus import World, build_world
from .oracle import WorldArticle, WorldExample, oracle_score
from .unhelpful import unhelpful_answer

TIE_MARGIN = 0.02  # grades of the oracle that are closer than this are a tie


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


def _world_response(example: Example, seed: int) -> str:
    if not isinstance(example.source, WorldExample):
        raise UnhelpfulError(
            f"the writer 'world' knows the embedded world alone, and {example.id} is not of it: "
            "use 'chat', or offline the stand-in 'other_response'"
        )
    return unhelpful_answer(example.source, seed)


def _world_responses(
    examples: Sequence[Example], others: Sequence[Example], seed: int
) -> list[str]:
    return [_world_response(example, seed) for example in examples]


@lru_cache(maxsize=2)  # pairs and articles ask for the same one
def _corpus(path: str | Path | None) -> tuple[Sequence[Any], Sequence[Any]]:
    world = build_world(seed=0) if path is None else World.load(Path(path))
    return world.pairs, world.articles


SOURCES["world"] = _corpus
OFFLINE_WRITERS["world"] = _world_responses
