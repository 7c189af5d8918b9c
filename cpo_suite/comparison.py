"""Comparisons between rows, as claims name them: `t2/ANR > t2/MLE1`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, cast

from cpo_suite.paper import continued_mle, rows_of

Relation = Literal[">", ">=", "~", "overhead"]


@dataclass(frozen=True)
class Comparison:
    """`left relation right`, each a row or a sum of rows with signs, or `overhead ROW`.

    `>`: more; `>=`: not less by more than a margin; `~`: alike within it. `best(t2/MixNR)` stands
    for the ensemble strictly between that is best on validation prompts, `ends(t2/MixNR)` for the
    better end there. `overhead ROW` sets a row's training time against that of MLE continued for as
    many steps. `weights` says of each row how often it counts in `left - right`; `choices` which
    rows a `best` or `ends` is chosen from.
    """

    text: str
    relation: Relation
    weights: dict[str, int]
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Comparison:
        """Read a comparison. Raises `ValueError` for one that cannot be read; see `rows`."""
        if text.startswith("overhead "):
            return cls(text, "overhead", {text.removeprefix("overhead ").strip(): 1})
        sides = re.split(r"\s(>=|>|~)\s", text)
        if len(sides) != 3:
            raise ValueError(f"'{text}' is no comparison: write `ROW > ROW`, with >, >= or ~")
        relation = cast(Relation, sides[1])
        weights: dict[str, int] = {}
        for sign, side in ((1, sides[0]), (-1, sides[2])):
            for term in re.split(r"\s(?=[+-]\s)", f"+ {side.strip()}"):
                weight = sign if term[0] == "+" else -sign
                weights[term[2:]] = weights.get(term[2:], 0) + weight
        choices = {name: rows for name in weights if (rows := _choice(name))}
        return cls(text, relation, weights, choices)

    @property
    def rows(self) -> list[str]:
        """Every row that it needs; whether they exist is for the caller to see."""
        return [row for name in self.weights for row in self.choices.get(name, (name,))]


def _choice(name: str) -> tuple[str, ...]:
    """The rows that `best(PREFIX)` or `ends(PREFIX)` chooses from; none for a row's own name."""
    match = re.fullmatch(r"(best|ends)\((\S+)\)", name)
    if match is None:
        return ()
    ensembles = [row for row in rows_of(match[2]) if row.alpha is not None]
    if not ensembles:
        raise ValueError(f"{name}: there are no ensembles '{match[2]}/alpha'")
    if match[1] == "best":
        return tuple(row.id for row in ensembles if row.alpha)
    return (ensembles[0].id, continued_mle(ensembles[0]).id)
