"""Exercises of notebook 10."""

# %% exercise: Repetition | easy | 10 minutes
# Small models repeat themselves. Write a sampler of *repetition negatives* (RN): the ground truth
# without its EOS, then a span of its own tokens said again, then its EOS if it had one. A span has
# two tokens or more; a response of one token says that one again. All spans are as probable, all
# chance comes from `seed`, and no candidate of a row is drawn twice.

# %% stub
import torch


def repetition(planned, wanted, seed):
    """RN: y_1 with one span of its tokens said again at its end."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for row, count in wanted.items():
        # solution
        body, truth = planned.body(row), planned.continuations[row]
        shortest = min(2, len(body))
        spans = sorted(
            {
                body[start:end]
                for start in range(len(body))
                for end in range(start + shortest, len(body) + 1)
            }
        )
        chosen = torch.randperm(len(spans), generator=generator)[:count]
        drawn[row] = [(*body, *spans[one], *truth[len(body) :]) for one in chosen.tolist()]
        # end of solution
    return drawn


# %% check
from cpo.negatives import PlannedRows

truths = [(5, 6, 7, 8, 0), (5, 0), (5, 6, 5, 6)]  # 0 is EOS; the last one has none
plan = PlannedRows(
    prefixes=[(1,)] * 3, continuations=truths, batch=3, model=None, eos_token_id=0,
    max_continuation_tokens=9,
)  # fmt: skip
found = repetition(plan, {0: 20, 1: 20, 2: 20}, seed=0)
# Spans of two or more of 5 6 7 8: three of two tokens, two of three, one of four.
spans = [(5, 6), (6, 7), (7, 8), (5, 6, 7), (6, 7, 8), (5, 6, 7, 8)]
expected = sorted((5, 6, 7, 8, *span, 0) for span in spans)
assert sorted(found[0]) == expected, f"of the first row all six, not {sorted(found[0])}"
assert found[1] == [(5, 5, 0)], f"a response of one token can only say it again, not {found[1]}"
# 5 6 occurs twice in 5 6 5 6 but makes one candidate: 5 6, 6 5, 5 6 5, 6 5 6 and all of it.
assert len(found[2]) == len(set(found[2])) == 5, "equal candidates of a row are drawn once"
assert all(0 not in ids for ids in found[2]), "a truth without EOS has negatives without EOS"
few = [repetition(plan, {0: 2}, seed)[0] for seed in (0, 0, 1, 2, 3)]
assert len(few[0]) == 2, "as many as are wanted, where there are so many"
assert few[0] == few[1], "the same seed draws the same"
assert any(few[0] != other for other in few[2:]), "another seed draws others"

# %% note
# To see its row: `@register("RN")` above the function, `suite.add_row("own/RNR", like="f1b/TNR",
# negatives={"RN": 4})`, and `tables.table(suite, "own")`. Would you expect more of it than of SN?
# The measure `seq_rep_4` of the reference says how much there is to gain.

# %% exercise: The squared link | medium | 15 minutes
# The hinge lets go once a negative lies 1 below the ground truth. The *squared* loss (IPO's link)
# also pulls back what has gone too far: for each negative the square of the margin's distance from
# 1, $(r_1 - r_j - 1)^2$, then the mean over the usable negatives of a row, then the mean over rows.
# Write it with the signature that `register_objective` wants, so that a masked column has no
# gradient, and a row whose negatives are all masked contributes 0.

# %% stub
import torch

from cpo.losses import implicit_rewards


def squared_loss(policy_logps, reference_logps, beta, mask):
    """Each negative exactly one unit of reward below the ground truth; scalar."""
    # solution
    rewards = implicit_rewards(policy_logps, reference_logps, beta)  # [B, K]
    usable = mask[:, 1:]
    off_by = (rewards[:, :1] - rewards[:, 1:] - 1).masked_fill(~usable, 0)
    return (off_by.square().sum(-1) / usable.sum(-1).clamp(min=1)).mean()
    # end of solution


# %% check
every = torch.ones(1, 3, dtype=torch.bool)
zeros = torch.zeros(1, 3)
assert squared_loss(zeros, zeros, 5.0, every).item() == 1.0, "at the start each is 1 short"
# beta 2: r = 2, 0, -1. Margins 2 and 3, off by 1 and 2: (1 + 4) / 2.
policy = torch.tensor([[1.0, 0.0, -0.5]], requires_grad=True)
loss = squared_loss(policy, zeros, 2.0, every)
assert loss.dim() == 0, "a training wants a scalar"
assert loss.item() == 2.5, f"margins of 2 and 3 cost (1 + 4) / 2, not {loss.item()}"
loss.backward()
# Both margins are too large: the ground truth is pulled back down. Each of the two adds
# (1/2) * 2 * off * beta to its gradient, 2 + 4 = 6; the negatives get -2 and -4.
assert policy.grad.tolist() == [[6.0, -2.0, -4.0]], f"gradient {policy.grad.tolist()}"
rows = torch.tensor([[1.0, 0.0, -0.5], [0.3, 0.1, 0.2]], requires_grad=True)
mask = torch.tensor([[True, True, False], [True, False, False]])
loss = squared_loss(rows, torch.zeros(2, 3), 2.0, mask)
# The first row has one usable negative, off by 1; the second has none: (1 + 0) / 2.
assert loss.item() == 0.5, f"one usable negative that is off by 1, of two rows: {loss.item()}"
loss.backward()
assert rows.grad[~mask].abs().sum() == 0, "what is masked has no gradient"

# %% note
# `@register_objective("squared")` above it, and `add_row("own/SN-squared", like="own/SNR",
# objective="squared")`. A loss that pulls back keeps the policy nearer to its reference: compare
# the curves of the margin with the hinge's.

# %% exercise: A judge that can be trusted | hard | 20 minutes
# A judge must not care on which side a response stands, or its verdicts measure the coin that
# chose the side. Write a judge that prefers the response which repeats itself less (by
# `repeated_ngrams` over the lower-cased words, n = 2), and a tie where both do so alike. Then write
# `is_fair`: whether exchanging the sides exchanges a judge's verdict on each of the given pairs.

# %% stub
from cpo.evaluation.metrics import repeated_ngrams


def less_repetitive(example, response_a, response_b):
    """The response with the smaller share of repeated pairs of words; else a tie."""
    # solution
    a, b = (repeated_ngrams(one.lower().split(), 2) for one in (response_a, response_b))
    return "tie" if a == b else "A" if a < b else "B"
    # end of solution


def is_fair(judge, example, pairs):
    """Whether `judge(example, a, b)` and `judge(example, b, a)` agree on every pair (a, b)."""
    # solution
    exchanged = {"A": "B", "B": "A", "tie": "tie"}
    return all(judge(example, b, a) == exchanged[judge(example, a, b)] for a, b in pairs)
    # end of solution


# %% check
plain, echo = "The wark eats moss.", "The wark The wark the wark eats moss."
shown = [(plain, echo), (echo, plain), (plain, plain)]
verdicts = [less_repetitive(None, *pair) for pair in shown]
# echo has seven pairs of words, "the wark" thrice and "wark the" twice: 3 of 7 repeated.
assert verdicts == ["A", "B", "tie"], f"without, with, and the same repetition: {verdicts}"
assert less_repetitive(None, "", plain) == "tie", "an empty response repeats nothing either"
pairs = [(plain, echo), (plain, plain), (echo, "moss")]
assert is_fair(less_repetitive, None, pairs) is True, "it looks at the texts alone"
assert is_fair(lambda example, a, b: "A", None, pairs) is False, "always A is no judge at all"
longer = lambda example, a, b: "A" if len(a) >= len(b) else "B"  # noqa: E731
assert is_fair(longer, None, [(plain, echo)]) is True, "on this pair it does not matter"
assert is_fair(longer, None, pairs) is False, "its ties go to A: only a pair of equals shows it"

# %% note
# The suite's judges see each pair on a side drawn by the prompt's id, and with `judge.orders=2` on
# both: a judge that leans to a side then gives half a point, not a win (notebook 07).
