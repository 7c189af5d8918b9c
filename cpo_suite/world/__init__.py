"""The embedded world: a corpus whose truth is known, and the oracle that grades texts by it."""

from .corpus import WORLD_VERSION, World, build_world
from .oracle import (
    WorldArticle,
    WorldExample,
    oracle_parts,
    oracle_score,
    score_of,
    sentence_grade,
    true_text,
)
from .registered import oracle
from .unhelpful import unhelpful_answer

__all__ = [
    "WORLD_VERSION",
    "World",
    "WorldArticle",
    "WorldExample",
    "build_world",
    "oracle",
    "oracle_parts",
    "oracle_score",
    "score_of",
    "sentence_grade",
    "true_text",
    "unhelpful_answer",
]
