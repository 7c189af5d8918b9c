"""Exercises of notebook 04."""

# %% exercise: Pairs are narrower | easy | 10 minutes
# Two models answered the same prompts. Give the half-width of the 95 % interval of the difference
# of their mean points, $1.96$ standard errors, twice: from the differences prompt by prompt, and
# as if each model had had prompts of its own. Sample variances divide by $n - 1$.

# %% stub
import numpy as np


def half_widths(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Half-widths (paired, unpaired) for points [n] of two models on the same prompts."""
    # solution
    n = len(first)
    paired = np.std(first - second, ddof=1) / np.sqrt(n)
    unpaired = np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / n)
    return 1.96 * float(paired), 1.96 * float(unpaired)
    # end of solution


# %% check
from cpo.evaluation.statistics import paired_difference

# By hand: the differences 0, 1, 0, 0 have variance 1/4, so 1.96 * sqrt(1/4 / 4) = 0.49.
# Alone, the variances are 1/3 and 1/4: 1.96 * sqrt((1/3 + 1/4) / 4) = 0.7485.
paired, unpaired = half_widths(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 0, 0]))
assert abs(paired - 0.49) < 1e-4, f"paired, by hand: 0.49, not {paired:.4f}"
assert abs(unpaired - 0.7485) < 1e-4, f"unpaired, by hand: 0.7485, not {unpaired:.4f}"
# 500 prompts, some of them hard for both models. cpo's interval is a bootstrap over prompts.
dice = np.random.default_rng(0)
ease = dice.random(500)
luck = dice.random((2, 500))
first, second = np.where(dice.random((2, 500)) < 0.1, luck, ease) > 0.5
first, second = first.astype(float), second.astype(float)
paired, unpaired = half_widths(first, second)
gap = paired_difference(first, second)
assert abs(2 * paired / (gap.high - gap.low) - 1) < 0.15, (
    f"cpo's interval is {gap.high - gap.low:.4f} wide, yours {2 * paired:.4f}"
)
assert unpaired > 1.5 * paired, "models that fail on the same prompts gain much by pairing"

# %% note
# The variance of a difference is the sum of the two variances less twice the covariance. The
# harder some prompts are for everybody, the larger the covariance.

# %% exercise: Confidence or knowledge | medium | 10 minutes
# One model is another one made surer of itself: every probability to the power `sharpness`,
# scaled to a sum of 1. It knows nothing new. By how much is its expected grade higher, greedily,
# and when an answer is drawn from its `top_k` most probable ones?

# %% stub
import torch


def gains(
    probabilities: torch.Tensor, grades: torch.Tensor, sharpness: float, top_k: int
) -> tuple[float, float]:
    """Gain in expected grade (greedy, top-k), over answers [A] with their probabilities, grades."""
    # solution
    best = probabilities.argsort(descending=True)[:top_k]  # in the same order for both models
    plain = probabilities[best] / probabilities[best].sum()
    sharp = plain**sharpness / (plain**sharpness).sum()
    return 0.0, float((sharp - plain) @ grades[best])
    # end of solution


# %% check
# By hand. (1/2, 1/4, 1/4) squared is (4, 1, 1) / 16, scaled (4, 1, 1) / 6; the first is right.
p, grades = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 0.0, 0.0])
for top_k, expected in ((3, 4 / 6 - 1 / 2), (2, 4 / 5 - 2 / 3), (1, 0.0)):
    greedy, drawn = gains(p, grades, 2.0, top_k)
    assert abs(greedy) < 1e-6, "the most probable answer is the same: greedy gains nothing"
    assert abs(drawn - expected) < 1e-5, f"top-{top_k}: {expected:.4f}, not {drawn:.4f}"
# A model that is wrong most of the time loses by confidence.
assert gains(torch.tensor([0.3, 0.6, 0.1]), torch.tensor([1.0, 0.0, 0.0]), 2.0, 3)[1] < 0, (
    "what it believes most is wrong here: drawing less of the rest makes it worse"
)
assert abs(gains(p, grades, 1.0, 3)[1]) < 1e-6, "to the power 1 nothing changes"

# %% note
# So a gain under drawing alone, with none under greedy decoding, may say only that the
# distribution has become narrower. Figure 1a shows both.

# %% exercise: A beam | medium | 25 minutes
# Write beam search for a model that looks back one token: `first` are log-probabilities of the
# first token, `after[i]` those of the token that follows token $i$. Of all beginnings keep the
# `width` most probable, `length` tokens long in the end.

# %% stub
import torch


def beam_search(
    first: torch.Tensor, after: torch.Tensor, length: int, width: int
) -> tuple[tuple[int, ...], float]:
    """The best sequence of the last beam and its log-probability; first [V], after [V, V]."""
    # solution
    beam = [((token,), float(first[token])) for token in range(len(first))]
    for _ in range(length - 1):
        beam = sorted(beam, key=lambda one: -one[1])[:width]
        beam = [
            ((*tokens, token), logp + float(after[tokens[-1], token]))
            for tokens, logp in beam
            for token in range(len(first))
        ]
    return max(beam, key=lambda one: one[1])
    # end of solution


# %% check
import itertools

# By hand. Greedy starts with token 0 (0.6), and can only go on with 0.5: 0.3. Token 1 (0.4)
# goes on with certainty: 0.4. A beam of two sees it.
first = torch.tensor([0.6, 0.4]).log()
after = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
tokens, logp = beam_search(first, after, 2, 1)
assert tuple(tokens)[0] == 0 and abs(logp - torch.tensor(0.3).log()) < 1e-5, (
    f"a beam of one is greedy: token 0, then either, probability 0.3; not {tokens}, {logp:.3f}"
)
tokens, logp = beam_search(first, after, 2, 2)
assert tuple(tokens) == (1, 0) and abs(logp - torch.tensor(0.4).log()) < 1e-5, (
    f"a beam of two finds (1, 0), probability 0.4; not {tokens}, {logp:.3f}"
)
# A beam as wide as there are beginnings is an exhaustive search.
torch.manual_seed(0)
for _ in range(5):
    first, after = torch.randn(3).log_softmax(-1), (2 * torch.randn(3, 3)).log_softmax(-1)

    def total(tokens, first=first, after=after):
        return float(first[tokens[0]] + sum(after[i, j] for i, j in itertools.pairwise(tokens)))

    best = max(itertools.product(range(3), repeat=4), key=total)
    tokens, logp = beam_search(first, after, 4, 27)
    assert tuple(tokens) == best and abs(logp - total(best)) < 1e-4, f"{best} beats {tokens}"

# %% note
# More probable need not be better. Each further token adds a log-probability below 0, so a beam
# prefers what ends early, and what repeats itself. Where answers are short and few are right it can
# be better, as in figure 1a of `tiny`, where beam search is the highest.
