"""Exercises of notebook 01."""

# %% exercise: Where the prompt ends | easy | 10 minutes
# Prefix and continuation are one row of token ids. From the model's logits for that row, add up
# the log-probabilities of the continuation's tokens, and of nothing else. Mind the shift: what
# stands at position $t$ predicts token $t + 1$.

# %% stub
import torch


def continuation_logp(logits: torch.Tensor, ids: torch.Tensor, prefix_length: int) -> torch.Tensor:
    """log pi(y | x), a scalar: logits [T, V] of ids [T], `prefix_length` of them the prefix."""
    # solution
    logps = logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]  # of tokens 1 .. T - 1
    return logps[prefix_length - 1 :].sum()
    # end of solution


# %% check
from transformers import GPT2Config, GPT2LMHeadModel

from cpo.scoring import Group, GroupScorer, collate_groups

# Two tokens in the vocabulary. After the first id the model gives them 1/2 and 1/2, after the
# second 1/4 and 3/4. What it says after the last one predicts nothing that is here.
logits = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]).log()
ids = torch.tensor([0, 1, 1])
for prefix_length, expected in ((1, 1 / 2 * 3 / 4), (2, 3 / 4)):
    found = float(continuation_logp(logits, ids, prefix_length).exp())
    assert abs(found - expected) < 1e-5, (
        f"by hand, a prefix of {prefix_length}: probability {expected}, not {found:.4f}"
    )

config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16)
model = GPT2LMHeadModel(config).eval()
ids = torch.randint(20, (9,))
with torch.no_grad():
    logits = model(ids[None]).logits[0]
    for prefix_length in (1, 4, 8):
        group = Group(ids[:prefix_length].tolist(), [ids[prefix_length:].tolist()])
        expected = GroupScorer(model)(**collate_groups([group]))[0, 0]
        found = continuation_logp(logits, ids, prefix_length)
        assert torch.allclose(found, expected, atol=1e-4), (
            f"GroupScorer, a prefix of {prefix_length}: {expected:.4f}, not {float(found):.4f}"
        )

# %% note
# One place too early counts the prompt's last token as an answer; one too late forgets how the
# answer begins. Neither raises an error, and both train.

# %% exercise: Micro-batches | medium | 15 minutes
# A global batch does not fit into memory and is cut into micro-batches of different sizes. Write
# the backward pass that leaves in `model.weight.grad` the gradient of $L_{\text{MLE}}$ of the
# *whole* batch, while each forward pass sees one micro-batch.

# %% stub
import torch
import torch.nn.functional as F

MicroBatch = tuple[torch.Tensor, torch.Tensor]  # hidden states [N, D] and their next tokens [N]


def accumulate(model: torch.nn.Linear, micro_batches: list[MicroBatch]) -> None:
    """Adds to the model's gradients those of the mean loss over all tokens of all micro-batches."""
    # solution
    tokens = sum(len(targets) for _, targets in micro_batches)
    for states, targets in micro_batches:
        loss = F.cross_entropy(model(states), targets, reduction="sum") / tokens
        loss.backward()
    # end of solution


# %% check
states, targets = torch.randn(12, 4), torch.randint(6, (12,))
model = torch.nn.Linear(4, 6, bias=False)
F.cross_entropy(model(states), targets).backward()
expected = model.weight.grad.clone()
seen = []
model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
for sizes in ([12], [6, 6], [1, 11], [2, 3, 7]):
    model.weight.grad = None
    seen.clear()
    accumulate(model, list(zip(states.split(sizes), targets.split(sizes), strict=True)))
    assert model.weight.grad is not None, "no gradient arrived: call backward"
    assert max(seen) <= max(sizes), f"a forward pass saw more than one micro-batch of {sizes}"
    assert torch.allclose(model.weight.grad, expected, atol=1e-5), (
        f"cut into {sizes}: the gradient is not that of the whole batch"
    )

# %% note
# Each micro-batch adds its *sum*, divided by the tokens of the global batch. The mean of the
# micro-batches' means is right for equal sizes alone, and there the mistake hides.

# %% exercise: A reference that remembers | medium | 10 minutes
# A reference has learnt its training set by heart, and gives a ground truth the log-probability
# `truth_logp`. It samples `count` negatives for that prompt, independently, at temperature 1. How
# probable is it that at least one of them *is* the ground truth?

# %% stub
import math


def holds_the_truth(truth_logp: float, count: int) -> float:
    """Probability that the ground truth is among `count` samples."""
    # solution
    return 1 - (1 - math.exp(truth_logp)) ** count
    # end of solution


# %% check
import random

# A coin: two throws show heads at least once in three cases of four.
assert abs(holds_the_truth(math.log(0.5), 2) - 0.75) < 1e-9, "by hand: 1 - (1/2)(1/2) = 3/4"
assert holds_the_truth(math.log(0.3), 1) < holds_the_truth(math.log(0.3), 5), (
    "more samples, more hits"
)
# 40 tokens of 0.95 each, 11 negatives, played 20,000 times.
truth, dice = 0.95**40, random.Random(0)
games = [any(dice.random() < truth for _ in range(11)) for _ in range(20_000)]
share, found = sum(games) / len(games), holds_the_truth(40 * math.log(0.95), 11)
assert abs(found - share) < 0.02, f"in {share:.3f} of the games, not {found:.3f}"

# %% note
# At 0.95 a token, a loss of 0.05, three prompts in four have the truth among their eleven
# negatives. At a loss of 0.5 and 22 tokens it is one prompt in 5,000: for a text of average loss.
# Short and predictable responses are far more probable, so that real samples equal the truth more
# often (notebook 02). This project draws such a negative again, but near copies of the truth stay.
