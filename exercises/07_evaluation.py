"""Exercises of notebook 07: a judge of one's own, how many prompts, a judge who does not read."""

# %% exercise: The shortest wins | easy | 10 minutes
# A judge is a function of a prompt and two answers. Section 4 used one that prefers the longer
# answer. Write its opposite: the shorter one wins (in characters), equal lengths tie. What must the
# win rates of the two add up to?

# %% stub
from cpo.evaluation.judge_prompts import Verdict
from cpo.evaluation.judging import Judged


def shortest(example: Judged, response_a: str, response_b: str) -> Verdict:
    """The verdict A or B, whichever is the shorter one, or a tie."""
    # solution
    if len(response_a) == len(response_b):
        return "tie"
    return "A" if len(response_a) < len(response_b) else "B"
    # end of solution


# %% check
import numpy as np

from cpo.data import Example
from cpo.evaluation.judging import RuleJudge, judge_responses
from cpo.evaluation.statistics import flip_rate

recorded = ["Paris.", "Four legs.", "It is a moth.", "In the year 310.", "No.", "Seven."]
answers = ["Paris, of course.", "Four.", "It is a mouse", "310.", "No!", "Seven!"]
prompts = [Example(f"prompt-{i}", "?", text, "", None) for i, text in enumerate(recorded)]

found = judge_responses(RuleJudge("shortest", shortest), prompts, answers, orders=2)
# Longer, shorter, as long (13 characters each), shorter, as long, as long.
assert found.points.tolist() == [0, 1, 0.5, 1, 0.5, 0.5], f"points {found.points.tolist()}"
assert flip_rate(*found.by_order).value == 0, "sides must not matter to this rule"
opposite = judge_responses("longest", prompts, answers).points
assert np.all(found.points + opposite == 1), "what the one gives, the other takes"

# %% note
# They add up to 1, ties included, so no model wins by both. A row that beats another by `shortest`
# *and* by the oracle has learnt to stop; look at its `tokens`. To run it on every row:
# `judging.judge_responses(judging.RuleJudge("shortest", shortest), examples, answers[name])`. A
# judge that the profile is to name is registered: `@judging.register_judge("shortest")`, once.

# %% exercise: How many prompts? | medium | 25 minutes
# Section 5 gives the prompts at which the interval of a true difference *just* touches zero; half
# of all experiments would then find it. Usually one wants to find it in four of five. Let $\hat d$
# be the measured difference of two win rates near one half, on $n$ prompts, with correlation $\rho$
# between the points: a normal variable around the true $d$, of variance
# $2 \cdot 0.25\,(1 - \rho)/n$. It is found if $\hat d$ is more than 1.96 standard deviations above
# zero.
#
# How large must $n$ be, for a `power` of 0.8 or any other? (`statistics.NormalDist().inv_cdf` has
# the quantiles of the normal distribution.)


# %% stub
def prompts_needed(difference: float, correlation: float, power: float = 0.8) -> int:
    """The least number of prompts at which `difference` is found with probability `power`."""
    # solution
    import math
    from statistics import NormalDist

    normal = NormalDist()
    # d - 1.96 sd has to lie z_power sd above zero.
    deviations = normal.inv_cdf(0.975) + normal.inv_cdf(power)
    return math.ceil(2 * 0.25 * (1 - correlation) * (deviations / difference) ** 2)
    # end of solution


# %% check
import numpy as np

# At power 1/2 it is the notebook's formula: 0.5 * (1.96 / 0.035)^2 = 1567.97.
assert prompts_needed(0.035, 0.0, power=0.5) == 1568, "power 1/2: the interval touches zero"
# 1.96 + 0.8416 = 2.8016; 0.5 * (2.8016 / 0.1)^2 = 392.4, so 393.
assert prompts_needed(0.1, 0.0) == 393, f"{prompts_needed(0.1, 0.0)} prompts for ten points?"
# Half of that where the correlation is 1/2; a quarter of the difference needs 16 times as many.
assert prompts_needed(0.1, 0.5) == 197, "pairing halves it at a correlation of 1/2: 196.2"
assert prompts_needed(0.025, 0.0) == 6280, "0.5 * (2.8016 / 0.025)^2 = 6279.1"

# Play it: 4,000 experiments with true rates of 55 % and 45 %, no correlation.
random = np.random.default_rng(0)
n = prompts_needed(0.1, 0.0)
gaps = (random.random((4000, n)) < 0.55).astype(float) - (random.random((4000, n)) < 0.45)
found = gaps.mean(-1) > 1.96 * gaps.std(-1) / np.sqrt(n)
print(f"with {n} prompts {found.mean():.1%} of the experiments find it")
assert abs(found.mean() - 0.8) < 0.03

# %% note
# Twice the prompts of the formula in section 5, for certainty of 80 %. For the paper's 3.5 points
# (ANR - MLE, table 1) it is 3,204 prompts without correlation, more than three times those that
# were judged.

# %% exercise: A judge who does not always read | hard | 35 minutes
# A judge finds the better answer with probability $1 - \lambda$; with probability $\lambda$ it does
# not look and throws a fair coin. Nothing is ever a tie. Two models with a true difference $d$ in
# win rate then show a smaller one: which?
#
# Nobody knows $\lambda$. But every pair was shown in both orders, and each time the judge decided
# anew whether to read: so the share $f$ of pairs whose winner changed is known. Express $d$ by the
# measured difference and $f$. From which $f$ on is it hopeless?

# %% stub
import math


def without_noise(measured: float, flips: float) -> float:
    """The true difference of two win rates, from the measured one and the share of flips.

    Raises:
        ValueError: with so many flips the verdicts say nothing.
    """
    # solution
    # A verdict is right with probability c = 1 - noise / 2. The winner changes if one of the two
    # verdicts is right and the other wrong: f = 2 c (1 - c), hence 1 - 2 f = (1 - noise)^2.
    if flips >= 0.5:
        raise ValueError(f"{flips:.0%} flips: this is what coins alone would do")
    return measured / math.sqrt(1 - 2 * flips)
    # end of solution


# %% check
import numpy as np

from cpo.evaluation.statistics import flip_rate

assert without_noise(0.06, 0.0) == 0.06, "a judge that never flips has no noise"
# noise 0.4: c = 0.8, f = 2 * 0.8 * 0.2 = 0.32, and the difference is 0.6 of the true one.
assert math.isclose(without_noise(0.06, 0.32), 0.1), "0.32 flips: 0.06 is 0.6 of the truth"
try:
    without_noise(0.01, 0.5)
except ValueError:
    pass
else:
    raise AssertionError("coins alone flip every second pair: nothing can be told from that")

# Play it: two models that are better than the recorded answer on 55 % and 40 % of the prompts.
random = np.random.default_rng(0)
better = random.random((2, 200_000)) < np.array([[0.55], [0.40]])


def verdicts_with(noise):
    """Points [2, n] in one order: whose answer is better, or a coin."""
    coins = random.random(better.shape) < 0.5
    return np.where(random.random(better.shape) < noise, coins, better).astype(float)


for noise in (0.1, 0.3, 0.6):
    orders = verdicts_with(noise), verdicts_with(noise)
    measured = float(np.subtract(*np.mean(orders, axis=(0, 2))))
    flips = flip_rate(orders[0].ravel(), orders[1].ravel()).value
    true = float(np.subtract(*better.mean(-1)))
    mended = without_noise(measured, flips)
    print(f"noise {noise:g}: measured {measured:.3f}, mended {mended:.3f}, true {true:.3f}")
    assert abs(mended - true) < 0.015, f"noise {noise:g}: {mended:.3f} instead of {true:.3f}"

# %% note
# The measured difference is $(1 - \lambda)\,d$: noise makes differences smaller and never reverses
# them. Its *interval* has to be divided by the same root, so nothing becomes more certain. And this
# corrects independent noise alone: position bias flips more often, and a judge that always prefers
# the longer text never flips.
