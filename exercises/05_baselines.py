"""Exercises of notebook 05: PSS whose passes come to rest, DPO's first step, what NCE forgets."""

# %% exercise: Passes that come to rest | easy | 15 minutes
# Take PSS at $p = 1$, where every input token is replaced, and put the *most probable* token in the
# place of a sample. A pass is then a plain function of its input: at each place the model's best
# guess, given the tokens before it.
#
# Write the loop: pass after pass, from the input `start`, until a pass changes nothing. Before you
# run the check, say which known way of decoding this is, and after how many passes it must come to
# rest.

# %% stub
from collections.abc import Callable

from torch import Tensor


def until_rest(logits_of: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, int]:
    """The input [T] that a pass leaves alone, and the number of passes that changed something.

    `logits_of(inputs)` is [T, V]: row t is what the model expects at place t, given the tokens of
    `inputs` [T] before t. `start` is [T].
    """
    # solution
    import torch

    inputs, passes = start, 0
    while True:
        following = logits_of(inputs).argmax(-1)
        if torch.equal(following, inputs):
            return inputs, passes
        inputs, passes = following, passes + 1
    # end of solution


# %% check
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM


def counting(inputs):
    """It expects 7 at the first place, and then one more than the token before."""
    return F.one_hot(torch.cat([torch.tensor([7]), inputs[:-1] + 1]), 20).float()


# From 0 0 0 0 0 pass 1 gives 7 1 1 1 1, pass 2 gives 7 8 2 2 2, pass 3 gives 7 8 9 3 3.
ids, passes = until_rest(counting, torch.zeros(5, dtype=torch.long))
assert ids.tolist() == [7, 8, 9, 10, 11], f"a model that counts from 7 rests at {ids.tolist()}?"
assert passes == 5, f"one more place comes to rest in each pass: 5 passes, not {passes}"
assert until_rest(counting, ids)[1] == 0, "what is at rest already needs no pass"

# A real network with random weights, against decoding token by token.
torch.manual_seed(0)
settings = LlamaConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    vocab_size=64, max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
network = LlamaForCausalLM(settings).eval()
prompt = torch.tensor([1, 2, 3])


def next_logits(inputs):
    with torch.no_grad():
        return network(torch.cat([prompt, inputs])[None]).logits[0, len(prompt) - 1 : -1]


decoded = torch.zeros(0, dtype=torch.long)
for _ in range(8):
    best = next_logits(torch.cat([decoded, torch.tensor([0])]))[-1].argmax()
    decoded = torch.cat([decoded, best[None]])
for seed in range(3):
    start = torch.randint(64, (8,), generator=torch.Generator().manual_seed(seed))
    ids, passes = until_rest(next_logits, start)
    assert torch.equal(ids, decoded), "wherever it starts, it has to end at the greedy answer"
    assert passes <= 8, f"8 places are at rest after 8 passes at most, not after {passes}"

# %% note
# It is greedy decoding, and it rests after $T$ passes at most: a place is at rest as soon as all
# places before it are, so pass $n$ settles one more. That is why PSS may freeze the places before
# $n$. Done on purpose it is called Jacobi decoding: the greedy answer, in fewer passes than tokens
# where the model is easy to guess. With *samples* at $p = 1$, $T$ passes would score the ground
# truth after nothing but the model's own words.

# %% exercise: The chosen response can fall | medium | 25 minutes
# Section 2 prints by how much the chosen responses moved, and that need not be upwards. The loss
# pushes the chosen one up and the rejected one down, but both share the model's parameters
# $\theta$. Let $g_w = \nabla_\theta \log \pi_\theta(y_w|x)$ and
# $g_l = \nabla_\theta \log \pi_\theta(y_l|x)$, and take one small step of plain gradient descent
# with rate $\eta$ on eq. 5, from the reference ($\pi_\theta = \pi_{\text{ref}}$).
#
# By how much does each of the two log-probabilities change, to first order in $\eta$? Derive it,
# then write it.

# %% stub
from torch import Tensor


def first_step(chosen: Tensor, rejected: Tensor, beta: float, rate: float) -> tuple[float, float]:
    """The change of log pi(y_w|x) and of log pi(y_l|x) in one step of DPO from the reference.

    `chosen` and `rejected` are g_w and g_l, [P] each: a number for each parameter.
    """
    # solution
    # dL / d log pi(y_w|x) is -beta sigmoid(r_l - r_w), and sigmoid(0) = 1/2; y_l has the opposite.
    step = rate * beta / 2 * (chosen - rejected)
    return float(chosen @ step), float(rejected @ step)
    # end of solution


# %% check
import torch

from cpo.losses import dpo_loss

# Nothing in common: step = 0.1 * 1 / 2 * (1, -1), so one rises by 0.05 and the other falls.
apart = first_step(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), beta=1.0, rate=0.1)
assert torch.allclose(torch.tensor(apart), torch.tensor([0.05, -0.05])), (
    f"+0.05 and -0.05, not {apart}"
)

# The same direction, and the rejected one twice as steep: step = 0.05 * (1 - 2, 0), both fall.
alike = first_step(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), beta=1.0, rate=0.1)
assert torch.allclose(torch.tensor(alike), torch.tensor([-0.05, -0.1])), (
    f"-0.05 and -0.1, not {alike}"
)

# A real policy over 5 sequences, log pi = log softmax(features @ theta), and a real step.
torch.manual_seed(1)
features = torch.randn(5, 3, dtype=torch.float64)
features[1] = 2 * features[0]  # the rejected response is the chosen one, said louder


def pair_logps(theta):
    return (features @ theta).log_softmax(-1)[:2]


theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
before = pair_logps(theta)
g_w, g_l = (torch.autograd.grad(one, theta, retain_graph=True)[0] for one in before)
loss = dpo_loss(before[None], before.detach()[None], beta=5.0)
after = pair_logps(theta.detach() - 1e-6 * torch.autograd.grad(loss, theta)[0])
moved = torch.tensor(first_step(g_w, g_l, beta=5.0, rate=1e-6), dtype=torch.float64)
assert torch.allclose(moved, (after - before).detach(), rtol=1e-3), (
    f"a real step of 1e-6 moves them by {(after - before).tolist()}, you say {moved.tolist()}"
)
print("one step moves the chosen by {:+.1e}, the rejected by {:+.1e}".format(*moved.tolist()))

# %% note
# The chosen response changes by $\tfrac{\eta\beta}{2}\,(|g_w|^2 - g_w \cdot g_l)$. It *falls* where
# the two gradients have more in common than $|g_w|^2$, as those of two texts with many words in
# common may. Only their gap surely grows, by $\tfrac{\eta\beta}{2}\,|g_w - g_l|^2$. CPO has the
# mean gradient of the $K - 1$ negatives in the place of $g_l$, and the factor $(K - 1)/K$ in the
# place of $1/2$: a mean over many different negatives shares less with any one ground truth.

# %% exercise: What NCE forgets | hard | 35 minutes
# Section 9 of notebook 00 found what minimises eq. 1 when $y_1 \sim p_{\text{data}}$ and the
# negatives are drawn independently from $A$: $\pi_{\text{ref}}\,(p_{\text{data}} / A)^{1/\beta}$,
# made to add up to 1. For ranking NCE, where $r_j = \beta \log \pi_\theta(y_j|x)$ has no reference
# in it, the same argument gives another policy. Find it, and write it.
#
# Then put the reference in the place of $A$: what does NCE do to a reference that is perfect
# already?

# %% stub
from torch import Tensor


def nce_optimum(data: Tensor, noise: Tensor, beta: float) -> Tensor:
    """The policy [S] over S sequences that minimises ranking NCE in expectation.

    The ground truth is drawn from `data` [S], each negative from `noise` [S]; both add up to 1.
    """
    # solution
    # The best classifier has exp(r) in proportion to data / noise, and here exp(r) = pi ** beta.
    unnormalised = (data / noise) ** (1 / beta)
    return unnormalised / unnormalised.sum()
    # end of solution


# %% check
import itertools

import torch

data = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
uniform = torch.full((4,), 0.25, dtype=torch.float64)
draws = torch.tensor(list(itertools.product(range(4), repeat=3)))  # every y_1, y_2, y_3


def by_descent(noise, beta):
    """The minimiser of NCE's exact expectation over all 4^3 draws."""
    chance = data[draws[:, 0]] * noise[draws[:, 1:]].prod(-1)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def step():
        search.zero_grad()
        scores = beta * logits.log_softmax(-1)[draws]
        loss = -(chance * scores.log_softmax(-1)[:, 0]).sum()
        loss.backward()
        return loss

    search.step(step)
    return logits.softmax(-1).detach()


for name, noise in {"the reference": reference, "uniform noise": uniform}.items():
    for beta in (0.5, 1.0, 5.0):
        yours, found = nce_optimum(data, noise, beta), by_descent(noise, beta)
        assert torch.allclose(yours.sum(), uniform.sum()), "a policy adds up to 1"
        assert torch.allclose(yours, found, rtol=1e-4, atol=1e-5), (
            f"negatives from {name}, beta {beta:g}: descent ends at {found.tolist()}"
        )
# Only against uniform noise, and at beta = 1, does NCE find the data.
assert torch.allclose(nce_optimum(data, uniform, 1.0), data)
# data / noise = 1 everywhere: a perfect reference gives a policy that has forgotten everything.
assert torch.allclose(nce_optimum(data, data, 1.0), uniform)

# %% note
# With negatives from the reference NCE ends at $(p_{\text{data}} / \pi_{\text{ref}})^{1/\beta}$:
# what the reference did *wrong*, without what it knew. A perfect reference is taken to uniform
# noise. The factor $\pi_{\text{ref}}$ in CPO's optimum is all the difference. Ma and Collins do
# subtract $\log A(y_j)$ from the scores; with $A = \pi_{\text{ref}}$ and $\beta = 1$ that *is* CPO.
