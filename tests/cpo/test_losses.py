"""The objectives against numbers derived by hand, explicit forms and their own laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo.losses import cpo_loss, dpo_loss, implicit_rewards, ranked_cpo_loss, ranking_nce_loss


def scores(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64) - 40.0


def explicit_cpo(policy, reference, beta, mask=None):
    """Equation 1 as it is printed: a quotient of exponentials, row by row."""
    total = 0.0
    for row in range(len(policy)):
        usable = range(policy.shape[1]) if mask is None else mask[row].nonzero()[:, 0].tolist()
        terms = {j: math.exp(beta * float(policy[row, j] - reference[row, j])) for j in usable}
        total -= math.log(terms[0] / sum(terms.values()))
    return total / len(policy)


def explicit_ranked(policy, reference, beta, mask=None):
    """Equation 2 with the product around the whole quotient, as in equation 6."""
    total = 0.0
    for row in range(len(policy)):
        usable = range(policy.shape[1]) if mask is None else mask[row].nonzero()[:, 0].tolist()
        terms = [math.exp(beta * float(policy[row, j] - reference[row, j])) for j in usable]
        total -= math.log(math.prod(terms[k] / sum(terms[k:]) for k in range(len(terms))))
    return total / len(policy)


def test_by_hand():
    # beta = 2, log-ratios ln 3, 0, 0 -> rewards 2 ln 3, 0, 0 -> exponentials 9, 1, 1.
    # eq. 1: 9 / 11. eq. 2: 9/11 * 1/2 * 1.
    reference = torch.tensor([[-10.0, -20.0, -30.0]], dtype=torch.float64)
    policy = reference + torch.tensor([[math.log(3), 0.0, 0.0]], dtype=torch.float64)
    assert cpo_loss(policy, reference, 2.0).item() == pytest.approx(-math.log(9 / 11), abs=1e-12)
    ranked = ranked_cpo_loss(policy, reference, 2.0)
    assert ranked.item() == pytest.approx(-math.log(9 / 11 / 2), abs=1e-12)


@pytest.mark.parametrize("k", [2, 5, 12])
def test_starts_at_ln_k_and_ln_k_factorial(k):
    logps = scores(7, k)
    assert cpo_loss(logps, logps, 5.0).item() == pytest.approx(math.log(k), abs=1e-12)
    expected = math.log(math.factorial(k))
    assert ranked_cpo_loss(logps, logps, 5.0).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_explicit_forms(masked):
    policy, reference = scores(9, 6, seed=1, scale=0.5), scores(9, 6, seed=2, scale=0.5)
    mask = None
    if masked:
        mask = torch.rand(9, 6, generator=torch.Generator().manual_seed(3)) < 0.6
        mask[:, 0] = True
    for fast, explicit in ((cpo_loss, explicit_cpo), (ranked_cpo_loss, explicit_ranked)):
        found = fast(policy, reference, 1.7, mask).item()
        assert found == pytest.approx(explicit(policy, reference, 1.7, mask), abs=1e-10)


def test_two_candidates_are_dpo():
    policy, reference = scores(16, 2, seed=4), scores(16, 2, seed=5)
    chosen, rejected = (policy - reference).unbind(-1)
    by_definition = -F.logsigmoid(0.3 * (chosen - rejected)).mean()  # eq. 5
    for loss in (cpo_loss, ranked_cpo_loss, dpo_loss):
        assert loss(policy, reference, 0.3).item() == pytest.approx(by_definition.item(), abs=1e-10)


def test_ranking_nce_is_eq_1_without_a_reference():
    policy = scores(4, 5, seed=6)
    expected = cpo_loss(policy, torch.zeros_like(policy), 0.4)
    assert ranking_nce_loss(policy, 0.4).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_reward_gaps_of_ten_thousand(loss, dtype):
    policy = torch.tensor([[-10_000.0, 0.0, -5_000.0], [0.0, -10_000.0, 10_000.0]], dtype=dtype)
    policy.requires_grad_()
    value = loss(policy, torch.zeros_like(policy), 1.0)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(policy.grad).all()
    # eq. 1 loses 10,000 in either row; the ranked form adds what its tails lose.
    assert value.item() >= 10_000


@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss, dpo_loss])
def test_gradcheck(loss):
    k = 2 if loss is dpo_loss else 4
    policy = scores(3, k, seed=7, scale=1.0).requires_grad_()
    reference = scores(3, k, seed=8, scale=1.0)
    mask = torch.ones(3, k, dtype=torch.bool)
    mask[1, -1] = False
    assert torch.autograd.gradcheck(lambda x: loss(x, reference, 0.7, mask), policy)


@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss, dpo_loss])
def test_masked_columns_take_no_gradient(loss):
    k = 2 if loss is dpo_loss else 4
    policy = scores(2, k).requires_grad_()
    mask = torch.ones(2, k, dtype=torch.bool)
    mask[0, 1] = False
    loss(policy, scores(2, k, seed=1), 1.0, mask).backward()
    assert policy.grad[0, 1] == 0 and policy.grad[1, 1] != 0


def without_reference(policy, reference, beta, mask):
    return ranking_nce_loss(policy, beta, mask)


@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss, dpo_loss, without_reference])
@pytest.mark.parametrize("of_policy", [-math.inf, math.inf, math.nan, -1e30])
@pytest.mark.parametrize("of_reference", [-math.inf, math.inf, math.nan, -1e30])
def test_what_a_masked_column_holds_changes_nothing(loss, of_policy, of_reference):
    k = 2 if loss is dpo_loss else 4
    mask = torch.ones(4, k, dtype=torch.bool)
    mask[0, 1:] = False  # nothing but the ground truth
    mask[1, -1] = mask[2, 1] = False

    def value_and_gradient(of_policy, of_reference):
        policy = scores(4, k, seed=7).masked_fill(~mask, of_policy).requires_grad_()
        reference = scores(4, k, seed=8).masked_fill(~mask, of_reference)
        value = loss(policy, reference, 0.7, mask)
        value.backward()
        return value.item(), policy.grad.tolist()

    value, gradient = value_and_gradient(of_policy, of_reference)
    assert (value, gradient) == value_and_gradient(-40.0, -41.0)
    assert math.isfinite(value) and any(gradient[3])


@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss, dpo_loss, without_reference])
def test_a_usable_ground_truth_that_is_impossible_is_not_hidden(loss):
    policy = scores(2, 2, seed=7)
    policy[0, 0] = -math.inf
    assert loss(policy, scores(2, 2, seed=8), 0.7, None).item() == math.inf


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0.05, 5.0), st.floats(-50, 50))
def test_laws(seed, k, beta, constant):
    policy, reference = scores(3, k, seed=seed), scores(3, k, seed=seed + 1)
    order = torch.randperm(k - 1, generator=torch.Generator().manual_seed(seed)) + 1
    shuffled = torch.cat([torch.zeros(1, dtype=torch.long), order])
    value = cpo_loss(policy, reference, beta)
    # The order of the negatives does not matter to eq. 1 ...
    torch.testing.assert_close(cpo_loss(policy[:, shuffled], reference[:, shuffled], beta), value)
    # ... and a constant added to all rewards, the log Z of eq. 10, to neither equation.
    for loss in (cpo_loss, ranked_cpo_loss):
        torch.testing.assert_close(
            loss(policy + constant, reference, beta), loss(policy, reference, beta)
        )
    # Equation 2's first factor is equation 1, and every further factor is a probability.
    assert ranked_cpo_loss(policy, reference, beta) >= value - 1e-9


def test_the_reference_takes_no_gradient():
    policy, reference = scores(2, 3).requires_grad_(), scores(2, 3, seed=1).requires_grad_()
    cpo_loss(policy, reference, 1.0).backward()
    assert reference.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 2), 1.0), "same shape"),
        ((torch.zeros(6), torch.zeros(6), 1.0), "same shape"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "beta must be positive"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 1.0, torch.ones(2, 3)), "must be bool"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 1.0, torch.zeros(2, 3).bool()), "is masked"),
    ],
)
@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss])
def test_bad_input_is_refused(loss, arguments, message):
    with pytest.raises(ValueError, match=message):
        loss(*arguments)


def test_dpo_and_nce_refuse_bad_input():
    with pytest.raises(ValueError, match="use cpo_loss"):
        dpo_loss(torch.zeros(2, 3), torch.zeros(2, 3), 1.0)
    with pytest.raises(ValueError, match="positive"):
        ranking_nce_loss(torch.zeros(2, 3), -1.0)
    assert implicit_rewards(torch.ones(1, 2), torch.zeros(1, 2), 3.0).tolist() == [[3.0, 3.0]]
