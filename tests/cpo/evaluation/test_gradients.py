"""The gradient at the start: its derivation on a policy whose sequences can be listed, and its
measurement against autograd and against known expectations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from models import EOS, VOCABULARY, tiny_model
from torch import Tensor

from cpo.evaluation.gradients import (
    Candidates,
    advantages,
    chunk_gradients,
    compare_gradients,
    comparison,
    inner_products,
    jackknife,
    ranked_advantages,
)
from cpo.losses import cpo_loss, ranked_cpo_loss
from cpo.scoring import Group, GroupScorer, collate_groups, sequence_logps

# --- Advantages -----------------------------------------------------------------------------------


def test_advantages_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, True]])
    # eq. 1: 1 - 1/K and -1/K, with K = 3 and 2.
    expected = [[2 / 3, -1 / 3, -1 / 3], [1 / 2, 0, -1 / 2]]
    np.testing.assert_allclose(advantages(mask), expected, atol=1e-15)
    # eq. 2, K = 3: factors of 3, 2 and 1 candidates. Best 1 - 1/3; next 1 - 1/3 - 1/2; last
    # 1 - 1/3 - 1/2 - 1. K = 2: 1 - 1/2, 1 - 1/2 - 1.
    expected = [[2 / 3, 1 / 6, -5 / 6], [1 / 2, 0, -1 / 2]]
    np.testing.assert_allclose(ranked_advantages(mask), expected, atol=1e-15)


def test_ranked_advantages_are_harmonic_numbers():
    k = 12
    (row,) = ranked_advantages(torch.ones(1, k, dtype=torch.bool))
    harmonic = [math.fsum(1 / i for i in range(1, n + 1)) for n in range(k + 1)]
    expected = [1 - (harmonic[k] - harmonic[k - m]) for m in range(1, k + 1)]
    np.testing.assert_allclose(row, expected, atol=1e-14)
    assert row[0] == pytest.approx(1 - 1 / k) and row[-1] == pytest.approx(1 - harmonic[k])
    assert float(row.sum()) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("loss", "of"), [(cpo_loss, advantages), (ranked_cpo_loss, ranked_advantages)]
)
def test_advantages_are_what_autograd_finds_at_the_reference(loss, of):
    generator = torch.Generator().manual_seed(1)
    logps = 20 * torch.randn(6, 7, dtype=torch.float64, generator=generator) - 40
    mask = torch.rand(6, 7, generator=generator) > 0.3
    mask[:, 0] = True
    mask[0, 1:] = False  # only the ground truth: no gradient
    leaf = logps.clone().requires_grad_()
    loss(leaf, logps, 3.0, mask).backward()
    torch.testing.assert_close(-leaf.grad, 3.0 * of(mask) / 6, atol=1e-14, rtol=0)


# --- The derivation, without sampling -------------------------------------------------------------

LETTERS, LENGTH, K, BETA = 2, 2, 3, 0.7
END = LETTERS  # the token that ends a sequence; one of `LENGTH` letters is capped
SEQUENCES = [
    (*letters, *end)
    for length in range(LENGTH + 1)
    for letters in itertools.product(range(LETTERS), repeat=length)
    for end in [(END,) if length < LENGTH else ()]
]
# How good each sequence is, without ties: eq. 2 orders negatives by it.
QUALITY = torch.randperm(len(SEQUENCES), generator=torch.Generator().manual_seed(2)).double()


def policy_weights(seed: int = 0) -> Tensor:
    """Logits of the next token in every context of at most one letter, `[3, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    contexts = sum(LETTERS**length for length in range(LENGTH))
    return torch.randn(contexts, LETTERS + 1, dtype=torch.float64, generator=generator)


def sequence_logps_of(weights: Tensor, keep: int | None = None) -> Tensor:
    """log pi of every sequence, `[S]`; with `keep`, each token is one of the `keep` likeliest."""
    contexts = [
        letters
        for length in range(LENGTH)
        for letters in itertools.product(range(LETTERS), repeat=length)
    ]
    if keep is not None:
        least = weights.topk(keep, -1).values[:, -1:]
        weights = weights.masked_fill(weights < least, -torch.inf)
    logps = weights.log_softmax(-1)
    return torch.stack([
        torch.stack(
            [logps[contexts.index(sequence[:at]), token] for at, token in enumerate(sequence)]
        ).sum()
        for sequence in SEQUENCES
    ])  # fmt: skip


def expected_gradient(
    loss: Callable[..., Tensor], data: Tensor, negatives: Tensor, ranked: bool
) -> Tensor:
    """The gradient of the expected loss at policy = reference, by autograd through the loss, over
    every y_1 ~ data and every pair y_2, y_3 ~ negatives."""
    weights = policy_weights().requires_grad_()
    logps = sequence_logps_of(weights)
    total = torch.zeros((), dtype=torch.float64)
    for truth, *others in itertools.product(range(len(SEQUENCES)), repeat=K):
        probability = data[truth] * negatives[others].prod()
        if ranked:
            others.sort(key=lambda one: -float(QUALITY[one]))
        if probability > 0:
            row = logps[[truth, *others]][None]
            total = total + probability * loss(row, row.detach(), BETA)
    (gradient,) = torch.autograd.grad(total, weights)
    return gradient


def mle_gradient(data: Tensor) -> Tensor:
    weights = policy_weights().requires_grad_()
    return torch.autograd.grad(-(data * sequence_logps_of(weights)).sum(), weights)[0]


OWN = sequence_logps_of(policy_weights()).exp()  # the policy's own probabilities
DATA = sequence_logps_of(policy_weights(seed=1)).exp()  # those of other data
TRUNCATED = sequence_logps_of(policy_weights(), keep=2).exp()


def test_the_listed_sequences_are_all_there_are():
    for probabilities in (OWN, DATA, TRUNCATED):
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-14)
    assert (TRUNCATED == 0).any() and (OWN > 0).all()


def test_plain_an_is_mle_with_less_weight():
    mle = mle_gradient(DATA)
    found = expected_gradient(cpo_loss, DATA, OWN, ranked=False)
    assert float(mle.norm()) > 0.1
    torch.testing.assert_close(found, (1 - 1 / K) * BETA * mle, atol=1e-10, rtol=0)


def test_plain_an_leaves_a_converged_reference_where_it_is():
    assert float(mle_gradient(OWN).norm()) < 1e-14
    assert float(expected_gradient(cpo_loss, OWN, OWN, ranked=False).norm()) < 1e-14


def test_truncated_an_pushes_mass_out_of_the_head():
    found = expected_gradient(cpo_loss, OWN, TRUNCATED, ranked=False)
    assert float(found.norm()) > 0.01  # not (1 - 1/K) beta times MLE's, which is 0
    # At the start of the sequence, the mean score of q's samples is q - pi: a step against the
    # gradient takes from the two tokens that q keeps, pi / (pi_1 + pi_2), and gives to the third.
    shares = policy_weights()[0].softmax(-1)
    kept = shares.topk(2).indices
    head = torch.zeros(3, dtype=torch.float64)
    head[kept] = shares[kept] / shares[kept].sum()
    expected = (1 - 1 / K) * BETA * (head - shares)
    torch.testing.assert_close(found[0], expected, atol=1e-10, rtol=0)
    assert (found[0][kept] > 0).all()


def test_ranked_an_is_a_policy_gradient_at_a_converged_reference():
    found = expected_gradient(ranked_cpo_loss, OWN, OWN, ranked=True)
    assert float(found.norm()) > 0.01
    weights = policy_weights().requires_grad_()
    quality = (sequence_logps_of(weights).exp() * QUALITY).sum()
    (of_quality,) = torch.autograd.grad(quality, weights)
    assert float((-found * of_quality).sum()) > 0.01  # a step raises the expected quality
    # REINFORCE with the rank as advantage: of three draws, y_1 has 2/3 whatever it is, and its
    # mean score is 0; of the two others, the better has 1/6 and the worse -5/6 (by hand, above).
    worse = QUALITY[None] < QUALITY[:, None]  # [s, other]
    better = worse.double() @ OWN + OWN / 2  # the probability of ranking before the other draw
    reward = better * (1 / 6) + (1 - better) * (-5 / 6)
    weights = policy_weights().requires_grad_()
    surrogate = -BETA * 2 * (OWN * reward * sequence_logps_of(weights)).sum()
    (expected,) = torch.autograd.grad(surrogate, weights)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


# --- Gradients of a model -------------------------------------------------------------------------


def drawn_groups(model, count: int, k: int, length: int = 3) -> list[Group]:
    """Prompts with a random response, and k - 1 samples of the model's own, all of one length: its
    untruncated distribution over sequences of that length."""
    generator = torch.Generator().manual_seed(3)

    def ids(number: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (number,), generator=generator).tolist()

    groups = []
    for prefix in (ids(2) for _ in range(count)):
        drawn = torch.tensor([prefix] * (k - 1))
        for _ in range(length):
            with torch.no_grad():
                shares = model(drawn).logits[:, -1].softmax(-1)
            drawn = torch.cat([drawn, torch.multinomial(shares, 1, generator=generator)], -1)
        groups.append(Group(prefix, [ids(length), *drawn[:, len(prefix) :].tolist()]))
    return groups


def ragged() -> tuple[list[Group], Tensor]:
    """Five groups of four candidates, some empty and masked; one has no negative at all."""
    groups = [
        Group([3, 4], [[5, 6, EOS], [7, 8], [5, EOS], [9, 9, 9, 9]]),
        Group([6], [[5, EOS], [], [7, 8, 9, EOS], []]),
        Group([8, 9, 10], [[11, 12, 13, EOS], [11, EOS], [], [2]]),
        Group([1, 2], [[5, 6], [], [], []]),
        Group([7], [[9, EOS], [1], [2], [3, 4]]),
    ]
    return groups, torch.tensor([[len(one) > 0 for one in g.continuations] for g in groups])


@pytest.mark.parametrize("architecture", ["gpt2", "llama-tied"])
@pytest.mark.parametrize(
    ("loss", "of"), [(cpo_loss, advantages), (ranked_cpo_loss, ranked_advantages)]
)
def test_equals_autograd_through_the_loss(architecture, loss, of):
    model = tiny_model(architecture).eval()
    groups, mask = ragged()
    logps = GroupScorer(model)(**collate_groups(groups))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(logps, logps.detach(), 2.0, mask), parameters)
    expected = -torch.cat([one.flatten() for one in gradients])
    weights = torch.stack([of(mask), of(mask) * 0])
    for micro_batch in (1, 2, 5):
        found = chunk_gradients(model, groups, weights, 1, micro_batch)
        assert found.shape == (2, 1, len(expected)) and found.dtype == torch.float32
        torch.testing.assert_close(2 * found[0, 0], expected, atol=1e-5, rtol=1e-4)
        assert not found[1].any()
    assert all(one.grad is None for one in parameters)


def test_gradients_of_a_large_model_are_never_held_at_once():
    model = tiny_model("llama").eval()
    groups, mask = ragged()
    parameters = list(model.parameters())
    held, most = 0, 0
    before = torch.ones_like(parameters[0])
    parameters[0].grad = before.clone()

    def count(_: Tensor) -> None:
        nonlocal held, most
        held = sum(one.grad.numel() for one in parameters if one.grad is not None)
        most = max(most, held)

    hooks = [one.register_post_accumulate_grad_hook(count) for one in parameters]
    chunk_gradients(model, groups, advantages(mask)[None], 1, 5)
    for hook in hooks:
        hook.remove()
    assert 0 < most == max(one.numel() for one in parameters)  # one at a time
    assert torch.equal(parameters[0].grad, before)  # what the model had is left as it was


def test_chunks_are_means_over_their_own_prompts():
    model = tiny_model("gpt2").eval()
    groups, _ = ragged()
    weights = torch.zeros(1, 5, 4)
    weights[..., 0] = 1
    (found,) = chunk_gradients(model, groups, weights, 2, 2)
    for chunk, rows in ((0, groups[:3]), (1, groups[3:])):
        logp = sum(sequence_logps(model, one.prefix_ids, one.continuations[:1])[0] for one in rows)
        gradients = torch.autograd.grad(logp / len(rows), list(model.parameters()))
        expected = torch.cat([one.flatten() for one in gradients])
        torch.testing.assert_close(found[chunk], expected, atol=1e-5, rtol=1e-4)


def test_a_sample_of_the_entries_has_nearly_the_same_cosines():
    model = tiny_model("llama").eval()
    groups = drawn_groups(model, 12, 4)
    weights = advantages(torch.ones(12, 4, dtype=torch.bool))[None]
    count = sum(one.numel() for one in model.parameters())
    whole, sample, again = (
        chunk_gradients(model, groups, weights, 4, 12, coordinates=limit)[0].double()
        for limit in (count, count // 2, count // 2)
    )
    assert whole.shape[-1] == count and count // 2 <= sample.shape[-1] < 0.6 * count
    assert torch.equal(sample, again)
    cosines = [torch.corrcoef(one) for one in (whole, sample)]
    torch.testing.assert_close(*cosines, atol=0.1, rtol=0)


# --- The comparison -------------------------------------------------------------------------------


def test_own_samples_give_mle_and_the_bias_of_a_noisy_mean_is_gone():
    model = tiny_model("gpt2").eval()
    groups, k = drawn_groups(model, 96, 7), 7
    mask = torch.ones(96, k, dtype=torch.bool)
    own = Candidates(groups, mask, {"own": advantages(mask)})
    found = compare_gradients(model, [own], chunks=12, micro_batch=96)
    measures = found["own"]
    # The expectations: cosine 1, length 1 - 1/K, negative part 0.
    assert measures["cosine"].low < 1 < measures["cosine"].high
    assert measures["length"].low < 1 - 1 / k < measures["length"].high
    assert measures["negative"].low == 0
    assert measures["cosine"].value == pytest.approx(1, abs=0.05)
    assert {one.n for one in measures.values()} == {96}
    assert set(found["MLE"]) == {"common"}
    # The length of the noisy mean itself is far from 0.
    parts = advantages(mask)[None].clone()
    parts[..., 0] = 0
    truth = (advantages(mask) > 0).double()[None]
    noisy = float(chunk_gradients(model, groups, parts, 1, 96).norm())
    mle = float(chunk_gradients(model, groups, truth, 1, 96).norm())
    assert noisy / mle > 2 * measures["negative"].value and noisy / mle > 0.1


def test_others_and_ranks_are_told_from_mle():
    model = tiny_model("gpt2").eval()
    groups = drawn_groups(model, 96, 5)
    mask = torch.ones(96, 5, dtype=torch.bool)
    # One and the same text as every negative; and own samples ranked by their first token.
    same = [Group(one.prefix_ids, [one.continuations[0], *[[7, 8, 9]] * 4]) for one in groups]
    first = torch.tensor([[0, *(ids[0] for ids in one.continuations[1:])] for one in groups])
    order = first.argsort(dim=-1, stable=True)
    ranks = torch.zeros(96, 5, dtype=torch.float64).scatter(1, order, ranked_advantages(mask))
    found = compare_gradients(
        model,
        [
            Candidates(same, mask, {"same": advantages(mask)}),
            Candidates(groups, mask, {"own": advantages(mask), "ranked": ranks}),
        ],
        micro_batch=96,
    )
    assert list(found) == ["MLE", "same", "own", "ranked"]
    for kind in ("same", "ranked"):
        assert found[kind]["cosine"].high < 1 and found[kind]["negative"].low > 0
    # Without noise the halves agree, and so does the plain norm.
    weights = torch.zeros(2, 96, 5, dtype=torch.float64)
    weights[0, :, 0] = 1
    weights[1, :, 1:] = -1 / 5
    mle, negative = chunk_gradients(model, same, weights, 1, 96)[:, 0].norm(dim=-1).tolist()
    assert found["same"]["negative"].value == pytest.approx(negative / mle, rel=1e-4)


def test_a_single_negative_and_a_row_without_any_are_counted():
    model = tiny_model("llama").eval()
    groups, mask = ragged()
    one = Candidates(groups, mask, {"kind": advantages(mask)})
    found = compare_gradients(model, [one], chunks=3)["kind"]
    assert all(math.isfinite(measure.value) for measure in found.values())
    mask = mask.clone()
    mask[:, 1:] = False
    nothing = Candidates(groups, mask, {"kind": advantages(mask)})
    empty = compare_gradients(model, [nothing], chunks=3)["kind"]
    assert empty["length"].value == 0 and math.isnan(empty["cosine"].value)


def test_candidates_for_other_responses_are_refused():
    groups, mask = ragged()
    swapped = [groups[1], groups[0], *groups[2:]]
    both = [Candidates(one, mask, {"kind": advantages(mask)}) for one in (groups, swapped)]
    with pytest.raises(ValueError, match="same prompts and recorded responses"):
        compare_gradients(tiny_model("gpt2"), both)
    single = Candidates(groups[:1], mask[:1], {"kind": advantages(mask[:1])})
    with pytest.raises(ValueError, match="two prompts"):
        compare_gradients(tiny_model("gpt2"), [single])


def test_measures_by_hand():
    # Two dimensions. MLE (1, 0) in either chunk; positive part half of it; negative part (0, 1/2).
    mle = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    negative = torch.tensor([[0.0, 0.5], [0.0, 0.5], [0.0, 0.5]])
    vectors = torch.stack([mle, mle / 2, negative, negative])
    found = comparison("kind", inner_products(vectors), 30)
    values = {name: one.value for name, one in found["kind"].items()}
    # (1/2, 1/2) against (1, 0): cosine 1/sqrt 2, length 1/sqrt 2; all chunks agree.
    half = math.sqrt(0.5)
    assert values == pytest.approx({"cosine": half, "length": half, "negative": 0.5, "common": 1})
    assert found["MLE"]["common"].value == pytest.approx(1)
    # Two chunks of orthogonal gradients have nothing in common: 0 of different chunks.
    mle = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = comparison("kind", inner_products(torch.stack([mle, mle, 0 * mle, 0 * mle])), 30)
    assert found["MLE"]["common"].value == pytest.approx(0)
    assert math.isnan(found["MLE"]["common"].low)  # two chunks give no interval


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=9)
    (found,) = jackknife(lambda kept: np.array([values[kept].mean()]), 9, 90)
    half = 2.306004 * values.std(ddof=1) / 3  # t(8) at 97.5 %, times s / sqrt n
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
