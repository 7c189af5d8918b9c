"""Where equation 1 takes the policy: numbers that can be had by hand."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
import torch

from cpo.losses import cpo_loss
from cpo_suite.teaching import optimum as world
from cpo_suite.teaching.optimum import (
    ANSWERS,
    BETAS,
    DATA,
    KINDS,
    REFERENCE,
    STATES,
    candidate_sets,
    expectation,
    noise,
    optimum,
    optimum_page,
)

matplotlib.use("agg")


def normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def test_the_world_holds_distributions():
    assert DATA.sum() == pytest.approx(1) and REFERENCE.sum() == pytest.approx(1)
    for kind in KINDS:
        table = noise(kind)
        assert set(table.sum(1).round(12)) <= {0.0, 1.0} and (table >= 0).all()
    # "It" has neither a truncation nor another city; "It is" is cut to "It".
    assert noise("TN")[4].tolist() == [0, 0, 0, 0, 0, 1] and noise("TN")[5].sum() == 0
    assert noise("MN")[4:].sum() == 0 and noise("MN")[1].tolist() == [0, 0, 0, 1, 0, 0]
    # Half of the batch is on Italy: "It is Paris" is (0.48 + 0.06) / 2 of it.
    assert noise("BN")[3].tolist() == pytest.approx([0.27, 0.18, 0.27, 0.18, 0.06, 0.04])


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("kind", "again"), [("AN", False), ("TN", True), ("all", True)])
def test_the_expectation_is_that_of_the_projects_loss(kind, size, again):
    probability, candidates = candidate_sets(noise(kind), size, again)
    assert probability.sum() == pytest.approx(1)
    rewards = torch.linspace(-1.0, 1.5, len(ANSWERS), dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor(candidates)
    mask = drawn.any(-1)
    logps = drawn @ rewards
    each = torch.stack(
        [
            cpo_loss(one[None], torch.zeros_like(one)[None], 1.0, some[None])
            for one, some in zip(logps, mask, strict=True)
        ]
    )
    loss = (torch.tensor(probability) * each).sum()
    (gradient,) = torch.autograd.grad(loss, rewards)
    ours = expectation(rewards.detach().numpy(), probability, candidates)
    assert ours[0] == pytest.approx(loss.item())
    assert ours[1] == pytest.approx(gradient.numpy())


@pytest.mark.parametrize("size", [2, 3, 5])
def test_independent_negatives_lead_to_what_section_9_says_whatever_k_is(size):
    # exp r ~ p / A; from the reference: pi ~ ref^(1 - 1/beta) p^(1/beta), at beta 1 the data.
    found = optimum("AN", size)
    assert found.exists and found.first_loss == pytest.approx(math.log(size))
    assert found.policy(1.0) == pytest.approx(DATA, abs=1e-9)
    for beta in BETAS:
        by_hand = normalised(REFERENCE ** (1 - 1 / beta) * DATA ** (1 / beta))
        assert found.policy(beta) == pytest.approx(by_hand, abs=1e-9)
    # p / A of other prompts' answers: 0.48 / 0.27 = 0.32 / 0.18 = 16/9, 0.06 / 0.27 = 2/9, cuts 1.
    # Times the reference, over 9: 4, 2.4, 0.4, 0.24, 1.62, 0.9, which add up to 9.56.
    by_hand = np.array([4.0, 2.4, 0.4, 0.24, 1.62, 0.9]) / 9.56
    assert optimum("BN", size).policy(1.0) == pytest.approx(by_hand, abs=1e-9)


def test_drawing_again_moves_the_optimum_with_k():
    # K = 2: the pair (j, k) has j as the truth with p_j A_k / (1 - A_j). Over A_j A_k it is
    # p_j / (A_j (1 - A_j)), a factor of j alone: so exp r is that.
    for kind, table in (("AN", REFERENCE), ("BN", noise("BN")[0])):
        by_hand = normalised(REFERENCE * DATA / (table * (1 - table)))
        assert optimum(kind, 2, again=True).policy(1.0) == pytest.approx(by_hand, abs=1e-9)
    # K = 6: every set is the whole world, and says j with p_j alone: exp r ~ p, whatever A. Times
    # the reference: 0.12, 0.048, 0.012, 0.0048, 0.0108, 0.004, which add up to 0.1996.
    by_hand = np.array([0.12, 0.048, 0.012, 0.0048, 0.0108, 0.004]) / 0.1996
    for kind in ("AN", "BN", "all"):
        found = optimum(kind, 6, again=True)
        assert found.policy(1.0) == pytest.approx(by_hand, abs=1e-9)
        assert found.loss == pytest.approx(-(DATA * np.log(DATA)).sum())  # the data's entropy


def test_one_word_replaced_decides_between_the_cities_alone():
    # Only pairs of one length compete, Paris with 0.48 : 0.06 = 0.32 : 0.04 = 8 : 1 for the truth.
    # So their rewards differ by ln 8, and add up to 0, as at the start; cuts have r = 0. Losses:
    # ln 2 for the nine tenths of the data that have a city; and of these the entropy of 8 : 1.
    found = optimum("MN", 2)
    half = math.log(8) / 2
    assert found.rewards == pytest.approx([half, half, -half, -half, 0, 0], abs=1e-9)
    assert found.first_loss == pytest.approx(0.9 * math.log(2))
    entropy = math.log(9) - 8 / 9 * math.log(8)
    assert found.loss == pytest.approx(0.9 * entropy)


def test_truncations_alone_have_no_optimum():
    for size, again in ((2, False), (3, True)):
        found = optimum("TN", size, again)
        assert not found.exists and 0 < found.loss <= 0.1 * found.first_loss
        right, short, wrong, _, cut, shorter = found.rewards
        assert short == pytest.approx(0)  # "Paris" is neither cut nor a cut
        assert right > cut > shorter and wrong > cut  # "It is Rome" rises as a right answer does
        assert found.policy(1.0)[2] > REFERENCE[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [False, True])
def test_at_the_optimum_nothing_pushes_any_more(kind, again):
    found = optimum(kind, 4, again)
    _, gradient, _ = expectation(found.rewards, *candidate_sets(noise(kind), 4, again))
    assert (np.abs(gradient).max() < 1e-12) == found.exists
    assert found.rewards.sum() == pytest.approx(0, abs=1e-9)  # pushes add up to zero
    for beta in BETAS:
        assert found.policy(beta).sum() == pytest.approx(1)


def test_the_page_says_its_numbers_and_what_they_mean():
    page = optimum_page("AN", 1.0, 3, False)
    # ln 3 at the start.
    assert "K = 3, beta = 1: loss 1.099 at the start" in page and "at the optimum" in page
    assert "It is Paris from 0.250 to 0.480" in page  # for whom there is no picture
    assert "<td style='text-align:left;vertical-align:top'>0.480</td>" in page
    assert "no optimum" in optimum_page("TN", 1.0, 3, False)
    assert "makes no difference" in optimum_page("AN", 1.0, 6, True)
    assert "makes no difference" not in optimum_page("AN", 1.0, 5, True)


def test_the_piece_is_stored_as_a_dozen_states():
    piece = world.optimum_explorer()
    assert len(STATES) == 12 and [*piece.states] == [*STATES]
    before = piece.picture
    stored = piece.stored()
    assert stored.count(" checked>") == 1
    assert all(f"aria-label='{label}'" in stored for label in STATES)
    assert piece.picture == before
    assert len(stored) < 150_000
