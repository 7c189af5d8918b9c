"""Checks by other means than our own: TRL's DPO trainer, finite differences, a published story.

What the samplers, the losses and the ensembles promise is tested beside each of them; here stand
the comparisons that need a second implementation, or the real settings of the paper.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EOS, VOCABULARY, tiny_model
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpo.data import Example, TokenizedExample, tokenize, train_tokenizer
from cpo.generation import generate
from cpo.losses import cpo_loss, dpo_loss, ranked_cpo_loss, ranking_nce_loss
from cpo.negatives import AUTOREGRESSIVE_TOP_K, PlannedRows, autoregressive, meanfield
from cpo.ranking import rank_candidates
from cpo.scoring import Group, GroupScorer, collate_groups

# --- DPO against TRL ------------------------------------------------------------------------------

BETA = 0.2

# Prompts and responses of unlike lengths; the second rejected one is its chosen one cut short,
# which the scorer computes without a forward pass of its own.
PAIRS = [
    {"prompt": "Name a fruit.", "chosen": " An apple.", "rejected": " Some stones, I think."},
    {"prompt": "Colours?", "chosen": " Red, green and blue.", "rejected": " Red"},
    {"prompt": "Where does the sun rise?", "chosen": " In the east.", "rejected": " In the west."},
    {"prompt": "Two?", "chosen": " Two", "rejected": " Three or four or more than that."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair.values()], 320)
    assert tokenizer.eos_token_id == EOS
    return tokenizer


def groups_of_pairs(tokenizer: Any) -> list[Group]:
    """The pairs as this package tokenises them, chosen first, each with its EOS."""

    def tokenized(key: str) -> list[TokenizedExample]:
        examples = [Example("", pair["prompt"], pair[key], "", pair) for pair in PAIRS]
        kept, _ = tokenize(examples, tokenizer, max_prefix_tokens=64, max_continuation_tokens=64)
        return kept

    return [
        Group(one.prefix_ids, [one.continuation_ids, other.continuation_ids])
        for one, other in zip(tokenized("chosen"), tokenized("rejected"), strict=True)
    ]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def by_trl(policy: Any, reference: Any, tokenizer: Any, folder: Path) -> tuple[Any, Any, Any]:
    """The batch, the loss and the policy's gradients of TRL's own trainer, all pairs in one
    batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            loss_type=["sigmoid"],
            per_device_train_batch_size=len(PAIRS),
            disable_dropout=True,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    return batch, loss.detach(), gradients(trainer.model)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_dpo_has_the_loss_and_the_gradients_of_trl(architecture, tokenizer, tmp_path):
    def model(seed: int, dropout: float) -> Any:
        one = tiny_model(architecture, seed, dropout)
        one.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return one

    # Ours come with dropout, which the scorer disables. TRL's own switch would not reach that of
    # Llama's attention, so its models have none to begin with; the weights are the same.
    policy, reference, groups = model(0, 0.1), model(1, 0.1), groups_of_pairs(tokenizer)
    batch, trl_loss, trl_gradients = by_trl(model(0, 0.0), model(1, 0.0), tokenizer, tmp_path)
    # The same tokens, EOS included: the chosen responses in TRL's first half, in any order.
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    rows = [tuple(row[kept].tolist()) for row, kept in zip(ids, real, strict=True)]
    for column, half in enumerate((rows[: len(PAIRS)], rows[len(PAIRS) :])):
        ours = [(*group.prefix_ids, *group.continuations[column]) for group in groups]
        assert sorted(half) == sorted(ours) and all(row[-1] == EOS for row in half)

    collated = collate_groups(groups)
    with torch.no_grad():
        reference_logps = GroupScorer(reference)(**collated)
    for objective in (dpo_loss, cpo_loss):  # eq. 1 at K = 2 is DPO
        policy.zero_grad()
        loss = objective(GroupScorer(policy.train())(**collated), reference_logps, BETA)
        loss.backward()
        # Both sides in fp32, beyond which TRL's head does not go. They were seen to agree within
        # 1.2e-7 in the loss and 1.5e-6 of its norm in any gradient; the bounds are some ten times.
        assert abs(loss.item() - trl_loss.item()) < 2e-6
        found = gradients(policy)
        assert found.keys() == trl_gradients.keys()
        for name, gradient in found.items():
            assert gradient.norm() > 0.01, f"{name} takes no gradient"
            difference = (gradient - trl_gradients[name]).norm() / gradient.norm()
            assert difference < 2e-5, f"{name} differs by {float(difference):.1e} of its norm"


# --- The losses' laws, with masks -----------------------------------------------------------------

B, K = 3, 6


def rows_of(values: Any, length: int = B) -> Any:
    return st.lists(values, min_size=length, max_size=length)


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(1, K)),
    usable=rows_of(rows_of(st.booleans(), K - 1)),
    constants=rows_of(st.floats(-50, 50)),
    beta=st.floats(0.05, 5.0),
    seed=st.integers(0, 2**31),
)
def test_symmetries_hold_whatever_is_masked(order, usable, constants, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    policy, reference = (
        torch.randn(B, K, generator=generator, dtype=torch.float64) * 3 - 40 for _ in range(2)
    )
    mask = torch.tensor([[True, *row] for row in usable])
    # Distinct angles to the ground truth's embedding, a permutation of a fixed grid in each row.
    angles = torch.stack([torch.randperm(K, generator=generator) for _ in range(B)]) * 0.5
    angles[:, 0] = 0
    angles[:, 1:] += 0.1
    embeddings = torch.stack([angles.cos(), angles.sin()], -1)

    def ranked(columns: torch.Tensor) -> torch.Tensor:
        """Equation 2 of the candidates stored in this order of columns, ranked there."""
        ranking, _ = rank_candidates(embeddings[:, columns], mask[:, columns])
        by_rank = (one[:, columns].gather(-1, ranking) for one in (policy, reference, mask))
        new_policy, new_reference, new_mask = by_rank
        return ranked_cpo_loss(new_policy, new_reference, beta, new_mask)

    plain, relabelled = torch.arange(K), torch.tensor([0, *order])
    # Equation 1 does not know an order of negatives, nor equation 2 one but the ranking's.
    torch.testing.assert_close(
        cpo_loss(policy[:, relabelled], reference[:, relabelled], beta, mask[:, relabelled]),
        cpo_loss(policy, reference, beta, mask),
    )
    torch.testing.assert_close(ranked(relabelled), ranked(plain))
    # A constant on all rewards of a row, each row its own: beta log Z(x) of eq. 10.
    shifted = policy + torch.tensor(constants, dtype=torch.float64)[:, None]
    for loss in (cpo_loss, ranked_cpo_loss):
        torch.testing.assert_close(
            loss(shifted, reference, beta, mask), loss(policy, reference, beta, mask)
        )
    torch.testing.assert_close(
        ranking_nce_loss(shifted, beta, mask), ranking_nce_loss(policy, beta, mask)
    )


def without_reference(policy, reference, beta, mask):
    return ranking_nce_loss(policy, beta, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", [cpo_loss, ranked_cpo_loss, dpo_loss, without_reference])
def test_gradients_are_those_of_finite_differences(loss: Callable, masked: bool):
    k = 2 if loss is dpo_loss else K
    generator = torch.Generator().manual_seed(0)
    policy, reference = (
        torch.randn(B, k, generator=generator, dtype=torch.float64) - 40 for _ in range(2)
    )
    mask = None
    if masked:  # a row with gaps inside, a row with nothing but the ground truth, a whole row
        mask = torch.ones(B, k, dtype=torch.bool)
        mask[0, 1:-1:2] = False
        mask[1, 1:] = False
    policy.requires_grad_()
    assert torch.autograd.gradcheck(lambda logps: loss(logps, reference, 0.7, mask), policy)


# --- Negatives at the paper's own settings --------------------------------------------------------


def planned(model: Any, prefixes: list, continuations: list, **changes: Any) -> PlannedRows:
    fields: dict[str, Any] = {
        "batch": len(prefixes),
        "eos_token_id": EOS,
        "max_continuation_tokens": 12,
    }
    return PlannedRows(prefixes, continuations, model=model, **{**fields, **changes})


def test_mn_of_ragged_rows_have_the_marginals_of_their_own_softmax():
    # Of T tokens n = max(1, round(0.15 T)) are resampled at uniform positions, so a token stays
    # with 1 - n/T and else follows pi_ref(. | x, y_<t), here from one unpadded sequence: position
    # and token are tested at once, in rows that share a micro-batch with longer and shorter ones.
    model, draws = tiny_model("llama").eval(), 4000
    generator = torch.Generator().manual_seed(0)
    prefixes, bodies = [], []
    for width, length in ((2, 10), (7, 4), (1, 17), (4, 7)):
        ids = torch.randint(1, VOCABULARY, (width + length,), generator=generator).tolist()
        prefixes.append(tuple(ids[:width]))
        bodies.append(tuple(ids[width:]))
    continuations = [(*body, EOS) for body in bodies[:3]] + [bodies[3]]  # the last was capped
    plan = planned(model, prefixes, continuations, micro_batch=3)
    drawn = meanfield(plan, dict.fromkeys(range(4), draws), seed=0)
    for row, resampled in enumerate((2, 1, 3, 1)):
        prefix, body = prefixes[row], bodies[row]
        assert len(drawn[row]) == draws
        assert all(ids[len(body) :] == continuations[row][len(body) :] for ids in drawn[row])
        with torch.no_grad():
            logits = model(torch.tensor([[*prefix, *body]])).logits[0, len(prefix) - 1 : -1]
        expected = logits.double().softmax(-1) * resampled / len(body)
        expected[range(len(body)), body] += 1 - resampled / len(body)
        tokens = torch.tensor([ids[: len(body)] for ids in drawn[row]])
        for position in range(len(body)):
            observed = tokens[:, position].bincount(minlength=VOCABULARY).double()
            wanted = expected[position] * draws
            single = wanted >= 10  # the rarer ones are counted together
            binned = [
                torch.cat([one[single], one[~single].sum()[None]]) for one in (observed, wanted)
            ]
            assert chisquare(*binned).pvalue > 1e-4, (row, position)


def test_an_draw_from_the_fifty_most_probable_tokens():
    # A flattened head: of 64 tokens the 14 least probable would be seen at every eighth step.
    model = tiny_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
    prefixes = [(5,), (7, 8, 9, 10, 11), (3, 4)]
    plan = planned(model, prefixes, [(6, EOS), (6, 7, EOS), (8, EOS)], generation_batch=300)
    drawn = autoregressive(plan, {0: 2000, 1: 200, 2: 200}, seed=0)
    assert AUTOREGRESSIVE_TOP_K == 50
    for row, candidates in drawn.items():
        ended = [ids[-1] == EOS for ids in candidates]
        assert any(ended) and not all(ended)
        for ids, has_eos in zip(candidates, ended, strict=True):
            assert EOS not in ids[:-1] and (has_eos or len(ids) == 12)
        # Padding on the right is never looked at by a causal model.
        rows = torch.tensor(
            [[*prefixes[row], *ids, *[EOS] * (12 - len(ids))] for ids in candidates]
        )
        with torch.no_grad():
            logits = model(rows).logits[:, len(prefixes[row]) - 1 : -1]
        fiftieth = logits.topk(50).values[..., -1]
        chosen = logits.gather(-1, rows[:, len(prefixes[row]) :, None])[..., 0]
        for number, ids in enumerate(candidates):
            given = slice(len(ids))
            assert (chosen[number, given] >= fiftieth[number, given] - 1e-4).all()
        if row == 0:  # all fifty, as often as the softmax over them says
            best = logits[0, 0].topk(50)
            counts = torch.tensor([ids[0] for ids in candidates]).bincount(minlength=VOCABULARY)
            wanted = best.values.double().softmax(-1) * len(candidates)
            assert set(counts.nonzero()[:, 0].tolist()) == set(best.indices.tolist())
            assert chisquare(counts[best.indices].double(), wanted).pvalue > 1e-4


# --- A real model ---------------------------------------------------------------------------------


def test_stories260k_decodes_greedily_to_its_known_story():
    folder = os.environ.get("CPO_DATA")
    if not folder:
        pytest.skip("CPO_DATA is not set: the folder of the real data")
    model = AutoModelForCausalLM.from_pretrained(Path(folder) / "stories260K").eval()
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "stories260K")
    ids, count = [tokenizer.bos_token_id], 200
    with torch.no_grad():
        for _ in range(count):  # no cache, no padding
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    story = ids[1:]
    # Greedy decoding is its own continuation: from nothing, and from the story's first 30 tokens,
    # side by side in one batch.
    [[whole], [rest]] = generate(
        model, [ids[:1], ids[:31]], eos_token_id=tokenizer.eos_token_id, max_new_tokens=count
    )
    assert whole == story and rest[: count - 30] == story[30:]
    assert tokenizer.decode(whole).startswith(
        "Once upon a time, there was a little girl named Lily. "
        "She loved to play outside in the park."
    )
