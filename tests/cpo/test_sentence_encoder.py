"""MiniLM in int8 ranks as in fp32, and a text's embedding does not depend on its batch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.embedding import groups, taus
from cpo.ranking import embed_texts, embedder_name, minilm

GROUPS = groups()[:15]
TEXTS = [text for group in GROUPS for text in group]


@pytest.fixture(scope="module")
def int8():
    return minilm("fp32", "minilm-int8")


def test_a_cpu_takes_int8_and_a_gpu_does_not():
    assert embedder_name("cpu") == "minilm-int8" and embedder_name("cuda") == "minilm"


def test_candidates_have_the_order_of_fp32(int8):
    ours, theirs = (
        embed_texts(TEXTS, embed).view(len(GROUPS), -1, 384)
        for embed in (int8, minilm("fp32", "minilm"))
    )
    assert taus(ours, theirs).mean() > 0.95
    assert ((ours * theirs).sum(-1) > 0.99).all()  # cosine of the same text
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(ours.shape[:2]))


def test_the_measure_of_order():
    # Angles to column 0, ours and theirs: of three pairs of candidates two agree and one does not,
    # (2 - 1) / 3; in the second group all agree.
    def at(*degrees: float) -> list[list[float]]:
        angles = torch.tensor([0.0, *degrees]).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], -1).tolist()

    ours = torch.tensor([at(10, 40, 70), at(10, 40, 70)])
    theirs = torch.tensor([at(10, 70, 40), at(20, 30, 90)])
    assert taus(ours, theirs).tolist() == pytest.approx([1 / 3, 1.0])


def test_an_embedding_does_not_depend_on_its_batch(int8):
    together = int8(TEXTS)
    for row in (0, 7, 100):
        torch.testing.assert_close(int8([TEXTS[row]])[0], together[row], rtol=0, atol=1e-6)
    torch.testing.assert_close(int8(TEXTS[::-1]).flip(0), together, rtol=0, atol=1e-6)


def test_an_embedding_does_not_depend_on_the_threads(int8):
    before, one = torch.get_num_threads(), int8(TEXTS[:60])
    torch.set_num_threads(3)
    try:
        several = int8(TEXTS[:60])
        assert torch.get_num_threads() == 3  # as it was
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(several, one, rtol=0, atol=1e-6)


def test_equal_texts_tie_and_odd_ones_work(int8):
    texts = ["", "The cat sleeps.", "", "The cat sleeps.", "word " * 600]
    found = int8(texts)
    assert found.shape == (5, 384) and found.isfinite().all()
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    # Only the first 256 tokens are read, as in sentence-transformers.
    torch.testing.assert_close(int8(["word " * 300])[0], found[4], rtol=0, atol=1e-6)
    assert int8([]).shape == (0, 384)
