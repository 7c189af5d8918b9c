"""Exercises of notebook 02."""

# %% exercise: Truncations for nothing | easy | 10 minutes
# A truncation needs no forward pass of its own. From one pass over the ground truth we have, at
# each of its $T$ tokens, the log-probability of that token, and that of EOS in its place. Give
# the log-probabilities of *all* truncations, cut after $1 \dots T - 1$ tokens.

# %% stub
import torch


def truncation_logps(token_logps: torch.Tensor, eos_logps: torch.Tensor) -> torch.Tensor:
    """log pi(y_1 .. y_cut, EOS | x) for cut = 1 .. T - 1, [T - 1], from two tensors [T]."""
    # solution
    return token_logps.cumsum(-1)[:-1] + eos_logps[1:]
    # end of solution


# %% check
from transformers import GPT2Config, GPT2LMHeadModel

from cpo.scoring import Group, GroupScorer, collate_groups

# By hand: after "a" (-1), EOS costs -3 there; after "a b" (-1 - 2), EOS costs -0.5.
found = truncation_logps(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-9.0, -3.0, -0.5]))
assert found.tolist() == [-4.0, -3.5], f"by hand: -1 - 3 and -1 - 2 - 0.5, not {found.tolist()}"

# And against a model that scores every truncation from its first token on. EOS is id 0.
config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)
model = GPT2LMHeadModel(config).eval()
prefix, body = [3, 5], [7, 2, 9, 9, 4]
scorer = GroupScorer(model, share_prefix=False)
with torch.no_grad():
    rows = scorer.next_token_logits(**collate_groups([Group(prefix, [body])])).log_softmax(-1)
    cut_short = [[*body[:cut], 0] for cut in range(1, len(body))]
    expected = scorer(**collate_groups([Group(prefix, cut_short)]))[0]
found = truncation_logps(rows.gather(-1, torch.tensor(body)[:, None])[:, 0], rows[:, 0])
assert torch.allclose(found, expected, atol=1e-4), f"the model says {expected}, not {found}"

# %% note
# The EOS that ends a cut after `cut` tokens stands in the place of token `cut + 1`: hence the
# shift.

# %% exercise: The order of the candidates | medium | 10 minutes
# Write the order $\tau$ from cosine similarities: the ground truth (column 0) first always, the
# others by falling similarity, ties by column, and what cannot be used at the end, by column.


# %% stub
def order_of(similarities: list[float], usable: list[bool]) -> list[int]:
    """Columns, best first; column 0 is the ground truth, and usable."""
    # solution
    others = range(1, len(similarities))
    ranked = sorted((j for j in others if usable[j]), key=lambda j: -similarities[j])
    return [0, *ranked, *(j for j in others if not usable[j])]
    # end of solution


# %% check
import math

import torch

from cpo.ranking import rank_candidates

assert order_of([1.0, 0.2, 0.9], [True] * 3) == [0, 2, 1], "the more similar one comes first"
assert order_of([1.0, 0.9, 1.0], [True] * 3) == [0, 2, 1], "what ties with the truth is second"
assert order_of([1.0, 0.5, 0.5, 0.5], [True] * 4) == [0, 1, 2, 3], "ties go by column"
assert order_of([1.0, 0.9, 0.5], [True, False, True]) == [0, 2, 1], "masked columns come last"
# Embeddings in a plane: the similarity to the truth is the cosine of the angle to it.
angles = [0.0, 2.0, 0.5, 1.0, 0.5, 0.1]
usable = [True, True, True, False, True, True]
plane = torch.tensor([[math.cos(one), math.sin(one)] for one in angles])
expected = rank_candidates(plane[None], torch.tensor([usable]))[0][0].tolist()
found = order_of([math.cos(one) for one in angles], usable)
assert found == expected, f"cpo.ranking says {expected}, not {found}"

# %% note
# `sorted` is stable: equal keys stay in the order in which they came, and that is the order of
# the columns.

# %% exercise: A kind of negative of your own | medium | 20 minutes
# Write a fifth kind, the *rotation*: $y_1$ with its beginning moved to its end, cut after
# $1 \dots T - 1$ of its tokens; its EOS, if it has one, stays last. The contract is
# `cpo.negatives.Sampler`: planned rows, how many for which row, and a seed; back come the
# candidates of each row, at most so many, no cut twice, the same for the same seed.
# `planned.body(row)` is $y_1$ without EOS.

# %% stub
import torch

from cpo.negatives import PlannedRows


def rotations(planned: PlannedRows, wanted: dict[int, int], seed: int) -> dict[int, list[tuple]]:
    """For each row of `wanted` as many rotations of its ground truth, or as many as there are."""
    # solution
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for row, count in wanted.items():
        body = planned.body(row)
        end = planned.continuations[row][len(body) :]  # EOS, or nothing
        cuts = 1 + torch.randperm(max(0, len(body) - 1), generator=generator)[:count]
        drawn[row] = [(*body[cut:], *body[:cut], *end) for cut in cuts.tolist()]
    return drawn
    # end of solution


# %% check
from cpo.negatives import draw_negatives, register

planned = PlannedRows(
    prefixes=[(1,), (2,), (3,)],
    continuations=[(11, 12, 13, 14, 0), (21, 22), (31, 0)],  # the second has no EOS
    batch=3,
    model=None,
    eos_token_id=0,
    max_continuation_tokens=8,
)
every = rotations(planned, {0: 3, 1: 3, 2: 3}, 0)
assert sorted(every[0]) == [(12, 13, 14, 11, 0), (13, 14, 11, 12, 0), (14, 11, 12, 13, 0)], (
    f"four tokens can be rotated in three ways, EOS stays: {every[0]}"
)
assert every[1] == [(22, 21)], f"two tokens, no EOS: one rotation, {every[1]}"
assert not every.get(2), f"one token cannot be rotated: {every[2]}"
one = [tuple(rotations(planned, {0: 1}, seed)[0]) for seed in range(20)]
assert len(set(one)) == 3, "twenty seeds should find all three rotations"
assert one == [tuple(rotations(planned, {0: 1}, seed)[0]) for seed in range(20)], (
    "the same seed has to give the same: draw from a torch.Generator with this seed"
)
# Registered, it can stand in a mixture; what it cannot fill is masked.
register("RN")(rotations)
drawn = draw_negatives(planned, {"RN": 2, "TN": 1}, seed=0)
assert drawn.kinds == ["truth", "RN", "RN", "TN"]
assert drawn.mask == [[True] * 4, [True, True, False, True], [True, False, False, False]]

# %% note
# From here `{RN: 2}` may stand in a profile's mixture. Notebook 10 takes a new kind all the way
# into the table of results.

# %% exercise: Meanfield negatives that change nothing | hard | 20 minutes
# MN resamples `swapped` of the ground truth's $T$ positions, chosen at random. At position $t$
# the same token comes back with probability $p_t$, the bars of the plot above. How probable is a
# negative that is the ground truth again?

# %% stub
import torch


def unchanged(probabilities: torch.Tensor, swapped: int) -> float:
    """Probability that all `swapped` positions come back the same, from p [T]."""
    # solution
    # sums[m]: the products of p over m positions, added up over all choices among those so far.
    sums = torch.zeros(swapped + 1, dtype=torch.float64)
    sums[0] = 1
    for p in probabilities.tolist():
        sums[1:] += p * sums[:-1].clone()  # this position is chosen, or it is not
    choices = torch.zeros_like(sums)
    choices[0] = 1
    for _ in probabilities:
        choices[1:] += choices[:-1].clone()
    return float(sums[-1] / choices[-1])
    # end of solution


# %% check
# By hand. One position of two: their mean. Two of three: the mean of three products.
for probabilities, swapped, expected in (
    ([0.2, 0.6], 1, 0.4),
    ([0.5, 0.5, 1.0], 2, (0.25 + 0.5 + 0.5) / 3),
    ([0.9] * 7, 3, 0.9**3),
):
    found = unchanged(torch.tensor(probabilities), swapped)
    assert abs(found - expected) < 1e-5, (
        f"{probabilities}, {swapped} swapped: {expected}, not {found}"
    )
# Sixteen positions, of which 15 % are two, played 20,000 times: choose two, a coin for each.
p = torch.linspace(0.1, 0.95, 16)
generator = torch.Generator().manual_seed(0)
chosen = torch.rand(20_000, 16, generator=generator).argsort(-1)[:, :2]
same = (torch.rand(20_000, 2, generator=generator) < p[chosen]).all(-1).double().mean().item()
found = unchanged(p, 2)
assert abs(found - same) < 0.02, f"in {same:.3f} of the games, not {found:.3f}"

# %% note
# The sum over all choices is an elementary symmetric polynomial; a loop over
# `itertools.combinations` is right as well, and slow for long texts. The rate falls quickly with
# the number of positions: short answers often come back unchanged, much longer ones hardly ever.
# It is the column `equal_to_truth` of the table.
