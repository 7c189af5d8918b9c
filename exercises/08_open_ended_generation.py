"""Exercises of notebook 08: halves instead of a bootstrap, MAUVE's area, truth and plausibility."""

# %% exercise: Halves, not copies | easy | 15 minutes
# MAUVE's interval comes from random halves of the articles. Write that for any statistic of $n$
# values: draw half of them without replacement, compute the statistic, do it again and again, and
# take the standard deviation of what comes out.
#
# For a mean this must be the usual standard error $s/\sqrt{n}$. (Why with all $n$, when only half
# were drawn?)

# %% stub
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def half_sample_error(
    values: Array, statistic: Callable[[Array], float], halves: int, seed: int = 0
) -> float:
    """Standard deviation of `statistic` over random halves of `values` [n], each [n // 2]."""
    # solution
    random, half = np.random.default_rng(seed), len(values) // 2
    drawn = [statistic(random.permutation(values)[:half]) for _ in range(halves)]
    return float(np.std(drawn, ddof=1))
    # end of solution


# %% check
random = np.random.default_rng(1)
values = random.normal(size=400)
error = half_sample_error(values, lambda part: float(part.mean()), halves=3000)
expected = values.std(ddof=1) / 20  # s / sqrt(400)
assert abs(error / expected - 1) < 0.1, f"{error:.4f} where s / sqrt(n) is {expected:.4f}"


# What share of the texts is different from all others? Of different ones: all, in any half.
def share_of_different(part):
    assert len(part) == 200, f"half of 400 is 200, not {len(part)}"
    return len(set(part.tolist())) / len(part)


assert half_sample_error(values, share_of_different, halves=20) == 0, "a half holds no copies"
copies = share_of_different(random.choice(values[:200], size=200))  # a bootstrap of 200 values
print(f"share of different values in a half: 1, in a bootstrap sample: {copies:.2f}")

# %% note
# A mean of $n/2$ values has the variance $s^2/(n/2)$, and drawing without replacement takes half of
# it away: $s^2/n$ is left. A bootstrap sample holds only 63 % different values. MAUVE counts how
# many texts fall together in a cluster, so copies would change *what is measured*, not just how far
# it scatters.

# %% exercise: MAUVE on two histograms | medium | 30 minutes
# After the clustering MAUVE sees nothing but two histograms, $P$ and $Q$, the shares of the
# recorded and of the generated texts in each cluster. Write the rest: the curve of section 4 at
# 1,000 values of $\lambda$ evenly spaced between 0 and 1 (both left out), its two ends $(1, 0)$ and
# $(0, 1)$, and the area under it by trapezoids. $0 \log 0$ is 0.

# %% stub
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def area(p: Array, q: Array, scaling: float = 5.0) -> float:
    """The area under MAUVE's curve of the histograms `p` and `q` [C]; `scaling` is c."""

    # solution
    def divergence(a: Array, b: Array) -> float:
        some = a > 0
        return float((a[some] * np.log(a[some] / b[some])).sum())

    curve = [(1.0, 0.0)]
    for weight in np.linspace(0, 1, 1002)[1:-1]:
        mixture = weight * p + (1 - weight) * q
        divergences = np.array([divergence(q, mixture), divergence(p, mixture)])
        curve.append(tuple(np.exp(-scaling * divergences)))
    x, y = np.array([*curve, (0.0, 1.0)]).T  # x falls from 1 to 0
    return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2).sum())
    # end of solution


# %% check
import math

one, other = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.0, 0.2, 0.8])
assert math.isclose(area(one, one), 1.0, abs_tol=1e-3), f"P = Q: {area(one, one)}, not 1"
# Nothing in common: KL(Q | R) = -log(1 - lambda) and KL(P | R) = -log(lambda), so the curve is
# ((1 - lambda)^c, lambda^c). Its area is c times the integral of lambda^c (1 - lambda)^(c - 1),
# a beta integral: c c! (c - 1)! / (2 c)! = 1 / binomial(2 c, c).
for c in (1, 2, 5):
    expected = 1 / math.comb(2 * c, c)
    found = area(one, other, scaling=c)
    assert math.isclose(found, expected, rel_tol=0.01), f"c = {c}: {found}, not {expected}"
# Neither side comes first, and shares that move apart lower it all the way.
random = np.random.default_rng(0)
p, q = random.dirichlet(np.ones(6), size=2)
assert math.isclose(area(p, q), area(q, p), rel_tol=0.01), "exchanging P and Q changes nothing"
steps = [area(p, (1 - far) * p + far * q) for far in (0.0, 0.25, 0.5, 0.75, 1.0)]
assert sorted(steps, reverse=True) == steps, f"further apart has to be less alike: {steps}"

# %% note
# So the least value is not 0 but $1/\binom{2c}{c}$, 0.004 at MAUVE's $c = 5$. The constant $c$ only
# stretches the scale: without it ($c = 1$) two sets of texts with nothing in common would still
# score one half. One more reason to compare only scores with equal settings.

# %% exercise: True, or only plausible? | medium | 25 minutes
# Write a function that makes a text false: every word that the world's tables know, except the
# subject's name, becomes *another* word of the same kind (a season another season, a river another
# river). Grammar, length and style stay as they are. What should the oracle say of each part of its
# grade? And MAUVE?
#
# `cpo_suite.world.tables` has `KIND`, from a word to its kind, and `WORDS`, from a kind to all its
# words.


# %% stub
def spoilt(text: str, subject: str, seed: int) -> str:
    """`text` with every known word but `subject` replaced, at random, by another of its kind."""
    # solution
    import random
    import re

    from cpo_suite.world.tables import KIND, WORDS

    draw = random.Random(seed)

    def other(match: re.Match[str]) -> str:
        word = match[0]
        if word == subject or word not in KIND:
            return word
        return draw.choice([one for one in WORDS[KIND[word]] if one != word])

    return re.sub(r"[A-Za-z]+|[0-9]+", other, text)
    # end of solution


# %% check
import re

from cpo_suite.world import WorldArticle, oracle_parts, oracle_score
from cpo_suite.world.oracle import world_facts
from cpo_suite.world.tables import KIND

# An article on the town of Tolan, all of it true in the world number 0.
truth = world_facts(0).values["Tolan"]
told = (
    f"Tolan lies in {truth['region']}. It stands on the {truth['river']}. Tolan makes "
    f"{truth['craft']} and serves {truth['serves']}. It holds a fair in {truth['fair']}. "
    f"It was founded in {truth['founded']}."
)
article = WorldArticle(
    "tolan", "Tolan", told, "test", {"seed": 0, "subject": "Tolan", "topics": []}
)
assert oracle_score(article, article.continuation, article.prefix) == 1  # the truth itself

for seed in range(5):
    text = spoilt(article.continuation, "Tolan", seed)
    was, now = (re.findall(r"\w+", one) for one in (article.continuation, text))
    kinds = [[KIND.get(word, word) for word in words] for words in (was, now)]
    assert kinds[0] == kinds[1], f"every word keeps its kind, and others stay: {text}"
    parts = oracle_parts(article, text, article.prefix)
    assert parts == {"right": 0, "fitting": 1, "not_repeating": 1, "well_formed": 1}, (
        f"{text}: {parts}"
    )
assert len({spoilt(told, "Tolan", seed) for seed in range(5)}) > 1, "another seed, another text"
print(text.strip(), "\n", parts)

# %% note
# Every part of the grade is perfect but `right`, and so the grade is 0. MAUVE sees features of the
# base model: a base model that does not know the facts finds both texts alike. To see for yourself,
# add one more line to `controls` in section 4:
# `tokens_of([spoilt(tokenizer.decode(ids), "", 0) for ids in others])`.
