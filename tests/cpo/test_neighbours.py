"""The neighbouring objectives: numbers derived by hand, TRL's own losses, gradients, masks, and how
training gives each the inputs that it names."""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cpo import neighbours
from cpo.held_out import contrast_on
from cpo.losses import cpo_loss, dpo_loss
from cpo.objectives import (
    OBJECTIVES,
    RANKED_OBJECTIVES,
    objective_identity,
    objective_with,
    register_objective,
)
from cpo.registry import RegistryError
from cpo.scoring import Group
from cpo.training import SequenceTrainer, TrainingExample, TrainingSettings, collate

LN2, LN3 = math.log(2), math.log(3)

NAMES = [name for name, loss in OBJECTIVES.items() if loss.__module__.startswith("cpo.neighbours.")]


def ln_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


class Inputs(NamedTuple):
    """What all objectives are tested on: 5 rows of 4 columns, with masks of several kinds."""

    policy_logps: Tensor
    reference_logps: Tensor
    mask: Tensor
    extras: dict[str, Tensor]

    def loss(self, name: str, beta: float = 0.7) -> Callable[[Tensor], Tensor]:
        objective = objective_with(name, self.extras)
        return lambda policy: objective(policy, self.reference_logps, beta, self.mask)


def inputs(rows: int = 5, seed: int = 0, masked: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(rows, 4, generator=generator, dtype=torch.float64)

    mask = torch.ones(rows, 4, dtype=torch.bool)
    if masked:
        mask[0, 1:] = False  # nothing but the ground truth
        mask[1, 1] = mask[2, 3] = mask[3, 2] = False
    reference = normal() - 12
    scores = normal().sigmoid()
    scores[:, 0] = 1.0
    lengths = torch.randint(2, 9, (rows, 4), generator=generator)
    extras = {"lengths": lengths, "scores": scores}
    return Inputs(reference + normal(), reference, mask, extras)


# --- Values ---------------------------------------------------------------------------------------

# Log-ratios ln 3, 0, ln 2 at beta = 2: rewards 2 ln 3, 0, 2 ln 2, whose exponentials are 9, 1, 4.
# So sigmoid(r) = 9/10, 1/2, 4/5; margins ln 9 and ln 9/4, sigmoid(m) = 9/10 and 9/13.
RATIOS = [
    ("pairwise_dpo", {}, -(math.log(9 / 10) + math.log(9 / 13)) / 2),
    ("spin", {}, -(math.log(9 / 10) + math.log(9 / 13)) / 2),
    # ln 9 > 1 costs nothing; ln 9/4 = 0.81 lacks the rest to 1.
    ("spin_hinge", {}, (0 + 1 - math.log(9 / 4)) / 2),
    # m / beta = ln 3 and ln 3/2; 1 / (2 beta) = 1/4.
    ("ipo", {}, ((LN3 - 0.25) ** 2 + (math.log(1.5) - 0.25) ** 2) / 2),
    # 1 - 2 epsilon = 0.8; sigmoid(-m) = 1/10 and 4/13.
    (
        "robust_dpo",
        {"flip_rate": 0.1},
        -(0.9 * math.log(81 / 130) - 0.1 * math.log(4 / 130)) / 2 / 0.8,
    ),
    # Two divergences of two outcomes each, from (9/10, 1/10) and (9/13, 4/13) to (3/4, 1/4).
    (
        "exo",
        {"label_smoothing": 0.25},
        0.45 * math.log(6 / 5)
        + 0.05 * math.log(2 / 5)
        + 9 / 26 * math.log(12 / 13)
        + 4 / 26 * math.log(16 / 13),
    ),
    ("info_nca", {}, -math.log(9 / 14)),
    # sigmoid(-r) = 1/10, 1/2, 1/5, whose product is 1/100.
    ("nca", {}, -math.log(9 / 10) + math.log(100) / 3),
    ("bco", {}, -math.log(9 / 10) + math.log(10) / 2),
    # A shift of 2 ln 2 leaves r - delta = ln 9/4, -ln 4, 0: sigmoid 9/13; of the negation 4/5, 1/2.
    ("bco", {"shift": 2 * LN2}, -math.log(9 / 13) - math.log(4 / 10) / 2),
    ("apo_zero", {}, 1 / 10 + (1 / 2 + 4 / 5) / 2),
    ("apo_down", {}, 9 / 10 + (1 / 10 + 4 / 13) / 2),
    ("sppo_hard", {}, (LN3 - 0.25) ** 2 + (0.25**2 + (LN2 + 0.25) ** 2) / 2),
    # The ground truth is above the reference: no penalty.
    ("dpop", {}, -(math.log(9 / 10) + math.log(9 / 13)) / 2),
    # Labels 1/2, 1/4, 1/4 at a temperature of 1; choices 9/14, 1/14, 4/14.
    (
        "soft_info_nca",
        {"scores": row(LN2, 0, 0), "temperature": 1.0},
        -math.log(9 / 14) / 2 - math.log(4 / 14**2) / 4,
    ),
    # Gains 1, 1/2, 0; places 1, 3, 2, with discounts ln 2, ln 4, ln 3. Pairs (1, 2), (1, 3), (2, 3)
    # lose ln(1 + exp(r_j - r_i)) = ln 10/9, ln 13/9, ln 5.
    (
        "lipo_lambda",
        {"scores": row(1, math.log2(1.5), 0)},
        0.5 * (1 / LN2 - 1 / math.log(4)) * math.log(10 / 9)
        + 1.0 * (1 / LN2 - 1 / LN3) * math.log(13 / 9)
        + 0.5 * (1 / LN3 - 1 / math.log(4)) * math.log(5),
    ),
    # The mean score is 1/2, and only the ground truth lies above it. Distances 1/2, 0, 1/2 count
    # exp(2 ln 2 * d) = 2, 1, 2, so that 9, 1, 4 become 18, 1, 8.
    ("swepo", {"scores": row(1, 0.5, 0), "weight": 2 * LN2}, -math.log(18 / 27)),
    # Mean 2/3: columns 1 and 2 are above. All weights 1: 10 of 14.
    ("swepo", {"scores": row(1, 1, 0), "weight": 0.0}, -math.log(10 / 14)),
]


@pytest.mark.parametrize(("name", "options", "expected"), RATIOS)
def test_of_ratios_by_hand(name, options, expected):
    reference = row(-10, -20, -30)
    policy = reference + row(LN3, 0, LN2)
    found = OBJECTIVES[name](policy, reference, 2.0, None, **options).item()
    assert found == pytest.approx(expected, abs=1e-12)


# Without a reference: log-probabilities, beta, options, expected.
SUMS = [
    # beta times differences is 2 and 1, of which the margin asks 1.5.
    ("slic", row(-1, -2, -1.5), 2.0, {"margin": 1.5}, 0.5 / 2),
    # Per token -1, -2, -3: 2 * 1 - 0.5 and 2 * 2 - 0.5.
    (
        "simpo",
        row(-2, -8, -3),
        2.0,
        {"lengths": torch.tensor([[2, 4, 1]])},
        -(ln_sigmoid(1.5) + ln_sigmoid(3.5)) / 2,
    ),
    # p = 1/2, 1/4, 1/5, with odds 1, 1/3, 1/4: ratios 3 and 4, whose sigmoid(log) is 3/4 and 4/5.
    (
        "orpo",
        row(-2 * LN2, -3 * math.log(4), -math.log(5)),
        0.1,
        {"lengths": torch.tensor([[2, 3, 1]])},
        LN2 - 0.1 * math.log(3 / 5) / 2,
    ),
    # f = -1, -1/2, -1/4; lambda = 0.1 and the pairs lack 0.6, 0.95, 0.35: 1.9. l_1 = -1.
    (
        "brio",
        row(-1, -2, -0.25),
        3.0,
        {"lengths": torch.tensor([[1, 2, 1]]), "margin": 0.1},
        1 + 3 * 1.9,
    ),
    # l = -1, -1, -1/4: pairs lack 0, 3/4, 3/4.
    ("rrhf", row(-1, -2, -0.25), 3.0, {"lengths": torch.tensor([[1, 2, 1]])}, 1 + 3 * 1.5),
    (
        "rrhf",
        row(-1, -2, -0.25),
        3.0,
        {"lengths": torch.tensor([[1, 2, 1]]), "likelihood_weight": 0.0},
        3 * 1.5,
    ),
    # Q = 1/2, 1/4, 1/4 and risks 0, 1/2, 1.
    ("expected_risk", row(LN2 - 9, -9, -9), 1.0, {"scores": row(1, 0.5, 0)}, 0.375),
]


@pytest.mark.parametrize(("name", "policy", "beta", "options", "expected"), SUMS)
def test_of_log_probabilities_by_hand(name, policy, beta, options, expected):
    for reference in (policy, policy - row(3, 1, 2)):  # it does not matter
        found = OBJECTIVES[name](policy, reference, beta, None, **options).item()
        assert found == pytest.approx(expected, abs=1e-12)


def test_dpop_by_hand():
    # r = -ln 2, 0 and lambda = 2: -ln 2 - 2 ln 2 = -ln 8, whose sigmoid is 1/9.
    found = neighbours.dpop_loss(row(-10 - LN2, -20), row(-10, -20), 1.0, penalty=2.0).item()
    assert found == pytest.approx(math.log(9), abs=1e-12)


def test_what_are_the_same_objective():
    policy, reference, mask, extras = inputs()
    arguments = policy, reference, 0.7, mask

    def same(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    pairwise = neighbours.pairwise_dpo_loss(*arguments)
    same(neighbours.spin_loss(*arguments), pairwise)
    same(neighbours.robust_dpo_loss(*arguments, flip_rate=0.0), pairwise)
    same(neighbours.dpop_loss(*arguments, penalty=0.0), pairwise)
    same(neighbours.info_nca_loss(*arguments), cpo_loss(*arguments))
    scores = extras["scores"]  # below 0.95 but for the ground truth
    cold = neighbours.soft_info_nca_loss(*arguments, scores=scores, temperature=1e-3)
    same(cold, cpo_loss(*arguments))
    only_truth = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand_as(policy)
    # The distance of the ground truth from the mean favours it, and a weight of 0 does not.
    same(neighbours.swepo_loss(*arguments, scores=only_truth, weight=0.0), cpo_loss(*arguments))
    ones = torch.ones_like(policy, dtype=torch.long)
    simpo = neighbours.simpo_loss(*arguments, lengths=ones, margin=0.0)
    same(simpo, neighbours.pairwise_dpo_loss(policy, torch.zeros_like(policy), 0.7, mask))
    # In pairs, the listwise objective is DPO.
    pairs = policy[:, :2], reference[:, :2], 0.7, mask[:, :2]
    same(neighbours.pairwise_dpo_loss(*pairs), dpo_loss(*pairs))


# --- TRL's own losses, in pairs -------------------------------------------------------------------

BETA = 0.3

# By TRL's `loss_type`: the objective's name, its options here, and TRL's label smoothing.
TRL = {
    "sigmoid": ("pairwise_dpo", {}, 0.0),
    "hinge": ("spin_hinge", {}, 0.0),
    "ipo": ("ipo", {}, 0.0),
    "exo_pair": ("exo", {}, 1e-3),
    "nca_pair": ("nca", {}, 0.0),
    "robust": ("robust_dpo", {"flip_rate": 0.2}, 0.2),
    "bco_pair": ("bco", {}, 0.0),
    "sppo_hard": ("sppo_hard", {}, 0.0),
    "apo_zero": ("apo_zero", {}, 0.0),
    "apo_down": ("apo_down", {}, 0.0),
}


def trl_loss(loss_type: str, smoothing: float, token_logps: Tensor, reference: Tensor) -> Tensor:
    """The loss of TRL's DPO trainer on given log-probabilities, without a model.

    Args:
        token_logps: `[2B, L]` of the policy, the B chosen responses first.
        reference: `[B, 2]`, sums.
    """
    trl = pytest.importorskip("trl", reason="TRL, the other implementation, is not installed")
    rows, tokens = token_logps.shape
    zeros = torch.zeros(rows, tokens)
    outputs = SimpleNamespace(
        log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    one_process = SimpleNamespace(
        device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=one_process,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=smoothing,
        use_weighting=False,
        beta=BETA,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    ids = torch.ones(rows, tokens + 1, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[:, 0] = 0  # the prompt
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    batch |= {"ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1]}
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)


@pytest.mark.parametrize("loss_type", TRL)
def test_a_pair_has_the_loss_and_gradient_of_trl(loss_type):
    name, options, smoothing = TRL[loss_type]
    # TRL divides IPO's log-ratios by lengths, which are 1 here.
    tokens = 1 if loss_type == "ipo" else 3
    generator = torch.Generator().manual_seed(1)
    token_logps = torch.randn(12, tokens, generator=generator, dtype=torch.float64) - 3
    token_logps.requires_grad_()
    policy = torch.stack(token_logps.sum(-1).chunk(2), -1)  # [B, 2]
    reference = policy.detach() + torch.randn(6, 2, generator=generator, dtype=torch.float64)
    theirs = trl_loss(loss_type, smoothing, token_logps, reference)
    ours = OBJECTIVES[name](policy, reference, BETA, None, **options)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, token_logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


def test_simpo_and_orpo_are_trl_s():
    pytest.importorskip("trl", reason="TRL, the other implementation, is not installed")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    lengths = inputs(masked=False).extras["lengths"][:, :2]
    policy = inputs(masked=False).policy_logps[:, :2]
    per_token = policy / lengths
    settings = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0
    )
    settings.accelerator = SimpleNamespace(device="cpu")
    theirs = CPOTrainer.cpo_loss(settings, *per_token.unbind(-1))[0].mean()
    ours = neighbours.simpo_loss(policy, policy, 2.0, lengths=lengths)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)

    settings.beta = 0.1
    contrast = -ORPOTrainer.odds_ratio_loss(settings, *per_token.unbind(-1))[0].mean()
    ours = neighbours.orpo_loss(policy, policy, 0.1, lengths=lengths, likelihood_weight=0.0)
    assert ours.item() == pytest.approx(contrast.item(), abs=1e-6)


# --- Gradients and masks --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    given = inputs()
    policy = given.policy_logps.clone().requires_grad_()
    assert torch.autograd.gradcheck(given.loss(name), policy)


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_column_might_as_well_be_absent(name):
    policy, reference, mask, extras = inputs()
    rows = []
    for number, usable in enumerate(mask):
        of_row = {key: value[number, usable][None] for key, value in extras.items()}
        logps = policy[number, usable][None], reference[number, usable][None]
        rows.append(objective_with(name, of_row)(*logps, 0.7, None).item())
    assert inputs().loss(name)(policy).item() == pytest.approx(sum(rows) / len(rows), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan, -1e30])
def test_what_a_masked_column_holds_changes_nothing(name, value):
    def value_and_gradient(held: float, length: int) -> tuple[float, list]:
        policy, reference, mask, extras = inputs()
        other = {
            "lengths": extras["lengths"].masked_fill(~mask, length),
            "scores": extras["scores"].masked_fill(~mask, held),
        }
        policy = policy.masked_fill(~mask, held).requires_grad_()
        reference = reference.masked_fill(~mask, held)
        loss = objective_with(name, other)(policy, reference, 0.7, mask)
        loss.backward()
        return loss.item(), policy.grad.tolist()

    found, gradient = value_and_gradient(value, 0)
    assert (found, gradient) == value_and_gradient(-40.0, 3)
    assert math.isfinite(found) and any(gradient[4])
    assert all(of == 0 for of in torch.tensor(gradient)[~inputs().mask].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_far_from_the_reference_nothing_overflows(name):
    policy = torch.tensor([[-9000.0, -1.0, -4000.0], [-0.5, -9000.0, -1.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, -9000.0, -1.0], [-9000.0, -1.0, -4000.0]])
    extras = {"lengths": torch.full((2, 3), 5), "scores": torch.tensor([[1.0, 0.5, 0.1]] * 2)}
    loss = objective_with(name, extras)(policy, reference, 1.0, None)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(policy.grad).all()


def test_certain_tokens_have_finite_odds():
    policy = torch.tensor([[0.0, -3.0]], requires_grad=True)
    loss = neighbours.orpo_loss(policy, policy, 0.1, lengths=torch.tensor([[2, 2]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused(name):
    policy, reference, mask, extras = inputs()
    objective = objective_with(name, extras)
    with pytest.raises(ValueError, match="same shape"):
        objective(policy, reference[:, :2], 0.7, mask) if name in USES_REFERENCE else objective(
            policy[0], policy[0], 0.7, None
        )
    with pytest.raises(ValueError, match="beta must be positive"):
        objective(policy, reference, 0.0, mask)
    with pytest.raises(ValueError, match="must be bool"):
        objective(policy, reference, 0.7, mask.double())
    with pytest.raises(ValueError, match="is masked"):
        objective(policy, reference, 0.7, ~mask)
    for key in set(extras) & set(inspect.signature(OBJECTIVES[name]).parameters):
        with pytest.raises(ValueError, match=f"{key} must be of the shape"):
            OBJECTIVES[name](policy, reference, 0.7, mask, **{key: extras[key][:, :2]})


def test_bad_options_are_refused():
    policy, reference, mask, extras = inputs()
    with pytest.raises(ValueError, match=r"flip_rate must be in \[0, 0.5\), not 0.5"):
        neighbours.robust_dpo_loss(policy, reference, 0.7, flip_rate=0.5)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \(0, 0.5\), not 0"):
        neighbours.exo_loss(policy, reference, 0.7, label_smoothing=0)
    with pytest.raises(ValueError, match="a usable continuation has no tokens: mask it"):
        neighbours.simpo_loss(policy, reference, 0.7, mask, lengths=0 * extras["lengths"])


# --- The table: constants, the start, and beta to 0 -----------------------------------------------


class Facts(NamedTuple):
    """What is derived of an objective, on a row of K = 4 usable columns.

    `constant`: whether a constant added to the row's log-probabilities changes nothing. `start`:
    the loss where policy equals reference, None if it depends on the log-probabilities.
    `advantages`: for beta to 0, the gradient descends `-scale * sum_j A_j log pi_theta(y_j | x)`,
    a REINFORCE step with advantages A_j; `scale` is a power of beta.
    """

    constant: bool
    start: Callable[[float], float] | None
    power: int
    advantages: Callable[[Inputs], list[float]]


def against_mean(truth: float, share: float | None = None) -> Callable[[Inputs], list[float]]:
    """The ground truth's advantage, and minus a share of it spread evenly over the 3 negatives."""
    negative = -(truth if share is None else share) / 3
    return lambda _: [truth, negative, negative, negative]


def per_token(truth: float, negatives: float) -> Callable[[Inputs], list[float]]:
    def advantages(given: Inputs) -> list[float]:
        lengths = given.extras["lengths"][0].tolist()
        return [truth / lengths[0], *(-negatives / 3 / length for length in lengths[1:])]

    return advantages


def softmax(values: list[float]) -> list[float]:
    return [math.exp(value) / sum(map(math.exp, values)) for value in values]


def scores_of(given: Inputs) -> list[float]:
    return given.extras["scores"][0].tolist()


def risk_advantages(given: Inputs) -> list[float]:
    # Q is uniform: dQ_j / d log pi_i = beta (1/4) ([i = j] - 1/4). The baseline is the mean score.
    scores = scores_of(given)
    return [(score - sum(scores) / 4) / 4 for score in scores]


def soft_advantages(given: Inputs) -> list[float]:
    return [label - 1 / 4 for label in softmax([score / 0.1 for score in scores_of(given)])]


def lipo_weights(given: Inputs, places: list[int]) -> dict[tuple[int, int], float]:
    scores = scores_of(given)
    return {
        (i, j): (2 ** scores[i] - 2 ** scores[j])
        * abs(1 / math.log(1 + places[i]) - 1 / math.log(1 + places[j]))
        for i in range(4)
        for j in range(4)
        if scores[i] > scores[j]
    }


def lipo_advantages(given: Inputs) -> list[float]:
    # The places are those of the log-ratios at any beta; each pair pulls with sigmoid(0) = 1/2.
    ratios = (given.policy_logps - given.reference_logps)[0].tolist()
    places = [1 + sum(other > ratio for other in ratios) for ratio in ratios]
    advantages = [0.0] * 4
    for (i, j), weight in lipo_weights(given, places).items():
        advantages[i] += weight / 2
        advantages[j] -= weight / 2
    return advantages


def swepo_shares(given: Inputs) -> tuple[list[float], list[float]]:
    """Of each column, its share among those above the mean, and among all."""
    scores = scores_of(given)
    mean = sum(scores) / 4
    weights = [math.exp(abs(score - mean)) for score in scores]
    above = [weight * (score > mean) for weight, score in zip(weights, scores, strict=True)]
    return [one / sum(above) for one in above], [one / sum(weights) for one in weights]


def swepo_advantages(given: Inputs) -> list[float]:
    return [one - other for one, other in zip(*swepo_shares(given), strict=True)]


def swepo_start(given: Inputs) -> float:
    above, of_all = swepo_shares(given)
    return -math.log(sum(share for share, kept in zip(of_all, above, strict=True) if kept))


GIVEN = inputs(rows=1, seed=6, masked=False)
SIGMOID_OF_MARGIN = 1 / (1 + math.exp(-0.5))
EXO_LOGIT = math.log((1 - 1e-3) / 1e-3)

FACTS = {
    # -log sigmoid has slope -1/2 at 0.
    "pairwise_dpo": Facts(True, lambda _: LN2, 1, against_mean(1 / 2)),
    "spin": Facts(True, lambda _: LN2, 1, against_mean(1 / 2)),
    "spin_hinge": Facts(True, lambda _: 1.0, 1, against_mean(1)),
    "slic": Facts(True, None, 1, against_mean(1)),
    # (h - 1 / (2 beta))^2 has slope -1 / beta.
    "ipo": Facts(True, lambda beta: 1 / (4 * beta**2), -1, against_mean(1)),
    # Both terms fall, by (1 - e) / 2 and e / 2, and their sum is divided by 1 - 2 e = 0.8.
    "robust_dpo": Facts(True, lambda _: LN2, 1, against_mean(1 / 2 / 0.8)),
    # dq/dm = 1/4 and dL/dq = m - logit(1 - e).
    "exo": Facts(
        True,
        lambda _: -LN2 - math.log(1e-3 * (1 - 1e-3)) / 2,
        1,
        against_mean(EXO_LOGIT / 4),
    ),
    "info_nca": Facts(True, lambda _: math.log(4), 1, against_mean(3 / 4)),
    # 1/2 for the ground truth as data, less 1/2 of 1/4 for each as noise: half of InfoNCA's.
    "nca": Facts(False, lambda _: 2 * LN2, 1, against_mean(3 / 8)),
    "bco": Facts(False, lambda _: 2 * LN2, 1, against_mean(1 / 2)),
    # sigmoid has slope 1/4 at 0.
    "apo_zero": Facts(False, lambda _: 1.0, 1, against_mean(1 / 4)),
    # The pull up by the differences and the push down cancel.
    "apo_down": Facts(False, lambda _: 1.0, 1, against_mean(0, share=1 / 4)),
    "sppo_hard": Facts(False, lambda beta: 1 / (2 * beta**2), -1, against_mean(1)),
    # The ground truth of this row is below its reference: 50 more times.
    "dpop": Facts(False, lambda _: LN2, 1, against_mean(51 / 2, share=1 / 2)),
    "simpo": Facts(False, None, 1, per_token(SIGMOID_OF_MARGIN, SIGMOID_OF_MARGIN)),
    # Nothing is left but the likelihood.
    "orpo": Facts(False, None, 0, per_token(1, 0)),
    "brio": Facts(False, None, 0, per_token(1, 0)),
    "rrhf": Facts(False, None, 0, per_token(1, 0)),
    "expected_risk": Facts(True, None, 1, risk_advantages),
    "soft_info_nca": Facts(True, lambda _: math.log(4), 1, soft_advantages),
    # Equal rewards stand in the order of the columns.
    "lipo_lambda": Facts(
        True, lambda _: LN2 * sum(lipo_weights(GIVEN, [1, 2, 3, 4]).values()), 1, lipo_advantages
    ),
    "swepo": Facts(True, lambda _: swepo_start(GIVEN), 1, swepo_advantages),
}

USES_REFERENCE = set(NAMES) - {"slic", "simpo", "orpo", "brio", "rrhf", "expected_risk"}


def limit(name: str, power: int) -> list[float]:
    """The advantages for beta to 0, by the gradient at a small beta."""
    small = 1e-7
    policy = GIVEN.policy_logps.clone().requires_grad_()
    GIVEN.loss(name, small)(policy).backward()
    return (-policy.grad[0] / small**power).tolist()


def test_the_table_of_all_objectives():
    assert set(FACTS) == set(NAMES)
    policy, reference = GIVEN.policy_logps, GIVEN.reference_logps
    assert policy[0, 0] < reference[0, 0]
    print(f"\n{'objective':15}{'constant':10}{'at the start':14}beta -> 0: advantages")
    for name, facts in FACTS.items():
        loss = GIVEN.loss(name)
        unmoved = abs(loss(policy + 1.7).item() - loss(policy).item()) < 1e-9
        start = None if facts.start is None else loss(reference).item()
        advantages = limit(name, facts.power)
        shown = " ".join(f"{advantage:8.4f}" for advantage in advantages)
        start_shown = "-" if start is None else f"{start:.4f}"
        scale = {1: "beta", 0: "1", -1: "1/beta"}[facts.power]
        print(f"{name:15}{'same' if unmoved else 'differs':10}{start_shown:14}{scale:7}{shown}")
        assert unmoved == facts.constant, name
        if facts.start is not None:
            assert start == pytest.approx(facts.start(0.7), abs=1e-10), name
        assert advantages == pytest.approx(facts.advantages(GIVEN), rel=1e-5, abs=1e-5), name
        if facts.constant:  # then the advantages have a baseline
            assert sum(advantages) == pytest.approx(0, abs=1e-5), name


# --- What training gives them ---------------------------------------------------------------------


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    before = dict(OBJECTIVES), set(RANKED_OBJECTIVES)
    yield
    for known, kept in zip((OBJECTIVES, RANKED_OBJECTIVES), before, strict=True):
        known.clear()
        known.update(kept)


def test_every_function_of_the_package_has_a_name():
    named = {loss for name, loss in OBJECTIVES.items() if name in NAMES}
    assert named == {getattr(neighbours, name) for name in neighbours.__all__}
    assert len(named) == 22
    for name in NAMES:
        taken = list(inspect.signature(OBJECTIVES[name]).parameters)
        assert taken[:4] == ["policy_logps", "reference_logps", "beta", "mask"]
        assert objective_identity(name) == name


EXAMPLES = [
    TrainingExample(
        Group([1], [[2, 3], [4], [5, 6, 7]]), (True,) * 3, (-2.0, -3.0, -4.0), (1.0, 0.5, 0.2)
    ),
    TrainingExample(
        Group([1], [[2], [], [3, 4]]), (True, False, True), (-1.0, 0.0, -2.0), (1.0, 0.0, 0.7)
    ),
]
LENGTHS = [[2, 1, 3], [1, 0, 2]]
SCORES = torch.tensor([[1, 0.5, 0.2], [1, 0, 0.7]])


def first_loss(objective: str, examples: list[TrainingExample] = EXAMPLES) -> float:
    """The loss of the trainer's first micro-batch, with a policy like the reference."""
    batch = collate([{"example": example, "batch_tokens": 3} for example in examples])
    trainer = SequenceTrainer.__new__(SequenceTrainer)
    trainer.settings = TrainingSettings(objective, 1, len(examples), 1e-3, beta=2.0)
    trainer.sums, trainer.accelerator = {}, SimpleNamespace(num_processes=1)
    seen: dict[str, Tensor] = {}

    def model(**inputs: Tensor) -> Tensor:
        seen.update(inputs)
        return torch.tensor([example.reference_logps for example in examples])

    loss = trainer.compute_loss(model, batch)
    assert set(seen) == {"prefix_ids", "prefix_mask", "continuation_ids", "continuation_mask"}
    assert trainer.sums["loss_at_reference"].item() == pytest.approx(loss.item(), abs=1e-6)
    return loss.item()


@pytest.mark.parametrize("name", ["cpo", *NAMES])
def test_a_training_gives_each_what_it_names(name):
    reference = torch.tensor([example.reference_logps for example in EXAMPLES])
    mask = torch.tensor([example.mask for example in EXAMPLES])
    taken = inspect.signature(OBJECTIVES[name]).parameters
    extras = {"lengths": torch.tensor(LENGTHS), "scores": SCORES}
    given = {key: value for key, value in extras.items() if key in taken}
    expected = OBJECTIVES[name](reference, reference, 2.0, mask, **given).item()
    assert first_loss(name) == pytest.approx(expected, abs=1e-6)
    # On held-out prompts too.
    settings = TrainingSettings(name, 1, 2, 1e-3, beta=2.0)
    measured = contrast_on(reference, reference, mask, settings, extras)
    assert measured["contrast_loss"] == pytest.approx(expected, abs=1e-6)


def test_a_custom_objective_names_what_it_takes(registry):
    seen = {}

    @register_objective("mine")
    def mine(policy_logps, reference_logps, beta, mask, scores, lengths, factor=2.0):
        seen.update(scores=scores, lengths=lengths)
        return factor * policy_logps[:, 0].mean()

    assert first_loss("mine") == -3.0  # 2 * (-2 - 1) / 2
    assert seen["lengths"].tolist() == LENGTHS and torch.equal(seen["scores"], SCORES)

    # As notebook 10's: four arguments, and nothing else.
    @register_objective("hinge", ranked=True)
    def hinge(policy_logps, reference_logps, beta, mask):
        return policy_logps[:, 0].mean()

    assert first_loss("hinge") == -1.5 and "hinge" in RANKED_OBJECTIVES

    @register_objective("all of them")
    def all_of_them(*arguments, **further):
        return arguments[0][:, 0].mean() + len(further)

    assert first_loss("all of them") == -1.5
    with pytest.raises(RegistryError, match="'yours' needs length, which training does not have"):

        @register_objective("yours")
        def yours(policy_logps, reference_logps, beta, mask, length):
            return policy_logps.mean()

    assert "yours" not in OBJECTIVES
    with pytest.raises(RegistryError, match="already has a objective 'simpo'"):
        register_objective("simpo")


def test_an_objective_without_its_scores_says_so():
    bare = [TrainingExample(one.group, one.mask, one.reference_logps) for one in EXAMPLES]
    assert math.isfinite(first_loss("simpo", bare))
    with pytest.raises(ValueError, match="'swepo' takes scores, which its examples lack"):
        first_loss("swepo", bare)
