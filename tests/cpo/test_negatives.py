"""The samplers: what they draw, how often, and what happens to draws that teach nothing."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EOS, VOCABULARY, tiny_model
from scipy.stats import chisquare

from cpo import negatives
from cpo.generation import generate
from cpo.negatives import MOST_SEQUENCES, SAMPLERS, PlannedRows, draw_negatives, register
from cpo.registry import RegistryError


def planned(rows: int = 8, batch: int = 4, seed: int = 0, **changes) -> PlannedRows:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        count = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(1, VOCABULARY, (count,), generator=generator).tolist())

    fields = {
        "prefixes": [ids(2, 6) for _ in range(rows)],
        "continuations": [(*ids(3, 12), EOS) for _ in range(rows)],
        "batch": batch,
        "model": tiny_model("llama").eval(),
        "eos_token_id": EOS,
        "max_continuation_tokens": 12,
    }
    return PlannedRows(**{**fields, **changes})


def test_an_stays_within_the_top_k_and_ends_only_in_its_own_eos(monkeypatch):
    monkeypatch.setattr(negatives, "AUTOREGRESSIVE_TOP_K", 3)
    plan = planned()
    drawn = negatives.autoregressive(plan, {0: 20, 3: 20}, seed=1)
    for row, candidates in drawn.items():
        assert len(candidates) == 20 and len(set(candidates)) > 1
        for ids in candidates:
            assert EOS not in ids[:-1] and 1 <= len(ids) <= 12
            if ids[-1] != EOS:  # never added where the model did not emit it
                assert len(ids) == 12
            logits = plan.model(torch.tensor([[*plan.prefixes[row], *ids]])).logits[0]
            before = len(plan.prefixes[row]) - 1
            for position, token in enumerate(ids):
                assert token in logits[before + position].topk(3).indices.tolist()


def test_negatives_of_the_test_decoder_are_what_it_says():
    plan = planned(rows=6, batch=2)
    arguments = {"eos_token_id": EOS, "max_new_tokens": plan.max_continuation_tokens}
    greedy = SAMPLERS["AN-greedy"](plan, dict.fromkeys(range(6), 1), seed=0)
    said = generate(plan.model, plan.prefixes, **arguments)
    assert [greedy[row] for row in range(6)] == [[tuple(ids) for ids in one] for one in said]
    # Greedy by hand: each token is the most probable one after what stands before.
    ids = [*plan.prefixes[0]]
    for token in greedy[0][0]:
        assert token == int(plan.model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    # Four beams end in four sequences, the first of which is what is said at test.
    beam = SAMPLERS["AN-beam"](plan, dict.fromkeys(range(6), 4), seed=0)
    said = generate(plan.model, plan.prefixes, num_beams=4, **arguments)
    assert all(len(set(beam[row])) == 4 for row in range(6))
    assert [beam[row][0] for row in range(6)] == [tuple(ids) for (ids,) in said]


def test_a_deterministic_decoder_is_asked_once(monkeypatch):
    plan = planned(rows=4, batch=2)
    said = [tuple(ids) for (ids,) in generate(
        plan.model, plan.prefixes, eos_token_id=EOS, max_new_tokens=12
    )]  # fmt: skip
    plan.continuations[1] = said[1]  # the recorded response is just what greedy decoding says
    asked = []

    def counted(*arguments, **named):
        asked.append(len(arguments[1]))
        return generate(*arguments, **named)

    monkeypatch.setattr(negatives, "generate", counted)
    drawn = draw_negatives(plan, {"AN-greedy": 1}, seed=0)
    assert asked == [4]
    assert [row[1] for row in drawn.mask] == [True, False, True, True]
    assert drawn.reports["AN-greedy"].equal_to_truth == drawn.reports["AN-greedy"].masked == 1
    with pytest.raises(ValueError, match="AN-greedy: 2 requested, decoding gives 1"):
        draw_negatives(plan, {"AN-greedy": 2}, seed=0)


class Tokens:
    """A tokenizer of fewer entries than its model, as where an embedding is padded."""

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(40)}


@pytest.mark.parametrize("kind", ["AN", "MN", "AN-greedy", "AN-beam"])
def test_negatives_hold_no_id_that_the_tokenizer_does_not_know(kind):
    plan = planned(continuations=[(5, 6, 7, 8, EOS)] * 8, tokenizer=Tokens())
    plan.model.lm_head.weight.data *= 0.01  # nearly uniform over 64 ids, 24 of them unknown
    count = MOST_SEQUENCES.get(kind, 20)
    draws = SAMPLERS[kind](plan, dict.fromkeys(range(8), count), 0)
    assert all(token < 40 for group in draws.values() for ids in group for token in ids)


def test_a_row_for_which_nothing_unhelpful_could_be_written_is_masked():
    plan = planned(rows=4, batch=2, unhelpful=[(5, EOS), None, (6, EOS), None])
    drawn = draw_negatives(plan, {"UN": 1}, seed=0)
    assert [row[1] for row in drawn.candidates] == [(5, EOS), (), (6, EOS), ()]
    assert drawn.mask == [[True, True], [True, False]] * 2
    report = drawn.reports["UN"]
    assert (report.asked, report.drawn, report.masked) == (4, 2, 2)


def test_bn_are_others_of_the_global_batch_without_replacement():
    plan = planned(rows=12, batch=4)
    plan.prefixes[5] = plan.prefixes[4]  # a repeated prompt
    drawn = negatives.batch_negatives(plan, dict.fromkeys(range(12), 3), seed=0)
    for row, candidates in drawn.items():
        batch = set(range(row - row % 4, row - row % 4 + 4))
        allowed = [
            plan.continuations[other]
            for other in batch - {row}
            if plan.prefixes[other] != plan.prefixes[row]
        ]
        assert sorted(candidates) == sorted(allowed)  # 3 asked: all of them, each once
    assert len(drawn[4]) == len(drawn[5]) == 2 and len(drawn[0]) == 3


def test_bn_are_uniform_over_the_batch():
    plan = planned(rows=4, batch=4)
    counts = Counter(
        negatives.batch_negatives(plan, {0: 1}, seed=seed)[0][0] for seed in range(3000)
    )
    assert len(counts) == 3 and chisquare(list(counts.values())).pvalue > 1e-3


def test_mn_marginals_are_the_reference_s_own():
    # T = 4: one position of four is resampled. Given that position 2 was chosen, its token follows
    # pi_ref(. | x, y_1, y_2): compared by a chi-square test over the likeliest tokens and the rest.
    truth = (5, 9, 11, 20)
    plan = planned(rows=1, batch=1, continuations=[(*truth, EOS)], prefixes=[(3, 4)])
    draws = negatives.meanfield(plan, {0: 20_000}, seed=0)[0]
    assert all(ids[-1] == EOS and len(ids) == 5 for ids in draws)
    changed = [[i for i in range(4) if ids[i] != truth[i]] for ids in draws]
    assert max(map(len, changed)) == 1
    logits = plan.model(torch.tensor([[3, 4, *truth]])).logits[0, 1:-1].double()
    probabilities = logits.softmax(-1)  # row t: pi_ref(. | x, y_<t)
    for position in range(4):
        counts = Counter(
            ids[position] for ids, where in zip(draws, changed, strict=True) if where == [position]
        )
        expected = probabilities[position].clone()
        expected[truth[position]] = 0  # drawn equal to the truth: not seen as a change
        expected /= expected.sum()
        top = expected.topk(8).indices.tolist()
        total = sum(counts.values())
        observed = [counts[token] for token in top]
        wanted = [total * float(expected[token]) for token in top]
        observed.append(total - sum(observed))
        wanted.append(total - sum(wanted))
        assert chisquare(observed, wanted).pvalue > 1e-4


@pytest.mark.parametrize(("length", "changed"), [(1, 1), (4, 1), (10, 2), (20, 3), (27, 4)])
def test_mn_resamples_15_percent_at_uniform_positions(monkeypatch, length, changed):
    # round(0.15 T), at least one: 27 x 0.15 = 4.05 -> 4. Logits that never give the old token.
    body = tuple(range(1, length + 1))
    logits = torch.zeros(length, VOCABULARY)
    logits[torch.arange(length), torch.tensor(body)] = -math.inf
    generator = torch.Generator().manual_seed(0)
    counts = Counter()
    for _ in range(2000):
        new = negatives._resample(body, logits, generator)
        positions = [i for i in range(length) if new[i] != body[i]]
        assert len(positions) == changed
        counts.update(positions)
    assert len(counts) == length
    assert length == 1 or chisquare([counts[i] for i in range(length)]).pvalue > 1e-4


def test_tn_cuts_uniformly_and_ends_in_eos():
    truth = (7, 8, 9, 10, 11)
    plan = planned(rows=1, batch=1, continuations=[(*truth, EOS)], prefixes=[(3,)])
    cuts = Counter()
    for seed in range(4000):
        (ids,) = negatives.truncation(plan, {0: 1}, seed)[0]
        assert ids[-1] == EOS and ids[:-1] == truth[: len(ids) - 1]
        cuts[len(ids) - 1] += 1
    assert set(cuts) == {1, 2, 3, 4}  # 1 .. T - 1: neither nothing nor the whole
    assert chisquare(list(cuts.values())).pvalue > 1e-3


def test_a_one_token_response_has_no_truncation_and_is_masked():
    plan = planned(rows=2, batch=2, continuations=[(5, EOS), (6, 7, EOS)], prefixes=[(3,), (4,)])
    drawn = draw_negatives(plan, {"TN": 2}, seed=0)
    assert drawn.mask == [[True, False, False], [True, True, False]]
    assert drawn.candidates[1][1] == (6, EOS) and drawn.candidates[0][1:] == [(), ()]
    assert drawn.reports["TN"].masked == 3


def test_a_response_capped_without_eos_keeps_its_last_token():
    plan = planned(rows=1, batch=1, continuations=[(5, 6)], prefixes=[(3,)])
    assert plan.body(0) == (5, 6)
    assert negatives.truncation(plan, {0: 1}, 0)[0] == [(5, EOS)]
    assert all(len(ids) == 2 for ids in negatives.meanfield(plan, {0: 5}, 0)[0])


def test_a_mixture_fills_its_columns_with_distinct_candidates():
    plan = planned(rows=8, batch=8)
    drawn = draw_negatives(plan, {"BN": 3, "MN": 5, "TN": 3}, seed=0)
    assert drawn.kinds == ["truth", *["BN"] * 3, *["MN"] * 5, *["TN"] * 3]
    for truth, candidates, mask in zip(
        plan.continuations, drawn.candidates, drawn.mask, strict=True
    ):
        usable = [ids for ids, used in zip(candidates, mask, strict=True) if used]
        assert candidates[0] == truth and len(set(usable)) == len(usable)
        assert all(ids == () for ids, used in zip(candidates, mask, strict=True) if not used)


def test_the_fields_of_the_rows_by_name_will_do():
    plan = planned()
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    assert draw_negatives(fields, {"TN": 2}, 0) == draw_negatives(plan, {"TN": 2}, 0)


def test_the_same_seed_draws_the_same_and_counts_of_other_kinds_do_not_matter():
    plan = planned(rows=8, batch=8)
    first, second = (draw_negatives(plan, {"MN": 2, "TN": 1}, seed=3) for _ in range(2))
    assert first.candidates == second.candidates
    other = draw_negatives(plan, {"MN": 2, "BN": 4}, seed=3)
    assert [row[1:3] for row in other.candidates] == [row[1:3] for row in first.candidates]
    assert draw_negatives(plan, {"MN": 2}, seed=4).candidates != first.candidates


def test_draws_equal_to_the_truth_are_drawn_again_counted_and_finally_masked():
    calls = []

    @register("stubborn")
    def stubborn(planned, wanted, seed):
        calls.append(dict(wanted))
        # Row 0 only ever gives the truth; row 1 the truth first, something else when asked again.
        return {
            row: [planned.continuations[row] if row == 0 or len(calls) == 1 else (9, EOS)] * count
            for row, count in wanted.items()
        }

    try:
        drawn = draw_negatives(planned(rows=2, batch=2), {"stubborn": 2}, seed=0)
        identity = SAMPLERS.identity("stubborn")
    finally:
        del SAMPLERS["stubborn"]
    assert calls[0] == {0: 2, 1: 2} and calls[1] == {0: 2, 1: 2} and len(calls) == 4
    assert drawn.mask == [[True, False, False], [True, True, False]]
    report = drawn.reports["stubborn"]
    # First draw: 4 truths. Then row 0: 2 truths in each of 3 draws; row 1: one kept, then copies.
    assert report.first_equal_to_truth == 4 and report.equal_to_truth == 4 + 6
    assert report.duplicates == 1 + 1 + 1 and report.masked == 3
    # A sampler from outside the package enters a recipe by the hash of its source.
    assert identity.startswith("stubborn:") and SAMPLERS.identity("AN") == "AN"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_bn_never_have_an_equal_prefix(seed, batch):
    generator = torch.Generator().manual_seed(seed)
    prefixes = [(int(torch.randint(1, 4, (1,), generator=generator)),) for _ in range(2 * batch)]
    continuations = [(row + 1, EOS) for row in range(2 * batch)]
    plan = planned(rows=2 * batch, batch=batch, prefixes=prefixes, continuations=continuations)
    drawn = negatives.batch_negatives(plan, dict.fromkeys(range(2 * batch), batch), seed)
    for row, candidates in drawn.items():
        for ids in candidates:
            other = ids[0] - 1
            assert prefixes[other] != prefixes[row] and other // batch == row // batch


def test_bad_mixtures_are_refused():
    with pytest.raises(
        RegistryError,
        match="unknown kind of negative 'XN'.* Known: AN, AN-untruncated, AN-greedy, AN-beam, BN",
    ):
        draw_negatives(planned(), {"XN": 1}, 0)
    with pytest.raises(ValueError, match="raise the batch"):
        draw_negatives(planned(batch=4), {"BN": 4}, 0)
    with pytest.raises(ValueError, match="leave the kind out"):
        draw_negatives(planned(), {"TN": 0}, 0)
