"""The order tau and the weight-space ensembles."""

import pytest
import torch
from models import tiny_model

from cpo.ensembling import interpolate
from cpo.plan import plan_batches
from cpo.ranking import embed_texts, minilm, rank_candidates


def test_ranks_by_cosine_with_the_truth_first_and_masked_last():
    # Angles to the truth (1, 0): column 1 opposite, 2 equal but longer, 3 at 45 degrees, 4 masked.
    embeddings = torch.tensor([[[1, 0], [-1, 0], [5, 0], [1, 1], [1, 0]]], dtype=torch.float)
    mask = torch.tensor([[True, True, True, True, False]])
    order, similarities = rank_candidates(embeddings, mask)
    assert order.tolist() == [[0, 2, 3, 1, 4]]
    torch.testing.assert_close(similarities[0, :4], torch.tensor([1.0, -1.0, 1.0, 0.5**0.5]))


def test_ties_go_by_column_even_with_the_truth():
    embeddings = torch.ones(2, 5, 3)
    order, _ = rank_candidates(embeddings, torch.ones(2, 5, dtype=torch.bool))
    assert order.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_each_distinct_text_is_embedded_once():
    seen = []

    def embed(texts):
        seen.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    found = embed_texts(["bb", "a", "bb", "", "a"], embed, chunk=2)
    assert found[:, 0].tolist() == [2, 1, 2, 0, 1] and sorted(seen) == ["", "a", "bb"]


def test_minilm_orders_by_meaning_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = ["The cat sleeps.", "A cat is asleep.", "Interest rates rose.", "The cat sleeps."]
    embeddings = embed_texts(texts, minilm("fp32"))[None]
    order, similarities = rank_candidates(embeddings, torch.ones(1, 4, dtype=torch.bool))
    assert embeddings.shape == (1, 4, 384)
    assert order.tolist() == [[0, 3, 1, 2]] and similarities[0, 3] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_ensembles_have_exact_ends_and_lie_between(architecture):
    weights = [dict(tiny_model(architecture, seed).named_parameters()) for seed in (0, 1)]
    for alpha in (0.0, 0.3, 1.0):
        mixed = interpolate(tiny_model(architecture, 0), tiny_model(architecture, 1), alpha)
        for name, parameter in mixed.named_parameters():
            mle, cpo = weights[0][name], weights[1][name]
            if alpha in (0.0, 1.0):
                assert torch.equal(parameter, mle if alpha else cpo)
            else:  # theta = alpha theta_MLE + (1 - alpha) theta_CPO
                torch.testing.assert_close(parameter, alpha * mle + (1 - alpha) * cpo)


def test_ensembles_refuse_what_cannot_be_mixed():
    with pytest.raises(ValueError, match="alpha is 1.2"):
        interpolate(tiny_model("gpt2"), tiny_model("gpt2"), 1.2)
    with pytest.raises(ValueError, match="different parameters"):
        interpolate(tiny_model("gpt2"), tiny_model("llama"), 0.5)


def test_a_plan_is_seeded_epochs_without_a_row_twice_in_a_batch():
    plan = plan_batches(rows=10, steps=7, batch=4, seed=0)
    assert plan.shape == (7, 4) and plan.dtype == torch.int64
    for first in range(0, 6, 2):  # two batches an epoch: eight of ten rows, each once
        assert len(set(plan[first : first + 2].flatten().tolist())) == 8
    assert torch.equal(plan[:3], plan_batches(10, 3, 4, 0))  # a prefix of the longer plan
    assert not torch.equal(plan, plan_batches(10, 7, 4, 1))
    with pytest.raises(ValueError, match="needs at least 4 training rows"):
        plan_batches(3, 1, 4, 0)
