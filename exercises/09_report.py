"""Exercises of notebook 09: where the time went, the weakest part, twelve looks at once."""

# %% exercise: Where the time went | easy | 10 minutes
# `run.json`, the record of a run, holds the list `artifacts`: a line for each, with its `stage`
# (such as "model" or "verdicts") and the `seconds` that it took to make. Say what share of all
# these seconds each stage took, the largest first.

# %% stub
from typing import Any


def shares(record: dict[str, Any]) -> dict[str, float]:
    """Stage -> its share of the seconds of all artifacts, in falling order; they add up to 1."""
    # solution
    seconds: dict[str, float] = {}
    for artifact in record["artifacts"]:
        seconds[artifact["stage"]] = seconds.get(artifact["stage"], 0.0) + artifact["seconds"]
    total = sum(seconds.values())
    return {name: seconds[name] / total for name in sorted(seconds, key=lambda one: -seconds[one])}
    # end of solution


# %% check
import json
import math

from cpo_suite.profile import ROOT

made = [("model", 30.0), ("verdicts", 10.0), ("base_model", 100.0), ("model", 60.0)]
found = shares({"artifacts": [{"stage": stage, "seconds": took} for stage, took in made]})
# Of 200 seconds 100 for the base model, 30 + 60 for models, 10 for verdicts.
assert list(found) == ["base_model", "model", "verdicts"], f"the largest first: {list(found)}"
assert all(map(math.isclose, found.values(), (0.5, 0.45, 0.05))), f"50, 45 and 5 %: {found}"

record = json.loads((ROOT / "figures" / "tiny" / "run.json").read_text(encoding="utf-8"))
found = shares(record)
assert set(found) == {one["stage"] for one in record["artifacts"]}, "every stage has its share"
assert math.isclose(sum(found.values()), 1), "shares of everything add up to 1"
assert list(found.values()) == sorted(found.values(), reverse=True), "the largest first"
print({name: f"{share:.1%}" for name, share in found.items()})

# %% note
# These are the seconds of making. A second run finds the artifacts, and then only the notebooks
# themselves take time: `notebook_seconds` has that.

# %% exercise: The weakest part | medium | 20 minutes
# The oracle's grade is
# $\text{right} \times \text{complete} \times \sqrt{\text{to the point} \times \text{well formed}}$.
# By how much would a model's *mean* grade rise if one part were perfect in every answer, and the
# others as they are? That is the room which an improvement of this part has.

# %% stub
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def room(parts: dict[str, Array]) -> dict[str, float]:
    """Part -> what the mean grade would gain if that part were 1 throughout.

    `parts` has, in this order, right, complete, to_the_point and well_formed, [n] each: a number
    for each answer.
    """

    # solution
    def mean_grade(right: Array, complete: Array, to_the_point: Array, well_formed: Array) -> float:
        return float((right * complete * np.sqrt(to_the_point * well_formed)).mean())

    now = mean_grade(**parts)
    return {name: mean_grade(**{**parts, name: np.ones(len(parts[name]))}) - now for name in parts}
    # end of solution


# %% check
from cpo_suite.world import score_of

names = ("right", "complete", "to_the_point", "well_formed")
# Two answers, one right and incomplete, the other complete and wrong: both have the grade 0.
# With right = 1 the second would have 1, with complete = 1 the first: a mean of 1/2 each.
columns = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
found = room(dict(zip(names, columns, strict=True)))
assert tuple(found) == names, f"a gain for each of {names}"
assert np.allclose(list(found.values()), [0.5, 0.5, 0, 0]), (
    f"{found}: the grades are 0 and 0 here. Take the mean of products, not the product of means"
)
# An answer of 0.25 to the point, otherwise perfect, has the square root of it, 0.5.
found = room(dict(zip(names, np.array([[1.0], [1.0], [0.25], [1.0]]), strict=True)))
assert np.allclose(list(found.values()), [0, 0, 0.5, 0]), f"0.25 to the point: {found}"

# Any parts, answer by answer with the oracle's own formula.
columns = np.random.default_rng(0).random((4, 30))
found = room(dict(zip(names, columns, strict=True)))
for place, name in enumerate(names):
    perfect = columns.copy()
    perfect[place] = 1
    before, after = (
        np.mean([score_of(dict(zip(names, one, strict=True))) for one in answers.T])
        for answers in (columns, perfect)
    )
    assert np.isclose(found[name], after - before), f"{name}: {found[name]}"

# %% note
# With this notebook's answers, say `own = dict(parts["t2/MLE2"])`, it is `own.pop("grade")` and
# then `room(own)`. The gains do not add up to what is missing: parts multiply, and an answer with
# two weak parts gains little from mending one.

# %% exercise: Twelve looks at once | hard | 40 minutes
# Section 2 in a few lines. You are given measured differences and their standard errors; each
# difference is taken as normally distributed around the true one. Say of each whether "CPO is
# better" `holds`, `fails` or is `undecided`, with intervals adjusted after Holm for their number
# $m$:
#
# * The two-sided p-value of a difference is the probability that a standard normal is further from
#   0 than difference / error.
# * In rising order of p, the $i$-th ($i = 1 \dots m$) has the level $0.05 / (m - i + 1)$, as long
#   as all p-values up to and including its own are within their levels. From the first that is not,
#   all have that one's level.
# * An interval of level $a$ leaves $a/2$ on either side. It decides where it does not hold 0.

# %% stub
from collections.abc import Sequence
from statistics import NormalDist


def decisions(differences: Sequence[float], errors: Sequence[float]) -> list[str]:
    """Of each difference: holds (interval above 0), fails (below 0) or undecided."""
    # solution
    normal, count = NormalDist(), len(differences)
    scores = [one / error for one, error in zip(differences, errors, strict=True)]
    p_values = [2 * normal.cdf(-abs(score)) for score in scores]
    found, level, stopped = ["undecided"] * count, 0.0, False
    for place, index in enumerate(sorted(range(count), key=lambda one: p_values[one])):
        if not stopped:
            level = 0.05 / (count - place)
            stopped = p_values[index] > level
        reach = normal.inv_cdf(1 - level / 2)  # half the interval, in standard errors
        if scores[index] - reach > 0:
            found[index] = "holds"
        elif scores[index] + reach < 0:
            found[index] = "fails"
    return found
    # end of solution


# %% check
import numpy as np

from cpo.evaluation.statistics import holm_levels
from cpo_suite.report.claims import decide

normal = NormalDist()


def with_p(*p_values):
    """Differences with these p-values, of standard error 2."""
    return [2 * normal.inv_cdf(1 - p / 2) for p in p_values], [2.0] * len(p_values)


assert decisions(*with_p(0.04)) == ["holds"], "a single look has the whole 5 %"
assert decisions(*with_p(0.06)) == ["undecided"], "p = 0.06 is above 5 %"
# Levels 0.05 / 3, 0.05 / 2, 0.05: each is within its own. (Bonferroni stops after the first.)
assert decisions(*with_p(0.01, 0.02, 0.04)) == ["holds"] * 3, "Holm's levels grow"
# 0.03 is above 0.05 / 2, and 0.04, though below 0.05, comes after it.
found = decisions(*with_p(0.04, 0.01, 0.03))
assert found == ["undecided", "holds", "undecided"], f"p = 0.04, 0.01, 0.03: {found}"
assert decisions([-9.0, 9.0], [1.0, 1.0]) == ["fails", "holds"], "below 0 it fails"

# Against the suite's own, on twelve differences of which most are 0; and how often anything is
# decided where all are 0, which may be in 5 % of the runs.
random, errors = np.random.default_rng(0), [1.0] * 12
for differences in random.normal([3.0, -3.0, 2.5] + [0.0] * 9, size=(200, 12)).tolist():
    levels = holm_levels([2 * normal.cdf(-abs(one)) for one in differences])
    reach = [normal.inv_cdf(1 - level / 2) for level in levels]
    expected = [decide(x - r, x + r, ">") for x, r in zip(differences, reach, strict=True)]
    assert decisions(differences, errors) == expected, f"differences {differences}"
nothing = random.normal(size=(2000, 12)).tolist()
alarms = np.mean([set(decisions(one, errors)) != {"undecided"} for one in nothing])
once = np.mean([max(map(abs, one)) > 1.96 for one in nothing])
print(f"something found where nothing is: {once:.0%} of the runs, after Holm {alarms:.1%}")
assert alarms < 0.07

# %% note
# Looking twelve times at nothing without correction finds something in $1 - 0.95^{12} = 46\,\%$ of
# all runs. The notebook's own p-values come from a bootstrap, and its comparisons know `>=`, `~`
# and ratios beside `>`; the rule is this one.
