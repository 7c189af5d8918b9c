"""The truth of the world: which fact holds of whom. Drawn once from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

from .grammar import ATTRIBUTES, RELATIONS, Fact
from .tables import KIND, WORDS, number

#: Comparison -> the attribute compared and whether the subject's value is the smaller one.
_COMPARED = {
    "older": ("founded", True), "newer": ("founded", False),
    "cheaper": ("price", True), "dearer": ("price", False),
}  # fmt: skip


def _balanced(values: tuple[str, ...], n: int, rng: Random) -> list[str]:
    """n values in random order, each used equally often up to one, so that no value is a safe
    guess."""
    pool = [values[i % len(values)] for i in range(n)]
    rng.shuffle(pool)
    return pool


@dataclass(frozen=True)
class Facts:
    """`values[subject][relation]` is the one value that makes the statement true."""

    values: dict[str, dict[str, str]]

    @classmethod
    def draw(cls, rng: Random) -> Facts:
        """A world: every attribute of every entity, values spread evenly."""
        values: dict[str, dict[str, str]] = {}
        for kind, attributes in ATTRIBUTES.items():
            names = WORDS[kind]
            for name in names:
                values[name] = {}
            for attribute in attributes:
                choices = WORDS[RELATIONS[attribute].value]
                drawn = _balanced(choices, len(names), rng)
                if attribute == "teacher":
                    # A pupil of somebody else: rotate a shuffled ring.
                    ring = list(names)
                    rng.shuffle(ring)
                    after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
                    drawn = [after[name] for name in names]
                for name, value in zip(names, drawn, strict=True):
                    values[name][attribute] = value
        return cls(values)

    def __getitem__(self, key: tuple[str, str]) -> str:
        return self.values[key[0]][key[1]]

    def holds(self, fact: Fact) -> bool:
        """Whether the world makes the fact true; comparisons are worked out. False for anything
        unknown."""
        subject = self.values.get(fact.subject, {})
        if fact.relation in _COMPARED:
            attribute, smaller = _COMPARED[fact.relation]
            other = self.values.get(fact.value, {})
            if attribute not in subject or attribute not in other:
                return False
            left, right = number(subject[attribute]), number(other[attribute])
            return left < right if smaller else left > right
        return subject.get(fact.relation) == fact.value

    def having(self, kind: str, relation: str, value: str) -> list[str]:
        """Everyone of the kind with this value, in the order of the tables."""
        return self._holders.get((kind, relation, value), [])

    @cached_property
    def _holders(self) -> dict[tuple[str, str, str], list[str]]:
        holders: dict[tuple[str, str, str], list[str]] = {}
        for name, attributes in self.values.items():
            for relation, value in attributes.items():
                holders.setdefault((KIND[name], relation, value), []).append(name)
        return holders

    @cached_property
    def neighbours(self) -> dict[str, tuple[str, ...]]:
        """Entities one relation away in either direction, in a fixed order."""
        near: dict[str, list[str]] = {name: [] for name in self.values}
        for subject, attributes in self.values.items():
            for value in attributes.values():
                if value in near and KIND[value] in ATTRIBUTES:
                    near[subject].append(value)
                    near[value].append(subject)
        return {name: tuple(dict.fromkeys(names)) for name, names in near.items()}
